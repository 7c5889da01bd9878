"""Any party with openssl can open what is sent to it and check what is signed: no program of ours is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsmkm.pki.slots import P256, P384
from tests.proofs.openssl import OpensslError, accepts, content_of, elements, open_package
from tests.proofs.peer import add_pem_party, meter_keys, virtual_meters
from tests.realm import Realm, copy_realm, title_of

pytestmark = pytest.mark.slow
SERIALS = (4711, 4712)


@dataclass(frozen=True)
class Delivered:
    """A realm after steps 1 to 4, and the packages that went to parties whose keys lie in PEM files."""

    realm: Realm
    injection: Path
    delivery: Path
    line_key: Path
    utility_key: Path

    @property
    def root(self) -> Path:
        return self.realm.folder / "pki" / "root.pem"

    def signed_files(self) -> list[Path]:
        return sorted(self.realm.folder.glob("*/packages/*.p7m")) + sorted(self.realm.folder.glob("*/receipts/*.p7m"))


@pytest.fixture(scope="module")
def delivered(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("openssl") / "realm")
    line_key = add_pem_party(realm, "pem-line", "line", "4C494E0000000077", "factory")
    utility_key = add_pem_party(realm, "pem-utility", "utility", "5554490000000077", "factory")
    names = [str(serial) for serial in SERIALS]
    (made,) = realm.rows("factory", "meter", "provision", str(realm.order(*SERIALS)), "--line", "pem-line")
    with virtual_meters(realm, *SERIALS) as ports:
        for serial, port in ports.items():
            realm.rows("factory", "meter", "inject", str(serial), "--address", f"127.0.0.1:{port}")
    (sent,) = realm.rows("factory", "package", "export", *names, "--to", "pem-utility")
    (real,) = realm.rows("factory", "package", "export", *names, "--to", "utility")
    (taken,) = realm.rows("utility", "package", "import", real["file"])
    realm.rows("factory", "package", "receipt", "--from-file", taken["receipt"])
    return Delivered(realm, Path(made["package"]), Path(sent["file"]), line_key, utility_key)


def held_by_meters(delivered: Delivered) -> dict[str, dict[str, bytes]]:
    return {title_of(serial): meter_keys(delivered.realm, serial) for serial in SERIALS}


def test_openssl_alone_opens_a_delivery_package_and_finds_the_keys_that_the_meters_hold(
    delivered: Delivered, tmp_path: Path
) -> None:
    opened = open_package(delivered.delivery, delivered.root, delivered.utility_key, tmp_path)
    assert opened == held_by_meters(delivered)


def test_openssl_alone_opens_the_injection_package_where_only_the_master_key_lies_under_the_package_key(
    delivered: Delivered, tmp_path: Path
) -> None:
    opened = open_package(delivered.injection, delivered.root, delivered.line_key, tmp_path)
    assert opened == held_by_meters(delivered)
    for meter in json.loads(content_of(delivered.injection, delivered.root))["meters"]:
        under = {role: key["under"] for role, key in meter["keys"].items()}
        assert under == {"master": "package", "guek": "master", "gbek": "master", "gak": "master"}


@pytest.mark.parametrize(("suite", "curve", "octets"), [(1, P256, 16), (2, P384, 32)])
def test_openssl_alone_opens_packages_of_suites_1_and_2(
    realm: Realm, tmp_path: Path, suite: int, curve: str, octets: int
) -> None:
    line_key = add_pem_party(realm, "pem-line", "line", "4C494E0000000077", "factory", curve)
    utility_key = add_pem_party(realm, "pem-utility", "utility", "5554490000000077", "factory", curve)
    order = str(realm.order(SERIALS[0], suite=suite))
    (made,) = realm.rows("factory", "meter", "provision", order, "--line", "pem-line")
    with virtual_meters(realm, SERIALS[0], suite=suite) as ports:
        address = f"127.0.0.1:{ports[SERIALS[0]]}"
        realm.rows("factory", "meter", "inject", str(SERIALS[0]), "--address", address)
    (sent,) = realm.rows("factory", "package", "export", str(SERIALS[0]), "--to", "pem-utility")
    held = meter_keys(realm, SERIALS[0])
    assert {len(key) for key in held.values()} == {octets}
    root = realm.folder / "pki" / "root.pem"
    for package, key in ((made["package"], line_key), (sent["file"], utility_key)):
        assert open_package(Path(package), root, key, tmp_path) == {title_of(SERIALS[0]): held}


def test_every_meter_has_keys_of_its_own_and_none_of_those_it_came_with(delivered: Delivered) -> None:
    held = [key for keys in held_by_meters(delivered).values() for key in keys.values()]
    assert len(set(held)) == 4 * len(SERIALS)
    assert not set(held) & set(delivered.realm.initial_keys().values())


def test_another_recipients_key_opens_nothing(delivered: Delivered, tmp_path: Path) -> None:
    with pytest.raises(OpensslError, match="openssl enc"):
        open_package(delivered.delivery, delivered.root, delivered.line_key, tmp_path)


def test_openssl_accepts_every_package_and_receipt(delivered: Delivered) -> None:
    files = delivered.signed_files()
    assert [path.parent.name for path in files] == ["packages"] * 3 + ["receipts"]
    for path in files:
        assert accepts(path, delivered.root), path


def test_openssl_refuses_them_after_one_flipped_octet(delivered: Delivered, tmp_path: Path) -> None:
    altered = tmp_path / "altered.p7m"
    for path in delivered.signed_files():
        signed, content = path.read_bytes(), content_of(path, delivered.root)
        start = signed.index(content)
        positions = [start + part * (len(content) - 1) // 4 for part in range(5)]
        signature = elements(signed)[-1]
        assert signature.kind == "OCTET STRING"
        for position in (*positions, len(signed) - 1, signed.rindex(signature.value) + 8):
            octets = bytearray(signed)
            octets[position] ^= 0x01
            altered.write_bytes(octets)
            assert not accepts(altered, delivered.root), (path, position)
        altered.write_bytes(signed)
        assert accepts(altered, delivered.root)


def test_openssl_refuses_them_under_another_root(delivered: Delivered, realm_template: Realm, tmp_path: Path) -> None:
    intermediates = (realm_template.folder / "pki" / "intermediates.pem").read_text()
    stranger = tmp_path / "stranger.pem"
    stranger.write_text(intermediates.split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")
    for path in delivered.signed_files():
        assert not accepts(path, stranger)
