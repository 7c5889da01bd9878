from __future__ import annotations

from pathlib import Path

import pytest

from hsmkm.config import load_model
from hsmkm.errors import InputError, PolicyError, TokenUnreachableError
from hsmkm.steps import model
from hsmkm.steps.model import choose_suite, import_keys, read_key_file
from hsmkm.store import models
from hsmkm.token.types import KeyRole, MeterRole, SecretRole
from tests.realm import Realm

KEYS = "guek = {0}\ngbek = {0}\ngak = {1}\nmaster = {2}\n".format("00" * 16, "11" * 16, "22" * 16)


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.touch(mode)
    path.write_text(text)
    return path


def copied_model(realm: Realm, name: str) -> None:
    folder = realm.home("factory") / "models"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text('flags = ["MMM"]\n')


def test_models_that_come_with_the_same_keys_share_their_identities_and_so_their_counters(
    realm: Realm, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        copied_model(realm, name)
    with realm.open("factory") as party:
        for name in ("first", "second"):
            import_keys(party, name, 0, key_file(tmp_path, KEYS))
        with party.store.read() as tx:
            first, second = (models.get_keys(tx, name) for name in ("first", "second"))
    assert first is not None
    assert second is not None
    assert [key.identity for key in first.keys if key.role is not KeyRole.GAK] == [
        key.identity for key in second.keys if key.role is not KeyRole.GAK
    ]
    identities = {key.role: key.identity for key in first.keys}
    assert identities[KeyRole.GUEK] == identities[KeyRole.GBEK] != identities[KeyRole.MASTER]


def test_keys_that_the_token_does_not_take_are_wiped_all_the_same(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[MeterRole, bytearray] = {}

    def kept(path: Path, octets: int, secret: tuple[SecretRole, ...]) -> dict[MeterRole, bytearray]:
        values.update(read_key_file(path, octets, secret))
        return values

    def gone(*_: object) -> None:
        raise TokenUnreachableError("removed")

    monkeypatch.setattr(model, "read_key_file", kept)
    copied_model(realm, "first")
    with realm.open("factory") as party:
        monkeypatch.setattr(type(party.vault), "seal", gone)
        with pytest.raises(TokenUnreachableError):
            import_keys(party, "first", 0, key_file(tmp_path, KEYS))
    assert len(values) == 4
    assert not any(map(any, values.values()))


def test_every_wrong_line_of_a_key_file_is_named(tmp_path: Path) -> None:
    path = key_file(tmp_path, "# keys\nguek = 00\ncolour = 11\n\nmaster = " + "22" * 16 + "\nmaster = " + "22" * 16)
    with pytest.raises(InputError) as caught:
        read_key_file(path, 16)
    assert sorted({fault.line for fault in caught.value.faults}) == [0, 2, 3, 6]
    assert "22" * 16 not in repr(caught.value)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="read by others"):
        read_key_file(key_file(tmp_path, KEYS, 0o644), 16)


def test_the_policy_can_forbid_keys_in_clear(realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSMKM_POLICY_IMPORT_KEYS", "false")
    with realm.open("factory") as party, pytest.raises(PolicyError, match="forbids"):
        import_keys(party, "virtual", 0, key_file(tmp_path, KEYS))


def test_the_keys_are_of_the_models_one_suite_unless_it_has_several(realm: Realm) -> None:
    home = realm.home("factory")
    assert [choose_suite(load_model(name, home), None) for name in ("virtual", "virtual-1", "virtual-2")] == [0, 1, 2]
    (home / "models").mkdir()
    (home / "models" / "two.toml").write_text('flags = ["MMM"]\nsuites = [0, 1]\n')
    two = load_model("two", home)
    assert choose_suite(two, 1) == 1
    with pytest.raises(InputError, match="the security suites 0, 1") as caught:
        choose_suite(two, None)
    assert "--suite" in caught.value.hint
