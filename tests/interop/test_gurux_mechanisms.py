"""Mechanisms through the steps, with every secret and key in the token, against the independent meter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hsmkm.link.client import MeterRefusedError
from tests.field import ENERGY
from tests.interop.line import options, signing
from tests.mechanisms import set_up, under_initial_keys
from tests.realm import Realm

pytestmark = pytest.mark.slow

StartMeter = Callable[..., int]
WORD = "k3y-0f-m"


def reads(realm: Realm, port: int) -> int:
    with realm.open("factory") as party, under_initial_keys(party, f"127.0.0.1:{port}") as client:
        return client.get(ENERGY).integer()


@pytest.fixture(autouse=True)
def _secret_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's meters come with a secret that can be written on a command line."""
    monkeypatch.setattr("tests.mechanisms.initial_secret", WORD.encode)


@pytest.mark.parametrize("suite", [0, 1, 2])
@pytest.mark.parametrize("mechanism", [3, 4, 6])
def test_a_secret_in_the_token_proves_us_and_the_meter(
    realm: Realm, start_meter: StartMeter, mechanism: int, suite: int
) -> None:
    line = set_up(realm, mechanism, suite)
    assert reads(realm, start_meter(*options(line, WORD))) == 123_456


@pytest.mark.parametrize("mechanism", [3, 4, 6])
def test_a_meter_with_another_secret_refuses(realm: Realm, start_meter: StartMeter, mechanism: int) -> None:
    line = set_up(realm, mechanism, 0)
    port = start_meter(*options(line, WORD.upper()))
    with pytest.raises(MeterRefusedError):
        reads(realm, port)


def test_a_signing_key_in_the_token_proves_us_and_a_certificate_the_meter(
    realm: Realm, start_meter: StartMeter, tmp_path: Path
) -> None:
    line = set_up(realm, 7, 1)
    assert reads(realm, start_meter(*options(line), *signing(line, tmp_path))) == 123_456
