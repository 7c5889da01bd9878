"""What an anchor outside the database shows: a database that was restored, cut short, exchanged, or lost its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import counters, meters, parties
from hsmkm.store.anchor import Anchored, FileAnchor, held
from hsmkm.store.guard import Opening
from hsmkm.store.store import Store
from tests.database import alter, keep, remove

if TYPE_CHECKING:
    from tests.store.conftest import Factory, SoftwareAuthenticator

IDENTITY, CLIENT = bytes(16), b"UTI00004"


class CountedAnchor(FileAnchor):
    """A file, and how often it was written."""

    written = 0

    def write(self, content: bytes) -> None:
        self.written += 1
        super().write(content)


@pytest.fixture
def anchor(tmp_path: Path) -> CountedAnchor:
    return CountedAnchor(tmp_path / "elsewhere" / "anchor")


@pytest.fixture
def opened(url: str, authenticator: SoftwareAuthenticator, anchor: CountedAnchor) -> Callable[..., Store]:
    def make(opening: Opening = Opening.USE) -> Store:
        return Store.open(url, authenticator, "tester", anchor=anchor, opening=opening)

    return make


@pytest.fixture
def kept(url: str, tmp_path: Path) -> Callable[[str], Callable[[], None]]:
    """Keep a copy of the database, and give what puts it back."""
    return lambda name: keep(url, tmp_path / name)


def note(store: Store, *subjects: str) -> None:
    for subject in subjects:
        with store.begin("note", subject, {}):
            pass


def test_every_change_raises_the_anchor_once_and_reading_never(
    opened: Callable[..., Store], anchor: CountedAnchor, authenticator: SoftwareAuthenticator, factory: Factory
) -> None:
    with opened() as store:
        with store.begin("meters", "x", {}) as tx:
            meters.add_many(tx, [factory.meter(number) for number in range(1, 50)])
        with store.count() as tx:
            counters.reserve(tx, IDENTITY, CLIENT, 16, None)
            counters.reserve(tx, bytes(15) + b"\1", CLIENT, 16, None)
        assert anchor.written == 2
        with store.read() as tx, anchor.exclusive():
            found, state = held(anchor, authenticator), tx.state()
            assert state is not None
            assert found == Anchored.of(state)
        with store.count():
            pass
    assert anchor.written == 2
    with opened():
        assert anchor.written == 2


def test_a_restored_database_is_refused_at_opening(
    opened: Callable[..., Store], kept: Callable[[str], Callable[[], None]]
) -> None:
    with opened() as store:
        note(store, "a")
    put_back = kept("backup")
    with opened() as store, store.count() as tx:
        counters.reserve(tx, IDENTITY, CLIENT, 16, None)
    put_back()
    with pytest.raises(IntegrityError, match="it is at 1, and its anchor at 2") as refused:
        opened()
    assert "hsmkm store recover" in refused.value.hint


def test_a_database_restored_under_a_running_process_is_refused_at_its_next_change(
    opened: Callable[..., Store], kept: Callable[[str], Callable[[], None]]
) -> None:
    with opened() as store:
        note(store, "a")
        put_back = kept("backup")
        note(store, "b")
        store.close()
        put_back()
        with pytest.raises(IntegrityError, match="cut short meanwhile: from 2 to 1"):
            note(store, "c")


def test_a_database_restored_behind_another_process_is_refused_before_anything_of_it_is_used(
    opened: Callable[..., Store], kept: Callable[[str], Callable[[], None]]
) -> None:
    with opened() as store:
        note(store, "a")
        put_back = kept("backup")
        with opened() as other:
            note(other, "b", "c", "d")
        store.close()
        put_back()
        with pytest.raises(IntegrityError, match="it is at 2, and its anchor at 4"), store.count() as tx:
            counters.reserve(tx, IDENTITY, CLIENT, 16, None)


def test_two_databases_that_parted_are_not_both_taken(
    opened: Callable[..., Store],
    kept: Callable[[str], Callable[[], None]],
    url: str,
    authenticator: SoftwareAuthenticator,
) -> None:
    with opened() as store:
        note(store, "a")
    put_back = kept("backup")
    with opened() as store:
        note(store, "b")
    put_back()
    with Store.open(url, authenticator, "without the anchor") as store:
        note(store, "another b")
    with pytest.raises(IntegrityError, match="the two parted"):
        opened()


def test_a_crash_between_commit_and_anchor_is_taken_and_made_good(
    opened: Callable[..., Store], url: str, authenticator: SoftwareAuthenticator, anchor: CountedAnchor
) -> None:
    with opened() as store:
        note(store, "a")
    with Store.open(url, authenticator, "dies before it raises the anchor") as store:
        note(store, "b")
    written = anchor.written
    with opened() as store:
        assert anchor.written == written + 1
        note(store, "c")
    with anchor.exclusive():
        found = held(anchor, authenticator)
    assert found is not None
    assert found.advance == 3


def test_a_new_database_in_place_of_the_old_one_is_refused(opened: Callable[..., Store], url: str) -> None:
    with opened() as store:
        note(store, "a")
    remove(url)
    Store.create(url)
    with pytest.raises(IntegrityError, match="no state, and its anchor knows one"):
        opened()


@pytest.mark.parametrize("change", ["DELETE FROM store_state", "UPDATE store_state SET advance = advance + 9"])
def test_a_state_that_is_gone_or_was_altered_is_refused(opened: Callable[..., Store], url: str, change: str) -> None:
    with opened() as store:
        note(store, "a")
    alter(url, change)
    with pytest.raises(IntegrityError):
        opened()


def test_a_store_without_anchor_that_lost_its_state_is_not_sealed_anew_by_use(
    store: Store, url: str, authenticator: SoftwareAuthenticator
) -> None:
    note(store, "a")
    alter(url, "DELETE FROM store_state")
    with pytest.raises(IntegrityError, match="lost its state"):
        note(store, "b")
    with pytest.raises(RefusedError, match="must be upgraded with the token"):
        Store.open(url, authenticator, "tester")


def test_an_anchor_that_is_gone_altered_or_of_another_key_is_refused(
    opened: Callable[..., Store], tmp_path: Path
) -> None:
    with opened() as store:
        note(store, "a", "b")
    path = tmp_path / "elsewhere" / "anchor"
    content = path.read_bytes()
    for place in (0, 20, 40, 60, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(IntegrityError, match="anchor"):
            opened()
    path.write_bytes(content[:-1])
    with pytest.raises(IntegrityError, match="is not one"):
        opened()
    path.unlink()
    with pytest.raises(IntegrityError, match="anchor is gone"):
        opened()
    path.write_bytes(content)
    with opened() as store:
        note(store, "c")


def test_a_row_that_came_back_from_an_earlier_time_is_refused_at_opening(
    opened: Callable[..., Store], url: str
) -> None:
    """Its MAC fits: only the sums of the tables show it."""
    with opened() as store, store.count() as tx:
        counters.reserve(tx, IDENTITY, CLIENT, 16, None)
    with kept_rows(url, "counters"), opened() as store, store.count() as tx:
        counters.reserve(tx, IDENTITY, CLIENT, 16, None)
    with pytest.raises(IntegrityError, match="counters: it has rows of an earlier time"):
        opened()
    with opened(Opening.INSPECTION) as store:
        with store.read() as tx:
            assert counters.current(tx, IDENTITY, CLIENT) == counters.Counter(17)
        with pytest.raises(PolicyError, match="open for a check only"):
            note(store, "x")


def test_a_row_that_was_deleted_or_put_back_is_refused_at_opening(opened: Callable[..., Store], url: str) -> None:
    with opened() as store, store.begin("party add", "x", {}) as tx:
        parties.add(tx, parties.Party("one", "line", b"LIN00001"))
        parties.add(tx, parties.Party("two", "line", b"LIN00002"))
    with kept_rows(url, "parties"):
        alter(url, "DELETE FROM parties WHERE name = 'two'")
        with pytest.raises(IntegrityError, match=r"parties: it has 1 row\(s\), and 2 were written"):
            opened()
    opened().close()


@contextmanager
def kept_rows(url: str, table: str) -> Iterator[None]:
    """Put the rows of a table back as they were, with the MACs that they had."""
    alter(url, f"CREATE TABLE kept AS SELECT * FROM {table}")  # noqa: S608 - a test
    yield
    alter(url, f"DELETE FROM {table}", f"INSERT INTO {table} SELECT * FROM kept", "DROP TABLE kept")  # noqa: S608 - as above
