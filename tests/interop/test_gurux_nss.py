"""A factory on NSS softoken and the independent meter: every mechanism, key_transfer and key_agreement."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from hsmkm.link.client import MeterRefusedError
from hsmkm.steps.agree import renew_by_agreement
from hsmkm.steps.communicate import read
from hsmkm.steps.inject import inject
from hsmkm.steps.renew import ALL_KEYS, GLOBAL_KEYS, renew
from hsmkm.token.derivation import Kdf, choose_rung
from tests.field import ENERGY
from tests.interop.conftest import running
from tests.interop.line import options, signing
from tests.interop.station import NEW, build_station, stranger
from tests.mechanisms import TITLE, moved, set_up, under_initial_keys
from tests.realm import KEY_OCTETS, Realm

pytestmark = pytest.mark.slow

StartMeter = Callable[..., int]
READING = 123_456
WORD = "k3y-0f-m"
WAY_BACK = "[key_agreement]\nway_back = true\n"


@pytest.fixture
def nss_realm(realm_on_nss: Callable[..., Realm]) -> Realm:
    """A realm whose factory has NSS softoken for a token."""
    return realm_on_nss("factory")


@pytest.mark.parametrize("mechanism", [3, 4, 5, 6, 7])
def test_each_mechanism_is_proved_with_keys_in_the_token(
    nss_realm: Realm, start_meter: StartMeter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: int
) -> None:
    monkeypatch.setattr("tests.mechanisms.initial_secret", WORD.encode)
    line = set_up(nss_realm, mechanism, 1)
    port = start_meter(*options(line, WORD), *signing(line, tmp_path))
    with nss_realm.open("factory") as party, under_initial_keys(party, f"127.0.0.1:{port}") as client:
        assert client.get(ENERGY).integer() == READING


@pytest.mark.parametrize("suite", [1, 2])
def test_every_key_is_transferred_and_renewed(nss_realm: Realm, gurux_python: Path, suite: int) -> None:
    with ExitStack() as stack:
        station = build_station(nss_realm, lambda *given: stack.enter_context(running(gurux_python, given)), suite)
        port = station.start(NEW)
        with nss_realm.open("factory") as party:
            assert inject(party, NEW, f"127.0.0.1:{port}").state == "active"
            for roles in (GLOBAL_KEYS, ALL_KEYS):
                (outcome,) = renew(party, [NEW], roles, prove_refusal=True)
                assert outcome.state == "active"
                station.agrees(party, NEW)
        held = station.meter_keys(NEW)
        assert {len(key) for key in held.values()} == {KEY_OCTETS[suite]}
        initial = nss_realm.initial_keys(suite)
        with pytest.raises(MeterRefusedError), stranger(port, NEW, initial, suite):
            pass
        with stranger(port, NEW, held, suite):
            pass


def test_a_guek_is_agreed_on_without_a_key_in_host_memory(
    nss_realm: Realm, start_meter: StartMeter, tmp_path: Path
) -> None:
    line = set_up(nss_realm, 5, 1, WAY_BACK)
    port = start_meter(*options(line), *signing(line, tmp_path), "--state", str(tmp_path / "state.json"))
    with nss_realm.open("factory") as party:
        assert not party.settings.policy.kdf_on_host
        assert choose_rung(party.vault, Kdf.SP800) == "concatenate"
        assert inject(party, TITLE, f"127.0.0.1:{port}").state == "active"
        moved(party, f"127.0.0.1:{port}")
        (outcome,) = renew_by_agreement(party, [TITLE])
        assert outcome.state == "active"
        (reading,) = read(party, TITLE, (ENERGY,))
        assert reading.data.value == READING
