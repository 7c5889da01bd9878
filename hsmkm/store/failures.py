"""What a database says when it cannot, as errors that tell the caller what to do; no value of a row comes along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import exc

from hsmkm.errors import HsmkmError, InputError, RefusedError


class StoreUnavailableError(HsmkmError):
    """The database is locked by another, full, damaged or gone; a change that was begun is not there, or whole."""


_ADVICE = {
    "08": "see whether the server runs and is reached at store.url; then give the command again",
    "25006": "it is a standby: let store.url name the primary",
    "40": "another change was in the way: give the command again",
    "42501": "let the role of store.url own the database, or grant it what is missing",
    "42": "the database is not as hsmkm made it: restore it from a backup",
    "53100": "the disk of the server is full: make room, then give the command again",
    "53": "the server is at its limits: see max_connections and its memory, then give the command again",
    "55P03": "another process holds it: wait for its end, or see pg_stat_activity",
    "57014": "it took too long: see what else the server does, then give the command again",
    "57": "the server is being stopped or started: give the command again when it runs",
    "58": "see the log of the server",
    "XX": "see the log of the server; then hsmkm store check",
}
"""What to do, by SQLSTATE or its class (PostgreSQL, appendix A)."""

_ELSE = "see whether another process holds it, the disk is full, or the server is down"
_UNCONNECTED = (
    "see whether the server runs, has the database (createdb --encoding UTF8 --template template0 NAME), and lets the"
    " role in (pg_hba.conf; its password in PGPASSFILE or a service file)"
)
_BROKEN = "a change that was being committed is there as a whole or not at all; when it runs, give the command again"


@contextmanager
def database_errors() -> Iterator[None]:
    """Name the database's errors from the caller's side: RefusedError, InputError or StoreUnavailableError."""
    try:
        yield
    except exc.IntegrityError as error:
        text = "such a row is there already, or what it refers to is not"
        raise RefusedError(text, [_said(error.orig)]) from error
    except exc.DBAPIError as error:
        raise _named(error) from error
    except exc.PendingRollbackError as error:
        raise StoreUnavailableError("the connection was lost in the midst of a change", hint=_BROKEN) from error
    except exc.TimeoutError as error:
        raise StoreUnavailableError("the store has no connection free", hint="give the command again") from error


def _named(error: exc.DBAPIError) -> HsmkmError:
    state = getattr(error.orig, "sqlstate", "") or ""
    said = _said(error.orig)
    if isinstance(error, exc.DataError):
        return InputError(f"the database does not take a value: {said}", hint="text must be free of the octet zero")
    if error.connection_invalidated:
        return StoreUnavailableError(f"the connection to the store broke: {said}", hint=_BROKEN)
    unconnected = getattr(error.orig, "sqlstate", "") is None
    hint = _UNCONNECTED if unconnected else _ADVICE.get(state) or _ADVICE.get(state[:2]) or _ELSE
    return StoreUnavailableError(f"the store cannot be used: {said}", hint=hint)


def _said(error: Any) -> str:  # noqa: ANN401 - each driver has errors of its own
    """Take the sentence of an error; PostgreSQL's details quote the row, and are left out."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return str(primary or error).strip().partition("\n")[0]
