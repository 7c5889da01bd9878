"""What a record of the shim proves: reads every call that parties made of their tokens, and names what must not be.

Keys are told apart by the fingerprints that their tokens made, so a key is the same in every token and process. A key
that lies under `storage:N` or `gak-storage:N` anywhere in the record is a meter's; under the latter, a GAK or LLS
password. But one that an agreed key carries to another party is a package's: it is lent to workers under the storage
key, and no key carries both it and others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pkcs11 import Attribute

Call = dict[str, Any]
AES_GCM = 0x1087
_NAMED = ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "SIGN", "VERIFY", "DERIVE", "SIGN_RECOVER")
USAGES = {str(int(getattr(Attribute, name))): name for name in _NAMED}
VALUE, TOKEN, CLASS = (str(int(each)) for each in (Attribute.VALUE, Attribute.TOKEN, Attribute.CLASS))
SENSITIVE, EXTRACTABLE, LABEL = (
    str(int(each)) for each in (Attribute.SENSITIVE, Attribute.EXTRACTABLE, Attribute.LABEL)
)
SECRET_CLASS, PRIVATE_CLASS = "0400000000000000", "0300000000000000"
STATED = {SECRET_CLASS: 7, PRIVATE_CLASS: 5}
"""How many usages a template states: all there are for its class."""

TOKEN_USAGES = {
    "storage": {"WRAP", "UNWRAP"},
    "gak-storage": {"WRAP", "UNWRAP"},
    "integrity": {"SIGN", "VERIFY"},
    "digital-signature": {"SIGN"},
    "package-signing": {"SIGN"},
    "key-agreement": {"DERIVE"},
    "ca": {"SIGN"},
}
SESSION_USAGES: tuple[set[str], ...] = (set(), {"WRAP"}, {"UNWRAP"}, {"ENCRYPT", "DECRYPT"}, {"DERIVE"})
PASSAGE = {"WRAP", "UNWRAP"}
AT_BIRTH = {"SIGN", "DERIVE"}
MAKES = ("C_GenerateKey", "C_GenerateKeyPair", "C_UnwrapKey", "C_DeriveKey", "C_CreateObject")
HANDLES = ("key", "under", "base")
WRAPPING = ("C_WrapKey", "C_UnwrapKey")


@dataclass(frozen=True, slots=True)
class Seen:
    """A key as the record names it: its class, its fingerprint where it has one, and a token object's label."""

    of_class: str
    fingerprint: str
    label: str

    @classmethod
    def parse(cls, named: Sequence[Any]) -> Seen:
        """Read what the shim wrote of a handle."""
        return cls(*str(named[1]).split(":", 2))

    @property
    def kind(self) -> str:
        """The label of a token object without its number or curve; empty for a session object."""
        return self.label.partition(":")[0].removesuffix("-p384")


@dataclass
class Verdict:
    """What was found: violations as (rule, text), declared exceptions by name, and how much there was to see."""

    calls: int = 0
    keys: int = 0
    ivs: int = 0
    violations: list[tuple[str, str]] = field(default_factory=list)
    exceptions: Counter[str] = field(default_factory=Counter)

    def against(self, rule: str, call: Call, text: str) -> None:
        """Note what must not be."""
        self.violations.append((rule, f"{rule}: {call['call']} of process {call['process']}: {text}"))


def read(path: Path) -> list[Call]:
    """Read a record, in the order of time over all its processes."""
    with path.open(encoding="utf-8") as lines:
        return sorted(map(json.loads, lines), key=lambda call: int(call["time"]))


def check(calls: Sequence[Call]) -> Verdict:
    """Apply every rule to a record."""
    found = Verdict(calls=len(calls))
    stored = _Stored.of(calls)
    for rule in (_in_clear, _usages, _works, _initialisation_vectors, _wrapped_after_use, _handles):
        rule(calls, stored, found)
    return found


@dataclass(frozen=True, slots=True)
class _Stored:
    """The fingerprints of meters' keys, of those that lie under GAK storage keys, and of packages' keys."""

    meters: frozenset[str]
    readable: frozenset[str]
    packages: frozenset[str]

    @classmethod
    def of(cls, calls: Sequence[Call]) -> _Stored:
        lies: dict[str, set[str]] = {}
        for call, inner in _carried(calls):
            under = Seen.parse(call["under"])
            for name in (under.kind, under.fingerprint):
                lies.setdefault(name, set()).add(inner)
        readable = lies.get("gak-storage", set())
        kept = lies.get("storage", set()) | readable
        packages = {inner for agreed in _agreed(calls) - kept for inner in lies.get(agreed, ())}
        return cls(frozenset(kept - packages), frozenset(readable), frozenset(packages))


def _carried(calls: Sequence[Call]) -> Iterator[tuple[Call, str]]:
    """Give each wrapping and unwrapping with the fingerprint of the key that is carried."""
    for call in _done(calls, *WRAPPING):
        yield call, Seen.parse(call["key"] if call["call"] == "C_WrapKey" else call["made"]).fingerprint


def _agreed(calls: Sequence[Call]) -> set[str]:
    """Give the fingerprints of the keys that two parties agreed on: derived, or made of what the token digested."""
    found: set[str] = set()
    before: dict[int, str] = {}
    for call in _done(calls):
        is_digest = call["call"] == "C_CreateObject" and before.get(call["process"]) == "C_DigestFinal"
        if "made" in call and (is_digest or call["call"] == "C_DeriveKey"):
            found.add(Seen.parse(call["made"]).fingerprint)
        before[call["process"]] = call["call"]
    return found


def _done(calls: Sequence[Call], *names: str) -> Iterator[Call]:
    return (call for call in calls if not call["code"] and (not names or call["call"] in names))


def _true(template: Call, attribute: str) -> bool:
    return bool(template.get(attribute) == "01")


def _used_for(template: Call) -> set[str]:
    return {name for number, name in USAGES.items() if _true(template, number)}


def _is_dedicated(call: Call) -> bool:
    """Whether a key is made as a dedicated key, which the InitiateRequest carries."""
    template = call["template"]
    in_use = _used_for(template) == {"ENCRYPT", "DECRYPT"} and not _true(template, TOKEN)
    return bool(call["call"] == "C_GenerateKey" and in_use and _true(template, EXTRACTABLE))


def _in_clear(calls: Sequence[Call], stored: _Stored, found: Verdict) -> None:
    """No secret is created or read in clear, or can be read, but a GAK and what section 1 of the design declares."""
    passages: set[str] = set()
    dedicated: set[str] = set()
    before: dict[int, str] = {}
    for call in _done(calls):
        name, template = call["call"], call.get("template", {})
        if name in MAKES and "made" in call:
            made = Seen.parse(call["made"]).fingerprint
            if name == "C_GenerateKey" and _used_for(template) == PASSAGE and not _true(template, TOKEN):
                passages.add(made)
            if name == "C_GenerateKey" and _is_dedicated(call):
                dedicated.add(made)
            _made_in_clear(call, before.get(call["process"], ""), passages, stored, found)
        elif name == "C_GetAttributeValue" and int(call["read"].get(VALUE, -1)) >= 0:
            _read_in_clear(call, dedicated, stored, found)
        elif name in ("C_SetAttributeValue", "C_CopyObject"):
            _changed(call, found)
        before[call["process"]] = name


def _changed(call: Call, found: Verdict) -> None:
    """A key's attributes are never changed; the copy of one may not be readable, or leave the token."""
    is_key = Seen.parse(call["key"]).of_class in ("secret", "private")
    if is_key and (call["call"] == "C_SetAttributeValue" or {SENSITIVE, EXTRACTABLE} & set(call["template"])):
        found.against("clear", call, "attributes of a key were changed")


def _made_in_clear(call: Call, before: str, passages: set[str], stored: _Stored, found: Verdict) -> None:
    template, key = call["template"], Seen.parse(call["made"])
    if key.of_class not in ("secret", "private"):
        return
    if call["call"] == "C_CreateObject" and VALUE in template:
        is_sealed = not _used_for(template) and key.fingerprint in stored.meters
        if before == "C_DigestFinal":
            found.exceptions["agreed key"] += 1
        elif is_sealed and _true(template, SENSITIVE):
            found.exceptions["imported key"] += 1
        else:
            found.against("clear", call, "a key was created of a value")
    if _true(template, SENSITIVE):
        return
    under = Seen.parse(call["under"]) if "under" in call else None
    if under is not None and under.kind == "gak-storage":
        found.exceptions["GAK or LLS password, readable"] += 1
    elif under is not None and under.fingerprint in passages:
        found.exceptions["HLS secret, readable"] += 1
    elif _is_dedicated(call):
        found.exceptions["dedicated key, readable"] += 1
    else:
        found.against("clear", call, "a key can be read")


def _read_in_clear(call: Call, dedicated: set[str], stored: _Stored, found: Verdict) -> None:
    key = Seen.parse(call["key"])
    if key.of_class == "secret" and key.fingerprint in stored.readable:
        found.exceptions["GAK or LLS password, read"] += 1
    elif key.of_class == "secret" and key.fingerprint in dedicated:
        found.exceptions["dedicated key, read"] += 1
    else:
        found.against("clear", call, "a key was read")


def _usages(calls: Sequence[Call], _stored: _Stored, found: Verdict) -> None:
    """Every key is made with all its usages stated, and only those of the table of keys."""
    for call in _done(calls, *MAKES):
        template = call["template"]
        of_class = template.get(CLASS)
        if of_class not in STATED:
            continue
        found.keys += 1
        usages = _used_for(template)
        if len([each for each in USAGES if each in template]) < STATED[of_class]:
            found.against("usage", call, "not every usage is stated")
        if _true(template, TOKEN):
            kind = bytes.fromhex(template[LABEL]).decode().partition(":")[0].removesuffix("-p384")
            fits = usages == TOKEN_USAGES.get(kind) and not _true(template, EXTRACTABLE)
        else:
            fits = _fits_session(call, usages)
        if not fits:
            found.against("usage", call, f"{sorted(usages)}, extractable: {_true(template, EXTRACTABLE)}")


def _fits_session(call: Call, usages: set[str]) -> bool:
    """What a session object may do; one that leaves the token has a usage at its birth only, or is a dedicated key."""
    template = call["template"]
    if call["call"] == "C_GenerateKeyPair":
        return usages in ({"DERIVE"}, AT_BIRTH) and not _true(template, EXTRACTABLE)
    if usages == PASSAGE:
        return bool(call["call"] == "C_GenerateKey" and not _true(template, EXTRACTABLE))
    at_birth = call["call"] == "C_GenerateKey"
    return usages in SESSION_USAGES and (not usages or at_birth or not _true(template, EXTRACTABLE))


def _works(calls: Sequence[Call], stored: _Stored, found: Verdict) -> None:
    """Keys do what they are for: GAKs nothing, a meter's keys never unwrap, storage keys wrap and unwrap alone."""
    for call, inner in _carried(calls):
        if inner in stored.packages and Seen.parse(call["under"]).fingerprint in stored.meters | stored.packages:
            found.against("work", call, "a key that travels alone is carried with others")
    for call in _done(calls):
        keys = {name: Seen.parse(call[name]) for name in HANDLES if name in call}
        works = keys.get("under") or (keys.get("key") if call["call"] in WORK else None)
        if works is not None and works.fingerprint and works.fingerprint in stored.readable:
            found.against("work", call, "a GAK works as a key")
        if (
            call["call"] == "C_WrapKey"
            and keys["under"].kind == "storage"
            and keys["key"].fingerprint in stored.readable
        ):
            found.against("work", call, "a GAK lies under the storage key")
        if call["call"] == "C_UnwrapKey" and keys["under"].fingerprint in stored.meters:
            found.against("work", call, "a meter's key unwraps")
        if works is not None and works.fingerprint in stored.packages and call["call"] not in WRAPPING:
            found.against("work", call, "a package's key does other work than wrap and unwrap")
        if works is not None and works.label and works.kind not in WORK.get(call["call"], ()):
            found.against("work", call, f"the key {works.label} works so")


WORK = {
    "C_WrapKey": ("storage", "gak-storage"),
    "C_UnwrapKey": ("storage", "gak-storage"),
    "C_SignInit": ("integrity", "digital-signature", "package-signing", "ca"),
    "C_EncryptInit": (),
    "C_DecryptInit": (),
}
"""The token objects that each call may work with."""


def _initialisation_vectors(calls: Sequence[Call], _stored: _Stored, found: Verdict) -> None:
    """No initialisation vector is used twice under a key."""
    used: set[tuple[str, str]] = set()
    for call in _done(calls, "C_EncryptInit"):
        if call["mechanism"] != AES_GCM:
            continue
        pair = (Seen.parse(call["key"]).fingerprint, str(call["iv"]))
        if pair in used or not pair[0]:
            found.against("iv", call, f"the IV {pair[1]} was used before under the same key")
        used.add(pair)
    found.ivs += len(used)


def _wrapped_after_use(calls: Sequence[Call], stored: _Stored, found: Verdict) -> None:
    """No key goes to a meter, under its master key, that protected an APDU before."""
    used: set[str] = set()
    for call in _done(calls, "C_EncryptInit", "C_DecryptInit", "C_WrapKey"):
        fingerprint = Seen.parse(call["key"]).fingerprint
        if call["call"] != "C_WrapKey":
            used.add(fingerprint)
        elif fingerprint in used and Seen.parse(call["under"]).fingerprint in stored.meters:
            found.against("sent again", call, "a key that was in use was wrapped for a meter")


def _handles(calls: Sequence[Call], _stored: _Stored, found: Verdict) -> None:
    """A handle is used in the generation in which it was given, and not after its object was destroyed."""
    given: dict[tuple[int, int], set[int]] = {}
    for call in calls:
        known = given.setdefault((call["process"], call["generation"]), set())
        for name in HANDLES:
            if name in call and call[name][0] not in known:
                found.against("handle", call, f"the handle {call[name][0]} was not given in this generation")
        known.update(call.get("found", ()))
        known.update(call[name][0] for name in ("made", "half") if name in call)
        if call["call"] == "C_DestroyObject" and not call["code"]:
            known.discard(call["key"][0])
