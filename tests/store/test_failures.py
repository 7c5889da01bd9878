from __future__ import annotations

from pathlib import Path

import pytest

from hsmkm.store import engine
from hsmkm.store.failures import StoreUnavailableError, database_errors


def test_a_connection_that_is_lost_in_the_midst_of_a_change_is_told_as_a_store_that_is_gone(url: str) -> None:
    """The next of the blocks that share a transaction finds that it has to be rolled back."""
    opened = engine.open_engine(url)
    with opened.connect() as connection:
        connection.begin()
        connection.invalidate()
        with pytest.raises(StoreUnavailableError, match="in the midst of a change"), database_errors():
            connection.exec_driver_sql("SAVEPOINT block")
    opened.dispose()


def test_a_file_that_was_taken_away_or_replaced_is_a_store_that_is_gone(tmp_path: Path) -> None:
    """SQLite itself would go on in the file that nobody can open any more."""
    path, away = tmp_path / "store.db", tmp_path / "away"
    opened = engine.open_engine(f"sqlite:{path}", create=True)
    with opened.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE one (number INTEGER)")

    def used() -> int:
        with opened.begin() as connection:
            return connection.exec_driver_sql("INSERT INTO one VALUES (1)").rowcount

    path.rename(away)
    with pytest.raises(StoreUnavailableError, match="is gone"):
        used()
    with opened.connect(), pytest.raises(StoreUnavailableError, match="is gone"), opened.connect() as another:
        another.begin()
    assert not path.exists()
    path.write_bytes(away.read_bytes())
    with pytest.raises(StoreUnavailableError, match="or another one"):
        used()
    path.unlink()
    away.rename(path)
    assert used() == 1
    opened.dispose()
