"""`package import`, `meter provision` and their kin as a person sees them: every reason, an exit code, nothing done."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from hsmkm.steps.party import utc_now
from tests.command import failed, results
from tests.forge import certified, everything, forge
from tests.realm import Realm, title_of


def write(realm: Realm, data: bytes) -> str:
    path = realm.folder / "package.p7m"
    path.write_bytes(data)
    return str(path)


def delivery(realm: Realm, to: str = "utility", *titles: str, **header: object) -> bytes:
    with realm.open("factory") as party:
        return forge(party, certified(realm, to), *(titles or (title_of(1),)), header=header).data


def test_a_package_is_imported_and_given_again_tells_so(realm: Realm) -> None:
    path = write(realm, delivery(realm))
    first = results(realm.cli("utility", "package", "import", path))
    again = realm.cli("utility", "package", "import", path)
    assert results(again) == first
    assert again.stderr == "this package was taken before; its first receipt is given again\n"
    assert Path(first[0]["receipt"]).is_file()


def test_a_bad_package_is_refused_with_a_line_for_every_reason(realm: Realm) -> None:
    begin = utc_now() - timedelta(days=3)
    title = b"XYZ".hex().upper() + "0000000001"
    data = delivery(realm, "concentrator", title, created=begin, expires=begin + timedelta(days=1))
    before = everything(realm, "utility")
    error, reasons = failed(realm.cli("utility", "package", "import", write(realm, data)), 1)
    assert set(reasons) == {
        "the package has expired",
        "the package is for another recipient",
        "the package key was wrapped for another certificate than ours",
        "the sender may not speak for meters of 'XYZ'",
    }
    assert error.endswith("is refused")
    assert everything(realm, "utility") == before


@pytest.mark.slow
def test_a_package_whose_content_was_altered_is_exit_code_6_and_one_cut_short_1(realm: Realm) -> None:
    data = delivery(realm)
    place = data.index(b'"serial"') + 10
    altered = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    before = everything(realm, "utility")
    for octets, code in ((altered, 6), (data[:-10], 1), (data + b"\0", 1), (b"", 1)):
        for verb in ("import", "inspect"):
            failed(realm.cli("utility", "package", verb, write(realm, octets)), code)
    assert everything(realm, "utility") == before
    failed(realm.cli("utility", "package", "import", str(realm.folder / "none.p7m")), 1)


def test_a_receipt_that_fits_nothing_is_refused(realm: Realm) -> None:
    path = write(realm, delivery(realm))
    receipt = results(realm.cli("utility", "package", "import", path))[0]["receipt"]
    error, _ = failed(realm.cli("factory", "package", "receipt", "--from-file", receipt), 1)
    assert "which was not sent from here" in error
    failed(realm.cli("factory", "package", "receipt", "--from-file", path), 1)
    failed(realm.cli("utility", "package", "receipt", "no-such-id"), 1)


ORDER = """\
flag,serial,model,suite
MMM,1,virtual,0
MM,2,virtual,0
MMM,1.23457E+11,virtual,0
MMM,1,virtual,0
MMM,4,paper,3
MMM,5
"""


def test_every_fault_of_an_order_is_listed_with_its_place_and_nothing_is_provisioned(realm: Realm) -> None:
    path = realm.folder / "order.csv"
    path.write_text(ORDER)
    before = everything(realm, "factory")
    error, faults = failed(realm.cli("factory", "meter", "provision", str(path), "--line", "line"), 1)
    assert error == "order order.csv has 6 fault(s), nothing was provisioned"
    assert [fault.partition(": ")[0] for fault in faults] == [
        "order.csv:3:1",
        "order.csv:4:2",
        "order.csv:5:2",
        "order.csv:6:3",
        "order.csv:6:4",
        "order.csv:7",
    ]
    assert everything(realm, "factory") == before
    assert not list(realm.home("factory").glob("packages/*"))


def test_an_order_is_provisioned_once_and_its_meters_belong_to_it(realm: Realm) -> None:
    order = str(realm.order(1, 2))
    (made,) = results(realm.cli("factory", "meter", "provision", order, "--line", "line"))
    before = everything(realm, "factory")
    again = realm.cli("factory", "meter", "provision", order, "--line", "line")
    assert (results(again), again.returncode) == ([], 0)
    assert again.stderr == "this order was provisioned before; nothing was done\n"
    second = str(realm.order(3, 2, name="second.csv"))
    _, faults = failed(realm.cli("factory", "meter", "provision", second, "--line", "line"), 1)
    assert faults == [f"second.csv:3:2: {title_of(2)} was provisioned by another order"]
    assert everything(realm, "factory") == before
    assert list(realm.home("factory").glob("packages/*.p7m")) == [Path(made["package"])]


def test_meters_are_exported_by_a_list(realm: Realm) -> None:
    realm.rows("factory", "meter", "provision", str(realm.order(1, 2, 3)), "--line", "line")
    path = realm.folder / "meters"
    path.write_text(f"1\n\n{title_of(2)}\n1\n")
    (sent,) = realm.rows("factory", "package", "export", "--list", str(path), "--to", "utility")
    assert (sent["meters"], sent["to"]) == (2, "utility")


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("utility", ("meter", "list", "--after", "zz"), 1),
        ("utility", ("meter", "list", "--order", "00" * 32), 1),
        ("utility", ("meter", "show", "999"), 1),
        ("utility", ("key", "holders", "999"), 1),
        ("utility", ("key", "holders", "00" * 16), 1),
        ("utility", ("meter", "read", "999", "1.0.1.8.0.999"), 1),
        ("utility", ("meter", "register"), 1),
        ("utility", ("renew", "--keys", "guek,colour", "1"), 1),
        ("utility", ("renew", "--list", "/no/such/list"), 1),
        ("utility", ("package", "export", "1", "--to", "concentrator", "--purpose", "gift"), 1),
        ("utility", ("party", "add", "x", "--role", "king", "--certificates", "."), 1),
        ("utility", ("party", "add", "x", "--role", "utility", "--certificates", "/no/such/folder"), 1),
        ("utility", ("pki", "update", "/no/such/folder"), 1),
        ("utility", ("pki", "trust", "/no/such/file"), 1),
        ("authority", ("pki", "revoke", "/no/such/file"), 1),
        ("authority", ("pki", "publish", "--out", "/proc/no-such-folder"), 1),
        ("utility", ("audit", "checkpoint", "--out", "/proc/no-such-folder/checkpoint"), 1),
        ("utility", ("audit", "verify", "--checkpoint", "/no/such/file"), 1),
        ("factory", ("meter", "provision", "/no/such/order", "--line", "line"), 1),
        ("factory", ("model", "show", "../virtual"), 1),
        ("factory", ("model", "import-keys", "virtual", "--keys", "/no/such/file"), 1),
        ("concentrator", ("concentrator", "run"), 1),
        ("utility", ("simulate", "meter", "/no/such/state"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_done_is_two_lines_and_changes_nothing(
    realm: Realm, name: str, arguments: tuple[str, ...], code: int
) -> None:
    before = everything(realm, name)
    failed(realm.cli(name, *arguments), code)
    assert everything(realm, name) == before


def test_a_certificate_is_revoked_by_the_file_that_issuing_wrote(realm: Realm) -> None:
    path = str(realm.folder / "certificates" / "line" / "tls.pem")
    (row,) = realm.rows("authority", "pki", "revoke", path)
    assert row["profile"] == "revoked"
    failed(realm.cli("authority", "pki", "revoke", path), 1)
    failed(realm.cli("authority", "pki", "revoke", path, "--reason", "mood"), 1)
