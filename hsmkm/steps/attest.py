"""Checks the store against its MACs and the audit chain, and signs checkpoints of the chain."""

from __future__ import annotations

import json
from pathlib import Path

from hsmkm.config import Settings
from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, RefusedError
from hsmkm.packages.container import open_container, sign_content
from hsmkm.packages.strict_json import parse
from hsmkm.steps import records
from hsmkm.steps.certify import trust_of
from hsmkm.steps.deliver import signatory
from hsmkm.steps.party import Party, anchor_of, token_settings, utc_now
from hsmkm.steps.records import is_own
from hsmkm.store import audit, sealing, state
from hsmkm.store.check import check
from hsmkm.store.problem import Problem
from hsmkm.store.store import Store
from hsmkm.token.session import open_session
from hsmkm.token.vault import Vault

MAX_CHECKPOINT = 1 << 20


def check_store(party: Party) -> list[Problem]:
    """Name every row that is not as it was written, and what the anchor has against the store."""
    with party.store.read() as tx:
        return [*_against_anchor(party), *check(tx)]


def _against_anchor(party: Party) -> list[Problem]:
    guard = party.store.guard
    text = guard.contradiction() if guard else ""
    return [Problem(state.NAME, "anchor", text)] if text else []


def verify_audit(party: Party, checkpoints: tuple[Path, ...]) -> list[Problem]:
    """Name the first audit record that does not fit, checkpoints and signed records, and rows whose MAC does not."""
    with party.store.read() as tx:
        problems = audit.verify(tx)
        for path in checkpoints:
            problems += audit.matches_checkpoint(tx, _checkpoint(party, path))
        problems += [*_against_anchor(party), *check(tx)]
    return [*problems, *records.problems(party)]


def _checkpoint(party: Party, path: Path) -> bytes:
    """Read a checkpoint that this party signed, with its certificate of then; RefusedError for anybody else's."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CHECKPOINT + 1)
    except OSError as error:
        hint = "give the path of a checkpoint that hsmkm audit checkpoint wrote"
        raise InputError(f"cannot read checkpoint {path}: {error.strerror}", hint=hint) from error
    signed = open_container(data)
    trust = trust_of(party)
    trust.check(signed.signer, signed.chain, "package-signing", utc_now(), signed=signed.signed_at)
    if stray := trust.stray(signed.signer, signed.chain):
        raise RefusedError(f"checkpoint {path} was altered on its way", stray)
    if not is_own(party, signed.signer):
        raise RefusedError(f"checkpoint {path} was signed by another party")
    if not _is_checkpoint(signed.content):
        raise InputError(f"{path} is signed, and is no checkpoint", hint="give what hsmkm audit checkpoint wrote")
    return signed.content


def _is_checkpoint(content: bytes) -> bool:
    """Whether it has the members of a checkpoint: the same key signs packages and receipts too."""
    said = parse(content, MAX_CHECKPOINT, "the checkpoint")
    kinds = {"epoch": int, "hash": str, "sequence": int, "time": str}
    return isinstance(said, dict) and {name: type(value) for name, value in said.items()} == kinds


def checkpoint(party: Party, path: Path) -> int:
    """Sign the newest record of the audit chain and write it to a file kept elsewhere; gives its sequence."""
    with party.store.read() as tx:
        content = audit.checkpoint_content(tx)
    signer = signatory(party)
    replace_file(path, sign_content(content, signer.signer, signer.certificate, signer.chain, utc_now()))
    return int(json.loads(content)["sequence"])


def upgrade_store(settings: Settings, actor: str) -> bool:
    """Bring a store to this program's schema, and under MACs what had none; tells whether it had. Runs in a worker."""
    if not settings.token.uri:
        Store.create(settings.store_url)
        return False
    with open_session(token_settings(settings)) as session:
        return sealing.upgrade(settings.store_url, Vault(session), actor, anchor_of(settings, session))
