"""Backup and restore: one file, signed in the token, that makes the same home again on an empty host, or nothing."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hsmkm.errors import HsmkmError, InputError, IntegrityError, PolicyError, RefusedError
from hsmkm.packages import archive
from hsmkm.packages.archive import Manifest, Member, open_archive, parse_manifest
from hsmkm.packages.container import sign_content
from hsmkm.packages.strict_json import canonical
from hsmkm.steps import attest
from hsmkm.steps.approve import new_request
from hsmkm.steps.backup import STAGING, archivist, backup, restore
from hsmkm.steps.party import open_inspection, open_party, utc_now
from hsmkm.steps.setup import set_in_file
from hsmkm.store import audit, key_sets, meters
from hsmkm.store.store import Store
from hsmkm.token.types import Sealed, Use
from tests.command import failed
from tests.database import alter, is_file, remove
from tests.officers import certify_officers, register_officers, set_policy
from tests.realm import ACTOR, Realm, copy_realm


@pytest.fixture
def delivered(delivered_template: Realm, tmp_path: Path) -> Realm:
    """A utility with meters, and their package and its receipt."""
    return copy_realm(delivered_template, tmp_path / "realm")


@pytest.fixture(scope="module")
def saved(delivered_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backup of the utility, and its token beside it as its vendor's means brought it back."""
    folder = tmp_path_factory.mktemp("saved")
    realm = copy_realm(delivered_template, folder / "realm")
    with realm.open("utility") as party:
        backup(party, folder / "utility.backup")
    shutil.copytree(realm.home("utility") / "token", folder / "token")
    (folder / "url").write_text(lose_store(realm))
    return folder


def lose_store(realm: Realm) -> str:
    """Have nothing where the utility's store was on a server; its home here goes on with it under another name."""
    url = realm.url("utility")
    if not is_file(url):
        alter(url, "ALTER SCHEMA utility RENAME TO before", "CREATE SCHEMA utility")
        set_in_file(realm.home("utility") / "hsmkm.toml", "store", "url", url.replace("utility", "before"))
    return url


@pytest.fixture
def host(saved: Path, tmp_path: Path) -> Path:
    """An empty host: a home folder with nothing in it but the token."""
    shutil.copytree(saved / "token", tmp_path / "host" / "token")
    url = (saved / "url").read_text()
    if not is_file(url):
        remove(url)
    return tmp_path / "host"


def test_a_home_is_made_again_on_an_empty_host_and_every_key_set_opens(saved: Path, host: Path) -> None:
    done = restore(host, saved / "utility.backup", ACTOR)
    assert (done.party, done.purpose) == ("utility", "backup")
    with open_party(host, ACTOR) as party:
        assert attest.verify_audit(party, ()) == []
        with party.store.read() as tx:
            sets = [found for meter in meters.listing(tx) for found, _ in key_sets.for_meter(tx, meter.system_title)]
        assert len(sets) == 12
        for one in sets:
            for key in one.keys:
                party.vault.open(key.role, Sealed(one.storage_key, key.wrapped), one.suite, Use.TRANSPORT).destroy()
    original = saved / "realm" / "utility"
    for folder in ("certificates", "trust", "receipts"):
        assert _files(host / folder) == _files(original / folder)
    assert not (host / "tls").exists()
    assert not (host / STAGING).exists()
    restored = [path for path in host.rglob("*") if path.is_file() and not path.is_relative_to(host / "token")]
    assert all(path.stat().st_mode & 0o077 == 0 for path in restored)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tar_and_openssl_read_it_and_no_key_is_in_it(saved: Path, tmp_path: Path) -> None:
    path = saved / "utility.backup"
    assert path.stat().st_mode & 0o777 == 0o600
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
    anchors = tmp_path / "trust" / "anchors.pem"
    command = [
        "openssl",
        "cms",
        "-verify",
        "-inform",
        "DER",
        "-in",
        str(tmp_path / "manifest.p7m"),
        "-CAfile",
        str(anchors),
    ]
    verified = subprocess.run([*command, "-purpose", "any", "-binary"], capture_output=True, check=True).stdout
    manifest = parse_manifest(verified)
    assert {one.path: one.sha256 for one in manifest.files} == {
        name: hashlib.sha256(data).digest() for name, data in _files(tmp_path).items() if name != archive.MANIFEST
    }
    realm, whole = Realm(saved / "realm"), path.read_bytes()
    secrets = [value for suite in (0, 1, 2) for value in realm.initial_keys(suite).values()]
    secrets += [(realm.home("utility") / "token" / name).read_bytes().strip() for name in ("pin", "so-pin")]
    secrets.append((realm.home("utility") / "tls" / "key.pem").read_bytes().splitlines()[1])
    for secret in secrets:
        assert secret not in whole
        assert secret.hex().encode() not in whole.lower()


def test_it_is_of_one_moment_while_others_write(delivered: Realm, tmp_path: Path) -> None:
    path, stop, wrote = tmp_path / "online.backup", threading.Event(), threading.Event()
    with delivered.open("utility") as party:
        with party.store.read() as tx:
            titles = [meter.system_title for meter in meters.listing(tx)]

        def write() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                with party.store.begin("test-move", "all", {"turn": turn}) as tx:
                    for title in titles:
                        meters.update(tx, replace(meters.require(tx, title), address=f"127.0.0.1:{turn}"))
                wrote.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert wrote.wait(60)
            for number in range(5):
                party.store.copy_to(tmp_path / f"{number}.db")
        finally:
            stop.set()
            writer.join()
        backup(party, path)
    for number in range(5):
        with Store.open(f"sqlite:{tmp_path / f'{number}.db'}", None, "") as store, store.read() as tx:
            assert len({meter.address for meter in meters.listing(tx)}) == 1
            assert audit.verify(tx) == []


def cut(data: bytes) -> bytes:
    return data[:-512]


def added(data: bytes) -> bytes:
    return data + bytes(512)


def swapped(data: bytes) -> bytes:
    return data.replace(b"trust/anchors.pem", b"trust/anchorz.pem")


@pytest.mark.parametrize("change", [cut, added, swapped])
def test_what_was_cut_or_added_is_refused_and_nothing_is_restored(
    saved: Path, host: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "bad.backup"
    path.write_bytes(change((saved / "utility.backup").read_bytes()))
    with pytest.raises((InputError, IntegrityError)):
        restore(host, path, ACTOR)
    assert [one.name for one in host.iterdir()] == ["token"]


def test_any_octet_that_was_altered_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = (saved / "utility.backup").read_bytes()
    path = tmp_path / "bad.backup"
    places = {0, 124, 150, 600, 1500, 5000, len(whole) - 1, len(whole) - 1024, *range(99, len(whole), len(whole) // 60)}
    with open_archive(saved / "utility.backup") as opened:
        at = 512 + len(whole[512 : 512 + int(whole[124:135], 8)])
        for one in opened.manifest.files:
            at += -at % 512
            places |= {at + 3, at + 130, at + 512 + one.octets // 2, at + 512 + one.octets}
            at += 512 + one.octets
    for number, place in enumerate(sorted(place for place in places if place < len(whole))):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises((InputError, IntegrityError)), open_archive(path) as opened:
            opened.extract(tmp_path / f"out-{number}")
        shutil.rmtree(tmp_path / f"out-{number}", ignore_errors=True)


@pytest.mark.parametrize(
    "path",
    [
        "../store.db",
        "/etc/passwd",
        "trust/../token/pin",
        "trust/../../x",
        "token/pin",
        "tls/key.pem",
        "packages/.hidden",
        "packages/a/b",
        "trust\\x",
        "certificates/",
        "other.db",
        "packages/a\x00b",
        "packages/" + "a" * 101,
    ],
)
def test_a_path_that_leads_out_of_a_home_is_refused_even_when_it_is_signed(
    saved: Path, host: Path, tmp_path: Path, path: str
) -> None:
    with open_archive(saved / "utility.backup") as opened:
        manifest = opened.manifest
    with pytest.raises(InputError):
        replace(manifest, files=(*manifest.files, Member(path, 1, bytes(32)))).encode()
    data = manifest.encode().replace(b'"trust/anchors.pem"', canonical(path))
    forged = tmp_path / "forged.backup"
    with open_party(_copy(saved, tmp_path / "signing"), ACTOR) as party:
        signer = archivist(party)
        signed = sign_content(data, signer.signer, signer.certificate, signer.chain, utc_now())
    plain = archive._header(archive.MANIFEST, len(signed)) + signed + archive._padding(len(signed))
    forged.write_bytes(plain + bytes(1024))
    with pytest.raises(InputError, match=r"faults of form|not printable|JSON"):
        restore(host, forged, ACTOR)
    assert [one.name for one in host.iterdir()] == ["token"]


def _copy(saved: Path, folder: Path) -> Path:
    shutil.copytree(saved / "realm" / "utility", folder)
    return folder


@pytest.mark.parametrize("at", ["certificates", "receipts", "hsmkm.toml"])
def test_a_restore_that_ended_early_leaves_no_home_and_goes_from_the_start(
    saved: Path, host: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def dying(self: Path, target: Path) -> Path:
        if self.name == at:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            restore(host, saved / "utility.backup", ACTOR)
    assert not (host / "hsmkm.toml").exists()
    restore(host, saved / "utility.backup", ACTOR)
    with open_party(host, ACTOR) as party:
        assert attest.check_store(party) == []


def test_a_backup_that_is_older_than_the_anchor_is_restored_and_refused(delivered: Realm, tmp_path: Path) -> None:
    with delivered.open("utility") as party:
        backup(party, tmp_path / "older.backup")
        with party.store.begin("test-later", "something", {}):
            pass
    lose_store(delivered)
    shutil.copytree(delivered.home("utility") / "token", tmp_path / "host" / "token")
    restore(tmp_path / "host", tmp_path / "older.backup", ACTOR)
    with pytest.raises(IntegrityError) as raised, open_party(tmp_path / "host", ACTOR):
        pass
    assert "hsmkm store recover" in raised.value.hint


def test_a_listed_restore_takes_the_approval_of_a_restored_officer(delivered: Realm, tmp_path: Path) -> None:
    people = certify_officers(delivered, "alice")
    register_officers(delivered, "utility", people)
    set_policy(delivered, "utility", four_eyes='["store-restore"]')
    path, host = tmp_path / "u.backup", tmp_path / "host"
    with delivered.open("utility") as party:
        backup(party, path)
    lose_store(delivered)
    shutil.copytree(delivered.home("utility") / "token", host / "token")
    with pytest.raises(PolicyError, match="needs the approval of a second officer") as raised:
        restore(host, path, ACTOR)
    assert [one.name for one in host.iterdir()] == ["token"]
    wanted = json.loads(shlex.split(raised.value.hint)[-1])
    with delivered.open("utility") as party:
        request = new_request(party.settings, ACTOR, "store-restore", "utility", wanted)
    (tmp_path / "signed.p7m").write_bytes(people["alice"].sign(request))
    restore(host, path, ACTOR, str(tmp_path / "signed.p7m"))
    with open_inspection(host, ACTOR) as party:
        with party.store.read() as tx:
            assert [item.action for item in audit.log(tx, limit=1000)][-1] == "store-restore"
        assert attest.check_store(party) == []


def test_a_home_is_not_overwritten(saved: Path, tmp_path: Path) -> None:
    home = _copy(saved, tmp_path / "home")
    before = _files(home)
    with pytest.raises(RefusedError, match="is not empty"):
        restore(home, saved / "utility.backup", ACTOR)
    assert _files(home) == before


def test_another_token_than_the_one_that_signed_it_is_refused(saved: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    shutil.copytree(Realm(saved / "realm").home("concentrator") / "token", host / "token")
    with pytest.raises(HsmkmError, match=r"no token matches|not signed by this token"):
        restore(host, saved / "utility.backup", ACTOR)
    assert [one.name for one in host.iterdir()] == ["token"]


def test_a_backup_replaces_no_file(delivered: Realm, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with delivered.open("utility") as party, pytest.raises(RefusedError, match="exists"):
        backup(party, tmp_path / "there")


def test_the_manifest_says_the_same_in_one_way() -> None:
    with pytest.raises(InputError, match="faults of form") as raised:
        parse_manifest(b'{"format":"hsmkm-backup/2","files":[{"path":"store.db","octets":-1,"sha256":"00"}]}')
    assert len(raised.value.faults) > 5
    assert Manifest.__dataclass_fields__.keys() >= {"purpose", "files"}


def test_the_commands_write_it_and_make_a_home_of_it(delivered: Realm, tmp_path: Path) -> None:
    path, host = tmp_path / "u.backup", tmp_path / "realm" / "host"
    (row,) = delivered.rows("utility", "store", "backup", str(path))
    lose_store(delivered)
    assert row["party"] == "utility"
    failed(delivered.cli("utility", "store", "restore", str(path)), 1)
    shutil.copytree(delivered.home("utility") / "token", host / "token")
    (again,) = delivered.rows("host", "store", "restore", str(path))
    assert (again["files"], again["audit"]) == (row["files"], row["audit"])
    assert delivered.rows("host", "store", "check") == []
