from __future__ import annotations

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
