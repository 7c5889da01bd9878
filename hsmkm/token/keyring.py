"""The long-lived keys of a party: token objects, found by label and class, and checked whenever they are found.

`storage:N`, `gak-storage:N` and `integrity:N` are numbered alike; the highest number of which there are all three is
used for new work, and every number stays readable. A number that another process made later is read from as soon as it
is met, and a thread's new work goes on under the one it began with until its `turn`. After a reconnection a key is
found again and compared with what it was: CKA_ID for all, a MAC over a fixed text for integrity keys, the public point
for key pairs.
"""

from __future__ import annotations

import hmac
import re
import threading
from typing import TYPE_CHECKING, TypeVar

from pkcs11 import Attribute, ObjectClass

from hsmkm.errors import IntegrityError, RefusedError, TokenRefusedError, TokenUnreachableError
from hsmkm.token import attributes, curves
from hsmkm.token.template import Template
from hsmkm.token.types import MAC_OCTETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cryptography.hazmat.primitives.asymmetric import ec

    from hsmkm.token.attributes import Attributes
    from hsmkm.token.session import TokenSession

T = TypeVar("T")
STORAGE = "storage"
GAK_STORAGE = "gak-storage"
INTEGRITY = "integrity"
KINDS = (STORAGE, GAK_STORAGE, INTEGRITY)
ID_OCTETS = 16
_MAX_TOKEN_KEYS = 1024
_LABEL = re.compile(rb"(storage|gak-storage|integrity):([1-9][0-9]{0,8})")
_PROBE = b"hsmkm integrity key probe/1"
_USAGES = {"sign": Attribute.SIGN, "derive": Attribute.DERIVE}


class _Own(threading.local):
    """The number under which the calling thread does new work; 0 before its first."""

    working = 0


class Keyring:
    """The numbered symmetric keys of the token."""

    def __init__(self, session: TokenSession) -> None:
        self._session = session
        self._mechanisms = session.profile.mechanisms
        self._generation = 0
        self._keys: dict[str, dict[int, int]] = {}
        self._lock = threading.RLock()
        self._own = _Own()
        self._known: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        self._templates = {kind: session.template(self._attributes(kind)) for kind in KINDS}

    def newest(self, kind: str) -> tuple[int, int]:
        """Return the number and the object handle of the key for new work; TokenRefusedError if there is none."""
        if self._generation != self._session.generation:
            self._find_all()
        number = self._own.working = self._own.working or _complete(self._keys)
        found = self._keys[kind].get(number)
        if found is None and number:
            raise _retired(kind, number)
        if found is None:
            missing = next((each for each in KINDS if not self._keys[each]), kind)
            raise TokenRefusedError(f"the token has no {missing} key", hint="make the party's keys first: hsmkm init")
        return number, found

    def number(self, kind: str, number: int) -> int:
        """Return the object handle of a numbered key; IntegrityError if the token lacks it.

        One that is not known is looked for once: another process may have made it since.
        """
        if self._generation != self._session.generation or number not in self._keys[kind]:
            self._find_all()
        found = self._keys[kind].get(number)
        if found is None:
            raise IntegrityError(f"the token has no key {kind}:{number}", hint="this is another token")
        return found

    def turn(self) -> None:
        """Use the highest number that is known for this thread's new work; it has none under way that began earlier."""
        self._own.working = max(_complete(self._keys), self._own.working)

    def still_there(self) -> None:
        """Look for the keys again; TokenUnreachableError where those for new work were retired meanwhile."""
        self._find_all()

    def missing(self) -> list[str]:
        """Name the kinds of which there is no key."""
        self._find_all()
        return [kind for kind in KINDS if not self._keys[kind]]

    def create_missing(self) -> None:
        """Make number 1 of each kind that has no key, and check the others."""
        self._find_all()
        for kind in KINDS:
            if not self._keys[kind]:
                self._create(kind, 1)
        self._find_all()

    def create_up_to(self, number: int) -> None:
        """Make the keys of the number after the present one, those that are missing, and use them for new work.

        Raises IntegrityError for another number than the present one or the next.
        """
        self._find_all()
        if number not in (_complete(self._keys), _complete(self._keys) + 1):
            raise IntegrityError(
                f"the keys number {number} do not follow those of the token", hint="compare it with hsmkm audit log"
            )
        for kind in KINDS:
            if number not in self._keys[kind]:
                self._create(kind, number)
        self._find_all()
        self.turn()

    def numbers_below(self, number: int) -> list[str]:
        """List the keys with a lower number by their labels."""
        return sorted(f"{kind}:{found}" for kind, found, _ in self._objects() if found < number)

    def destroy_before(self, number: int) -> list[str]:
        """Destroy every key with a lower number; their labels. What lay under them is lost."""
        gone = []
        for kind, found, key in list(self._objects()):
            if found < number:
                self._session.destroy(key)
                gone.append(f"{kind}:{found}")
        self._find_all()
        return sorted(gone)

    def mac(self, key: int, data: bytes) -> bytes:
        """Make an HMAC-SHA256 of 32 octets: C_SignInit and C_Sign."""
        value = self._session.cryptoki.sign(self._mechanisms.sha256_hmac, key, data)
        if len(value) != MAC_OCTETS:
            raise TokenRefusedError(f"the token's HMAC-SHA256 has {len(value)} octets")
        return value

    def _attributes(self, kind: str) -> Attributes:
        if kind == INTEGRITY:
            return attributes.integrity_key()
        return attributes.storage_key(guarded=kind == STORAGE and self._session.profile.guards.unwrap_template)

    def _create(self, kind: str, number: int) -> None:
        """Make a key that is not there, and clear away what a crash left of it before."""
        for left in [key for *name, key in self._objects() if name == [kind, number]]:
            self._session.destroy(left)
        listed = self._attributes(kind) | {
            Attribute.LABEL: f"{kind}:{number}".encode(),
            Attribute.ID: self._session.cryptoki.random(ID_OCTETS),
            Attribute.VALUE_LEN: attributes.STORAGE_KEY_OCTETS,
        }
        mechanism = self._mechanisms.generic_secret_key_gen if kind == INTEGRITY else self._mechanisms.aes_key_gen
        template = self._session.template(listed)
        made = self._session.cryptoki.generate_key(mechanism, template)
        wrong = self._session.cryptoki.differences(made, template)
        if wrong:
            self._session.cryptoki.destroy(made)
            raise TokenRefusedError(f"the token made {kind}:{number} with other attributes: {', '.join(wrong)}")

    def _find_all(self) -> None:
        """Find, check and compare every numbered key; what was known before must be there again."""
        with self._lock:
            generation = self._session.generation
            keys: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
            for kind, number, key in self._objects():
                if not self._session.is_whole(key):
                    continue
                if number in keys[kind]:
                    raise IntegrityError(f"the token has two keys {kind}:{number}", hint="find out who made the second")
                self._check(kind, number, key)
                keys[kind][number] = self._session.working(key, self._attributes(kind))
            self._compare(keys)
            self._keys, self._generation = keys, generation
            self._own.working = self._own.working or _complete(self._keys)

    def _objects(self) -> Iterator[tuple[str, int, int]]:
        """Give kind, number and object handle of every numbered key."""
        cryptoki = self._session.cryptoki
        query = Template({Attribute.CLASS: int(ObjectClass.SECRET_KEY), Attribute.TOKEN: True})
        for key in cryptoki.find(query, _MAX_TOKEN_KEYS):
            match = _LABEL.fullmatch(cryptoki.read(key, Attribute.LABEL))
            if match is not None:
                yield match[1].decode(), int(match[2]), key

    def _compare(self, keys: dict[str, dict[int, int]]) -> None:
        """See that no known key is gone, but those below the present number: they were retired."""
        working = self._own.working or _complete(keys)
        for kind, number in [name for name in self._known if name[1] not in keys[name[0]]]:
            if number >= working and not any(found > number for found in keys[kind]):
                raise IntegrityError(f"the key {kind}:{number} is gone from the token", hint="this is another token")
            if number >= working:
                raise _retired(kind, number)
            del self._known[kind, number]

    def _check(self, kind: str, number: int, key: int) -> None:
        wrong = self._session.cryptoki.differences(key, self._templates[kind])
        if wrong:
            raise IntegrityError(
                f"the token's key {kind}:{number} has other attributes than it must have: {', '.join(wrong)}",
                hint="it was not made here: do not use this token",
            )
        identity = self._session.cryptoki.read(key, Attribute.ID)
        proof = self.mac(key, _PROBE) if kind == INTEGRITY else b""
        known_identity, known_proof = self._known.setdefault((kind, number), (identity, proof))
        if known_identity != identity or not hmac.compare_digest(known_proof, proof):
            raise IntegrityError(f"the key {kind}:{number} is not what it was", hint="the token was exchanged")


def _complete(keys: Mapping[str, Mapping[int, int]]) -> int:
    """Tell the highest number of which there are keys of all kinds, 0 if there is none."""
    return max(set.intersection(*(set(keys.get(kind, ())) for kind in KINDS)), default=0)


def _retired(kind: str, number: int) -> TokenUnreachableError:
    return TokenUnreachableError(
        f"the key {kind}:{number} was retired, and this process still works with it", hint="start it again"
    )


_TOLD = (
    Attribute.TOKEN,
    Attribute.PRIVATE,
    Attribute.LOCAL,
    Attribute.SENSITIVE,
    Attribute.ALWAYS_SENSITIVE,
    Attribute.EXTRACTABLE,
    Attribute.NEVER_EXTRACTABLE,
    Attribute.MODIFIABLE,
    Attribute.COPYABLE,
    Attribute.SIGN,
    Attribute.SIGN_RECOVER,
    Attribute.DECRYPT,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)


PUBLIC, PRIVATE = 0, 1


def _at_birth(label: str) -> str:
    return f"{label} at birth"


class KeyPairs:
    """The EC key pairs of the token, each of one use."""

    def __init__(self, session: TokenSession) -> None:
        self._session = session

    def create(self, label: str, curve: str, usage: str) -> None:
        """Make a key pair; RefusedError if one of this label exists."""
        self._begin(label)
        cryptoki = self._session.cryptoki
        flag = _USAGES[usage]
        names: Attributes = {Attribute.LABEL: label.encode(), Attribute.ID: cryptoki.random(ID_OCTETS)}
        listed = attributes.ec_public_key(flag, curves.parameters(curve), on_token=True)
        public = self._session.template(listed | names)
        private = self._session.template(attributes.ec_private_key(flag, on_token=True) | names)
        mechanism = self._session.profile.mechanisms.ec_key_pair_gen
        halves = cryptoki.generate_pair(mechanism, public, private)
        wrong = cryptoki.differences(halves[0], public) + cryptoki.differences(halves[1], private)
        if wrong:
            for half in halves:
                cryptoki.destroy(half)
            raise TokenRefusedError(f"the token made the key {label} with other attributes: {', '.join(wrong)}")

    def create_agreement(self, label: str, curve: str, at_birth: Callable[[ec.EllipticCurvePublicKey, int], T]) -> T:
        """Make a key-agreement pair, which may sign until `at_birth(public key, object handle)` returns.

        The request for its certificate must be signed by the key itself (RFC 2986 section 4.2), and the key that stays
        in the token only derives. Raises RefusedError if a key of this label exists; nothing stays if anything fails.
        A token may copy in two steps, first what there was, then what is new: so a copy gets its own label with what it
        may do, the private half last, and what a crash left is told by its label.
        """
        self._begin(label)
        cryptoki = self._session.cryptoki
        names: Attributes = {Attribute.LABEL: _at_birth(label).encode(), Attribute.ID: cryptoki.random(ID_OCTETS)}
        public, private = attributes.ec_pair_at_birth(curves.parameters(curve))
        mechanism = self._session.profile.mechanisms.ec_key_pair_gen
        whole = self._session.template
        born = cryptoki.generate_pair(mechanism, whole(public | names), whole(private | names))
        try:
            done = at_birth(self._read_public(born[0]), born[1])
            own: Attributes = {Attribute.LABEL: label.encode()}
            copies = [
                cryptoki.copy(born[half], whole(own | attributes.ec_copy(of_private=half == PRIVATE)))
                for half in (PUBLIC, PRIVATE)
            ]
        finally:
            for half in born:
                cryptoki.destroy(half)
        wrong = cryptoki.differences(copies[PRIVATE], whole(attributes.kept_private_key(Attribute.DERIVE)))
        if wrong:
            for half in copies:
                cryptoki.destroy(half)
            raise TokenRefusedError(f"the token kept the key {label} with other attributes: {', '.join(wrong)}")
        return done

    def _begin(self, label: str) -> None:
        """Clear away what a crash left of a pair that was never whole; RefusedError if there is a private key."""
        if self.exists(label):
            raise RefusedError(f"the token has a key {label}", hint="a key is never replaced under its own label")
        for left in (label, _at_birth(label)):
            self.destroy(left)

    def exists(self, label: str) -> bool:
        """Tell whether there is a private key of this label, which a token makes last and made to its end."""
        return any(map(self._session.is_whole, self._objects(label, ObjectClass.PRIVATE_KEY)))

    def destroy(self, label: str) -> None:
        """Destroy both halves of a key pair, whole or not, where they exist."""
        for of_class in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            for found in self._objects(label, of_class):
                self._session.destroy(found)

    def public(self, label: str) -> ec.EllipticCurvePublicKey:
        """Read a public key; RefusedError if there is none of this label."""
        return self._read_public(self._found(label, ObjectClass.PUBLIC_KEY))

    def _read_public(self, found: int) -> ec.EllipticCurvePublicKey:
        cryptoki = self._session.cryptoki
        return curves.from_token(cryptoki.read(found, Attribute.EC_PARAMS), cryptoki.read(found, Attribute.EC_POINT))

    def private(self, label: str, usage: str) -> int:
        """Find a private key of this one usage, "sign" or "derive"; IntegrityError if it may do anything else."""
        found = self._found(label, ObjectClass.PRIVATE_KEY)
        listed = attributes.kept_private_key(_USAGES[usage])
        wrong = self._session.cryptoki.differences(found, self._session.template(listed))
        if wrong:
            raise IntegrityError(
                f"the token's key {label} has other attributes than it must have: {', '.join(wrong)}",
                hint="it was made elsewhere, or for another use: do not use it here",
            )
        return self._session.working(found, listed)

    def identity(self, label: str) -> bytes:
        """Read CKA_ID, which both halves share; IntegrityError if they differ."""
        halves = (self._found(label, ObjectClass.PUBLIC_KEY), self._found(label, ObjectClass.PRIVATE_KEY))
        public, private = (self._session.cryptoki.read(half, Attribute.ID) for half in halves)
        if public != private:
            raise IntegrityError(f"the halves of the key {label} do not belong together", hint="do not use it")
        return private

    def told(self, label: str) -> dict[str, bool | None]:
        """Read what a private key may do and how it came about, as the token tells it, by the names of PKCS#11.

        None stands for what this kind of token does not store.
        """
        found = self._found(label, ObjectClass.PRIVATE_KEY)
        unstored = self._session.profile.unstored
        return {
            f"CKA_{each.name}": None if each.name in unstored else any(self._session.cryptoki.read(found, each))
            for each in _TOLD
        }

    def _found(self, label: str, of_class: ObjectClass) -> int:
        found = self._find(label, of_class)
        if found is None:
            raise RefusedError(f"the token has no key {label}", hint="make it first")
        return found

    def _find(self, label: str, of_class: ObjectClass) -> int | None:
        found = self._objects(label, of_class)
        if len(found) > 1:
            raise TokenRefusedError(f"the token has two keys {label}", hint="find out who made the second")
        return found[0] if found else None

    def _objects(self, label: str, of_class: ObjectClass) -> list[int]:
        query = Template({Attribute.CLASS: int(of_class), Attribute.TOKEN: True, Attribute.LABEL: label.encode()})
        return self._session.cryptoki.find(query, _MAX_TOKEN_KEYS)
