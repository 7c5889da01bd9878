from __future__ import annotations

import pytest

from hsmkm.dlms.protection import EVERYTHING, UNPROTECTED, Protection, SecurityPolicy
from hsmkm.errors import ProtocolError

BOTH = Protection.CIPHERED


@pytest.mark.parametrize(
    ("version", "value", "request_", "response"),
    [
        (0, 0, Protection.NONE, Protection.NONE),
        (0, 1, Protection.AUTHENTICATED, Protection.AUTHENTICATED),
        (0, 2, Protection.ENCRYPTED, Protection.ENCRYPTED),
        (0, 3, BOTH, BOTH),
        (1, 0x04, Protection.AUTHENTICATED, Protection.NONE),
        (1, 0x08, Protection.ENCRYPTED, Protection.NONE),
        (1, 0x10, Protection.SIGNED, Protection.NONE),
        (1, 0x20, Protection.NONE, Protection.AUTHENTICATED),
        (1, 0x40, Protection.NONE, Protection.ENCRYPTED),
        (1, 0x80, Protection.NONE, Protection.SIGNED),
        (1, 0x6C, BOTH, BOTH),
        (1, 0xFC, BOTH | Protection.SIGNED, BOTH | Protection.SIGNED),
    ],
)
def test_both_forms_of_the_attribute(version: int, value: int, request_: Protection, response: Protection) -> None:
    policy = SecurityPolicy.parse(version, value)
    assert policy == SecurityPolicy(request_, response)
    assert policy.value(version) == value


@pytest.mark.parametrize(("version", "value"), [(0, 4), (0, 255), (1, 1), (1, 2), (1, 0x100), (1, -1), (0, -1)])
def test_other_values_are_refused(version: int, value: int) -> None:
    with pytest.raises(ProtocolError):
        SecurityPolicy.parse(version, value)


def test_version_0_knows_neither_signatures_nor_directions() -> None:
    for policy in (EVERYTHING, SecurityPolicy(BOTH, Protection.NONE)):
        with pytest.raises(ProtocolError):
            policy.value(0)


def test_a_policy_is_stronger_if_it_demands_all_that_the_other_does() -> None:
    assert EVERYTHING.strengthens(SecurityPolicy())
    assert SecurityPolicy().strengthens(SecurityPolicy())
    assert not SecurityPolicy().strengthens(EVERYTHING)
    assert not SecurityPolicy(BOTH, Protection.NONE).strengthens(SecurityPolicy(Protection.NONE, BOTH))
    assert SecurityPolicy().strengthens(UNPROTECTED)
