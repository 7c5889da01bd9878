"""A store in PostgreSQL: how it is reached, what of the server is asked for, and who may write when.

Writers stand in line at an advisory lock that their transaction takes first and that ends with it; from then on each
statement sees what was committed before (READ COMMITTED), so that nothing has to be tried again. Readers see one
moment (REPEATABLE READ, READ ONLY). A second lock keeps the hosts of one store from raising its anchor at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Dialect, Engine, Table, create_engine, event, exc, func, select, text
from sqlalchemy.pool import ConnectionPoolEntry

from hsmkm.errors import InputError, RefusedError

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

READ_ONLY = "hsmkm_read_only"
"""The option of a connection on which nothing is changed."""

KEPT: Mapping[str, Any] = {"pool_size": 0, "pool_use_lifo": True}
"""As many connections as threads used at once are kept, and those used last taken first: to open one costs most."""

OLDEST = 13
STATEMENT_SECONDS = 600
"""The longest that one statement may take, and the longest that a transaction may do nothing."""

LOCK = "hsmkm_lock"
WRITER = int.from_bytes(b"hsmW", "big")
ANCHOR = int.from_bytes(b"hsmA", "big")
"""The first halves of the advisory locks' keys; the second is the schema in which the tables lie."""

KEY_TABLES = ("key_sets", "group_keys", "models")
_LINKS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "hsmkm",
    "client_encoding": "utf8",
}
"""What libpq is told where the URL says nothing else; a link that is dead is noticed within a minute."""

_ASKED = (
    "SELECT set_config('lock_timeout', %(lock)s, false), set_config('statement_timeout', %(statement)s, false),"
    " set_config('idle_in_transaction_session_timeout', %(statement)s, false),"
    " set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),"
    " current_setting('server_version_num'), current_setting('server_encoding'),"
    " current_setting('synchronous_commit'), current_setting('fsync')"
)
_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()"
)
_TAKE = (
    "SELECT pg_advisory_xact_lock({}, (SELECT oid FROM pg_namespace WHERE nspname = current_schema())::bigint::bit(32)"
    "::int)"
)


def open_server(url: URL, busy_seconds: int) -> Engine:
    """Open a database of a server; a lock is waited for so long. Raises InputError for a URL that cannot be used.

    What the server must be is asked with the first connection: RefusedError.
    """
    if url.password is not None or "password" in url.query:
        hint = "keep it in PGPASSFILE (~/.pgpass) or in a service file (postgresql:///?service=NAME)"
        raise InputError("store.url holds a password", hint=hint)
    known = {name: value for name, value in _LINKS.items() if name not in url.query}
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args=known,
            hide_parameters=True,
            pool_pre_ping=True,
            **KEPT,
        )
    except ImportError as error:
        raise InputError("PostgreSQL needs psycopg", hint="pip install 'hsmkm[postgresql]'") from error

    def prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        _prepare(connection, max(busy_seconds * 1000, 1))

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: DBAPIConnection, lock_milliseconds: int) -> None:
    """Bound what a session waits for, and refuse a server that could lose what it said was durable."""
    cursor = connection.cursor()
    cursor.execute(_ASKED, {"lock": str(lock_milliseconds), "statement": f"{STATEMENT_SECONDS}s"})
    told = cursor.fetchone()
    cursor.close()
    connection.commit()
    reasons = _reasons(*map(str, told[-4:])) if told else []
    if reasons:
        connection.close()
        raise RefusedError("the database server cannot keep a store", reasons, hint="change that at the server")


def _reasons(version: str, encoding: str, synchronous: str, fsync: str) -> list[str]:
    found = []
    if int(version) // 10000 < OLDEST:
        found.append(f"it is PostgreSQL {int(version) // 10000}, and {OLDEST} is the oldest that is used")
    if encoding != "UTF8":
        found.append(f"the encoding of the database is {encoding}, and must be UTF8")
    if synchronous == "off":
        found.append("synchronous_commit is off: what is committed could be lost, and a counter be used twice")
    if fsync == "off":
        found.append("fsync is off: what is committed could be lost, and a counter be used twice")
    return found


def _begin(connection: Connection) -> None:
    """Begin as a reader, or as the one writer; nothing was sent to the server yet."""
    options = connection.get_execution_options()
    reads = options.get(READ_ONLY, False)
    driver: Any = connection.connection.driver_connection
    driver.read_only = reads
    connection.dialect.set_isolation_level(driver, "REPEATABLE READ" if reads else "READ COMMITTED")
    if not reads:
        connection.exec_driver_sql(_TAKE.format(options.get(LOCK, WRITER)))


@contextmanager
def alone_at_anchor(engine: Engine) -> Iterator[None]:
    """Keep every other process of every host from the anchor.

    At the end the server is asked: a connection that broke meanwhile, and the lock with it, is an error then.
    """
    with engine.connect() as plain:
        connection = plain.execution_options(**{LOCK: ANCHOR})
        with connection.begin():
            yield


def copy_rows(connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Load rows with COPY; errors are SQLAlchemy's, as those of any statement."""
    driver: Any = connection.connection.driver_connection
    names = ", ".join(f'"{column}"' for column in columns)
    copying = f'COPY "{table}" ({names}) FROM STDIN'
    with _named_errors(connection.dialect), driver.cursor() as cursor, cursor.copy(copying) as copy:
        for row in rows:
            copy.write_row(row)


@contextmanager
def _named_errors(dialect: Dialect) -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy does those of its own statements."""
    driver: Any = dialect.loaded_dbapi
    try:
        yield
    except driver.Error as error:
        raise exc.DBAPIError.instance("", None, error, driver.Error, hide_parameters=True, dialect=dialect) from error


def settle(connection: Connection, tables: Sequence[str]) -> None:
    """Let text of these tables compare by octets, as in SQLite and whatever the server's locale becomes."""
    query = text(
        "SELECT attrelid::regclass::text AS name, quote_ident(attname) AS part FROM pg_attribute"
        " WHERE attrelid = ANY(ARRAY(SELECT oid FROM pg_class WHERE relname = ANY(:tables)"
        " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())))"
        " AND attnum > 0 AND NOT attisdropped AND atttypid = 'text'::regtype AND attcollation <> '\"C\"'::regcollation"
    )
    for name, part in connection.execute(query, {"tables": list(tables)}).all():
        connection.exec_driver_sql(f'ALTER TABLE {name} ALTER COLUMN {part} TYPE text COLLATE "C"')


def count_on(connection: Connection, tables: Iterable[Table]) -> None:
    """Let each number that a sequence gives go on above those that are there."""
    for table in tables:
        column = table.autoincrement_column
        if column is not None:
            sequence = func.pg_get_serial_sequence(f'"{table.name}"', column.name)
            highest = func.max(column)
            connection.execute(select(func.setval(sequence, highest)).select_from(table).having(highest.is_not(None)))


def sweep(engine: Engine) -> bool:
    """Write the tables of keys anew, without what was deleted; False where another's transaction still sees it.

    The server's log (WAL), its archive and replicas keep older pages for as long as the server is told to.
    """
    raw = engine.raw_connection()
    driver: Any = raw.driver_connection
    try:
        with _named_errors(engine.dialect):
            driver.autocommit = True
            if driver.execute(_OTHERS).fetchone() != (0,):
                return False
            for table in KEY_TABLES:
                driver.execute(f'VACUUM FULL "{table}"')
    except exc.OperationalError:
        return False
    finally:
        raw.invalidate()
        raw.close()
    return True
