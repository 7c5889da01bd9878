"""A party's anchor in its token: raised by several processes at once, and held against a restored database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pkcs11 import Attribute, ObjectClass

from hsmkm.errors import IntegrityError
from hsmkm.steps.party import Party, open_party
from hsmkm.store import counters
from hsmkm.store.anchor import held
from hsmkm.token.template import Template
from hsmkm.token.workers import Worker
from tests.command import failed
from tests.database import keep
from tests.realm import ACTOR, Realm

IDENTITY, CLIENT = bytes(range(16)), b"UTI00004"
BLOCKS = 25


def reserve(party: Party, blocks: int) -> list[tuple[int, int]]:
    """Reserve blocks of a counter, each in a transaction of its own."""
    given = []
    for _ in range(blocks):
        with party.store.count() as tx:
            block = counters.reserve(tx, IDENTITY, CLIENT, 4, None)
        given.append((block.start, block.stop))
    return given


@pytest.mark.slow
def test_three_processes_raise_one_anchor_and_no_value_is_given_twice(realm: Realm) -> None:
    home = realm.home("utility")
    workers = [Worker(open_party, home, ACTOR) for _ in range(3)]
    try:
        with ThreadPoolExecutor(3) as pool:
            given = [block for found in pool.map(lambda one: one.call(reserve, BLOCKS), workers) for block in found]
    finally:
        for worker in workers:
            worker.close()
    values = [value for start, stop in given for value in range(start, stop)]
    assert sorted(values) == list(range(1, 3 * BLOCKS * 4 + 1))
    with realm.open("utility") as party:
        anchored, (content,) = advance(party)
        with party.store.read() as tx:
            state = tx.state()
        assert state is not None
        assert anchored == state.advance
        assert len(content) > 100


def advance(party: Party) -> tuple[int, tuple[bytes, ...]]:
    anchor = party.store.guard.anchor if party.store.guard else None
    assert anchor is not None
    with anchor.exclusive():
        found = held(anchor, party.vault)
        assert found is not None
        return found.advance, anchor.read()


def test_a_restored_database_hands_out_no_counter_and_every_command_says_so(realm: Realm, tmp_path: Path) -> None:
    put_back = keep(realm.url("utility"), tmp_path / "backup.db")
    with realm.open("utility") as party:
        assert reserve(party, 1) == [(1, 5)]
    put_back()
    with pytest.raises(IntegrityError, match="restored or cut short"), realm.open("utility"):
        pass
    failed(realm.cli("utility", "meter", "register", "1", "--concentrator", "concentrator"), 6)
    done = realm.cli("utility", "store", "check")
    assert done.returncode == 6
    assert "its anchor at" in done.stdout


def test_what_a_broken_off_writing_left_in_the_token_is_cleared_by_the_next(realm: Realm) -> None:
    with realm.open("utility") as party:
        before, (content,) = advance(party)
        anchor = party.store.guard.anchor if party.store.guard else None
        assert anchor is not None
        reserve(party, 1)
        newer, (now,) = advance(party)
        leave_behind(party, content)
        assert (newer, advance(party)[0]) == (before + 1, newer)
        assert set(anchor.read()) == {content, now}
        reserve(party, 1)
        assert (advance(party)[0], len(anchor.read())) == (newer + 1, 1)


def leave_behind(party: Party, content: bytes) -> None:
    listed = {Attribute.CLASS: int(ObjectClass.DATA), Attribute.TOKEN: True, Attribute.PRIVATE: True}
    party.session.cryptoki.create(
        Template({**listed, Attribute.LABEL: b"anchor", Attribute.APPLICATION: content.hex().encode()})
    )
