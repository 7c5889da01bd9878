from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pkcs11 import Attribute

from hsmkm.token import attributes
from hsmkm.token.doctor import examine
from hsmkm.token.session import open_session
from hsmkm.token.template import Template
from hsmkm.token.vault import Vault

if TYPE_CHECKING:
    from hsmkm.token.types import TokenSettings


def test_each_token_with_the_partys_keys_is_sound_and_left_as_it_was(token_settings: TokenSettings) -> None:
    with open_session(token_settings) as session:
        Vault(session).create_keys()
        before = len(session.cryptoki.find(Template({Attribute.TOKEN: True}), 100))
    findings = examine(token_settings)
    assert [finding for finding in findings if not finding.ok] == []
    assert {"guard: readable unwrap", "guard: fixed usage", "exposure: GAK", "agree"} <= {
        each.name for each in findings
    }
    with open_session(token_settings) as session:
        assert len(session.cryptoki.find(Template({Attribute.TOKEN: True}), 100)) == before


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_missing_keys_a_missing_token_and_a_forbidden_kdf_are_findings(token_settings: TokenSettings) -> None:
    assert "party keys" in {finding.name for finding in examine(token_settings) if not finding.ok}
    gone = examine(replace(token_settings, uri="pkcs11:token=other"))
    assert [finding.name for finding in gone if not finding.ok] == ["session"]
    forbidden = examine(replace(token_settings, kdf_on_host=False))
    assert {
        "agree",
        "agree with a meter",
        "exposure: agreed key, packages",
        "exposure: agreed key, key agreement with meters",
    } <= {finding.name for finding in forbidden if not finding.ok}


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_a_storage_key_without_its_guard_is_found(token_settings: TokenSettings) -> None:
    with open_session(token_settings) as session:
        listed = attributes.storage_key(guarded=False) | {Attribute.LABEL: b"storage:1", Attribute.VALUE_LEN: 32}
        session.cryptoki.generate_key(session.profile.mechanisms.aes_key_gen, Template(listed))
        Vault(session).create_keys()
    failed = {finding.name: finding for finding in examine(token_settings) if not finding.ok}
    assert list(failed) == ["guard: readable unwrap"]
    assert "make the storage key anew" in failed["guard: readable unwrap"].hint


@pytest.mark.parametrize("profile_name", ["nss"])
def test_what_nss_does_not_enforce_is_found_and_declared(token_settings: TokenSettings) -> None:
    with open_session(token_settings) as session:
        Vault(session).create_keys()
    found = examine(token_settings)
    findings = {finding.name: finding.detail for finding in found}
    assert {each.name for each in found if each.verdict == "open"} == {
        "guard: readable unwrap",
        "guard: fixed usage of a copy",
        "guard: key in use",
    }
    assert "token's PIN" in findings["exposure: wrapped keys"]
    assert {each.name for each in found if each.verdict == "declared"} == {
        f"exposure: {what}" for what in ("GAK", "LLS password", "dedicated key", "wrapped keys")
    }
    assert "(native)" in findings["agree"]
    assert "(concatenate)" in findings["agree with a meter"]
