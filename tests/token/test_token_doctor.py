from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pkcs11 import Attribute

from hsmkm.token import attributes
from hsmkm.token.doctor import examine
from hsmkm.token.session import open_session
from hsmkm.token.template import Template
from hsmkm.token.vault import Vault

if TYPE_CHECKING:
    from hsmkm.token.types import TokenSettings


def test_softhsm_with_the_partys_keys_is_sound_and_left_as_it_was(token_settings: TokenSettings) -> None:
    with open_session(token_settings) as session:
        Vault(session).create_keys()
        before = len(session.cryptoki.find(Template({}), 100))
    findings = examine(token_settings)
    assert [finding for finding in findings if not finding.ok] == []
    assert {"guard: readable unwrap", "guard: fixed usage", "exposure: GAK", "agree"} <= {
        each.name for each in findings
    }
    with open_session(token_settings) as session:
        assert len(session.cryptoki.find(Template({}), 100)) == before


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


def test_a_storage_key_without_its_guard_is_found(token_settings: TokenSettings) -> None:
    with open_session(token_settings) as session:
        listed = attributes.storage_key(guarded=False) | {Attribute.LABEL: b"storage:1", Attribute.VALUE_LEN: 32}
        session.cryptoki.generate_key(session.profile.mechanisms.aes_key_gen, Template(listed))
        Vault(session).create_keys()
    failed = {finding.name: finding for finding in examine(token_settings) if not finding.ok}
    assert list(failed) == ["guard: readable unwrap"]
    assert "make the storage key anew" in failed["guard: readable unwrap"].hint
