"""The PKCS#11 module through cffi: one C call for one operation, with structures and buffers made once.

python-pkcs11 is used for the names and numbers of the standard only. It initialises the module with C_Initialize(NULL),
which leaves SoftHSM without locks, it keeps handles over a re-initialisation, asks for the length before each wrap, and
cannot pass UNWRAP_TEMPLATE; two owners of one C_Initialize, which belongs to the process, would not be sound.

Output buffers are as large as an answer can be, so no call asks for a length. A Session is used by one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pkcs11 import Attribute

from hsmkm.errors import HsmkmError, TokenRefusedError, TokenUnreachableError
from hsmkm.token import ckr
from hsmkm.token.cdefs import CALLED
from hsmkm.token.template import ULONG_OCTETS, Template, View, ffi
from hsmkm.token.uri import TokenUri

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from hsmkm.token.profile import Altered
    from hsmkm.token.uri import Pin

USER_SO = 0
USER = 1
_OS_LOCKING_OK = 0x02
_SERIAL_RW_SESSION = 0x06
_TOKEN_INITIALIZED = 0x400
_USER_PIN_WRONG = 0x70000  # CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED
_USER_STATES = frozenset({1, 3})  # CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS
_MAX_SLOTS = 1024
_MAX_ANSWER = 1024
_MAX_ATTRIBUTE = 1024
_CKD_NULL = 1

_loaded: dict[str, Module] = {}


class Module:
    """A loaded PKCS#11 module. It stays loaded for the life of the process: modules do not survive dlclose."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._library = ffi.dlopen(path)
            entry = self._library.C_GetFunctionList
        except (OSError, AttributeError) as error:
            raise TokenUnreachableError(f"{path} is not a PKCS#11 module", hint="check token.module") from error
        out = ffi.new("CK_FUNCTION_LIST **")
        self._check(entry(out), "C_GetFunctionList")
        self.functions: Mapping[str, Any] = {name: getattr(out[0], name) for name in CALLED}

    @classmethod
    def load(cls, path: str) -> Module:
        """Load the module, or return the one that is loaded from this path."""
        if path not in _loaded:
            _loaded[path] = cls(path)
        return _loaded[path]

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - C values
        """Make one call; the error of its return value if that is not CKR_OK."""
        self._check(self.functions[name](*arguments), name)

    @staticmethod
    def _check(code: int, operation: str) -> None:
        if code:
            raise ckr.error(code, operation)

    def initialize(self, parameters: bytes = b"") -> None:
        """Initialise the module with its own locks on, so that sessions of several threads are sound.

        `parameters` is what NSS calls library parameters: they stand where the standard has pReserved, which NSS
        expects one place later.
        """
        text = ffi.new("char[]", parameters) if parameters else ffi.NULL
        arguments = ffi.new("CK_C_INITIALIZE_ARGS *", {"flags": _OS_LOCKING_OK, "pReserved": text})
        self.call("C_Initialize", arguments)

    def finalize(self) -> None:
        """Close every session and forget every handle of the process."""
        self.call("C_Finalize", ffi.NULL)

    def slots(self) -> list[int]:
        """List the slots that hold a token."""
        found = ffi.new("CK_ULONG[]", _MAX_SLOTS)
        count = ffi.new("CK_ULONG *", _MAX_SLOTS)
        self.call("C_GetSlotList", 1, found, count)
        return [int(slot) for slot in found[0 : _believed(count, _MAX_SLOTS, "C_GetSlotList")]]

    def token(self, slot: int) -> tuple[TokenUri, bool]:
        """Describe the token of a slot, and tell whether it is initialised."""
        info = ffi.new("CK_TOKEN_INFO *")
        self.call("C_GetTokenInfo", slot, info)
        uri = TokenUri(
            token=_padded(info.label),
            serial=_padded(info.serialNumber),
            manufacturer=_padded(info.manufacturerID),
            model=_padded(info.model),
        )
        return uri, bool(info.flags & _TOKEN_INITIALIZED)

    def counts_wrong_pins(self, slot: int) -> bool:
        """Tell whether the user's PIN was wrong since it was right the last time, or is locked."""
        info = ffi.new("CK_TOKEN_INFO *")
        self.call("C_GetTokenInfo", slot, info)
        return bool(info.flags & _USER_PIN_WRONG)

    def init_token(self, slot: int, so_pin: Pin, label: str) -> None:
        """Initialise the token of a slot; the label fills 32 octets with blanks."""
        octets = so_pin.reveal()
        self.call("C_InitToken", slot, octets, len(octets), label.encode().ljust(32))

    def open(self, slot: int, altered: Altered) -> Session:
        """Open a read-write session with a token."""
        handle = ffi.new("CK_ULONG *")
        self.call("C_OpenSession", slot, _SERIAL_RW_SESSION, ffi.NULL, ffi.NULL, handle)
        return Session(self, int(handle[0]), altered)


class Session:
    """One session with a token, and the structures its calls use again and again."""

    def __init__(self, module: Module, handle: int, altered: Altered) -> None:
        self._module = module
        self._session = self.handle = handle
        self._altered = altered
        self.functions = functions = module.functions
        self._generate, self._destroy = functions["C_GenerateKey"], functions["C_DestroyObject"]
        self._wrap, self._unwrap = functions["C_WrapKey"], functions["C_UnwrapKey"]
        self._sign_init, self._sign = functions["C_SignInit"], functions["C_Sign"]
        self._encrypt_init, self._encrypt = functions["C_EncryptInit"], functions["C_Encrypt"]
        self._decrypt_init, self._decrypt = functions["C_DecryptInit"], functions["C_Decrypt"]
        self._mechanisms: dict[int, Any] = {}
        self._object = ffi.new("CK_ULONG *")
        self._answer = ffi.new("unsigned char[]", _MAX_ANSWER)
        self._answer_view: View = ffi.buffer(self._answer)
        self._length = ffi.new("CK_ULONG *")
        self.made = 0
        """How many session keys were made or unwrapped in it."""

    def _call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - C values
        self._module.call(name, self._session, *arguments)

    def mechanism(self, number: int) -> Any:  # noqa: ANN401 - a C structure
        """Give the structure of a mechanism without parameters."""
        found = self._mechanisms.get(number)
        if found is None:
            found = self._mechanisms[number] = ffi.new("CK_MECHANISM *", {"mechanism": number})
        return found

    def login(self, user: int, pin: Pin | None) -> None:
        """Log in, once; LoginError for a PIN that is wrong or locked. The officer of a new token may have none."""
        octets = pin.reveal() if pin else b""
        self._call("C_Login", user, octets, len(octets))

    def init_pin(self, pin: Pin) -> None:
        """Set the user's PIN, in a session of the security officer."""
        octets = pin.reveal()
        self._call("C_InitPIN", octets, len(octets))

    def close(self) -> None:
        """Close the session; its session objects are gone."""
        self._call("C_CloseSession")

    def alive(self) -> bool:
        """Tell whether the token still knows the session, logged in."""
        info = ffi.new("CK_SESSION_INFO *")
        code = self._module.functions["C_GetSessionInfo"](self._session, info)
        return not code and info.state in _USER_STATES

    def generate_key(self, mechanism: int, template: Template) -> int:
        """Make a symmetric key in the token."""
        code = self._generate(self._session, self.mechanism(mechanism), template.array, template.count, self._object)
        if code:
            raise ckr.error(code, "C_GenerateKey")
        self.made += 1
        return int(self._object[0])

    def generate_pair(self, mechanism: int, public: Template, private: Template) -> tuple[int, int]:
        """Make a key pair in the token; the handles of its public and its private key."""
        out = ffi.new("CK_ULONG[2]")
        halves = (public.array, public.count, private.array, private.count)
        self._call("C_GenerateKeyPair", self.mechanism(mechanism), *halves, out, out + 1)
        return int(out[0]), int(out[1])

    def create(self, template: Template) -> int:
        """Make an object of values the host has."""
        self._call("C_CreateObject", template.array, template.count, self._object)
        return int(self._object[0])

    def copy(self, key: int, template: Template) -> int:
        """Copy an object with other attributes."""
        self._call("C_CopyObject", key, template.array, template.count, self._object)
        return int(self._object[0])

    def destroy(self, key: int) -> None:
        """Destroy an object."""
        code = self._destroy(self._session, key)
        if code:
            raise ckr.error(code, "C_DestroyObject")

    def find(self, template: Template, limit: int) -> list[int]:
        """Find objects; TokenRefusedError if there are more than `limit`."""
        found = ffi.new("CK_ULONG[]", limit + 1)
        self._call("C_FindObjectsInit", template.array, template.count)
        try:
            self._call("C_FindObjects", found, limit + 1, self._length)
        finally:
            self._call("C_FindObjectsFinal")
        if self._length[0] > limit:
            raise TokenRefusedError(f"the token holds more than {limit} such objects", hint="use a token of its own")
        return [int(handle) for handle in found[0 : self._length[0]]]

    def read(self, key: int, attribute: Attribute) -> bytes:
        """Read an attribute that is no secret, up to 1,024 octets."""
        memory = ffi.new("unsigned char[]", _MAX_ATTRIBUTE)
        length = self.read_into(key, attribute, memory, _MAX_ATTRIBUTE)
        return bytes(ffi.buffer(memory, length))

    def read_into(self, key: int, attribute: Attribute, memory: Any, room: int) -> int:  # noqa: ANN401 - C memory
        """Read an attribute into C memory; its length in octets."""
        item = ffi.new("CK_ATTRIBUTE *", {"type": int(attribute), "pValue": memory, "ulValueLen": room})
        self._call("C_GetAttributeValue", key, item, 1)
        if item.ulValueLen > room:
            raise TokenRefusedError(f"the token does not show {attribute.name}")
        return int(item.ulValueLen)

    def set_attributes(self, key: int, template: Template) -> None:
        """Change attributes of an object."""
        self._call("C_SetAttributeValue", key, template.array, template.count)

    def differences(self, key: int, template: Template) -> list[str]:
        """Read an object back and name the attributes that are not what the template asked for."""
        expected = template.expected
        items = ffi.new("CK_ATTRIBUTE[]", len(expected))
        memory = [ffi.new("unsigned char[]", max(len(value), ULONG_OCTETS)) for value in expected.values()]
        for item, (attribute, space) in zip(items, zip(expected, memory, strict=True), strict=True):
            item.type, item.pValue, item.ulValueLen = int(attribute), space, len(space)
        self._call("C_GetAttributeValue", key, items, len(expected))
        return [
            attribute.name
            for item, space, (attribute, value) in zip(items, memory, expected.items(), strict=True)
            if item.ulValueLen != len(value) or bytes(ffi.buffer(space, len(value))) != value
        ]

    def wrap(self, mechanism: int, under: int, key: int) -> bytes:
        """Wrap a key under another."""
        self._length[0] = _MAX_ANSWER
        code = self._wrap(self._session, self.mechanism(mechanism), under, key, self._answer, self._length)
        if code:
            raise ckr.error(code, "C_WrapKey")
        return self._answer_view[0 : _believed(self._length, _MAX_ANSWER, "C_WrapKey")]

    def unwrap(self, mechanism: int, under: int, wrapped: bytes, template: Template) -> int:
        """Unwrap a key; IntegrityError if the octets do not unwrap under this key."""
        how = self.mechanism(mechanism)
        for is_last in (False, True):
            code = self._unwrap(
                self._session, how, under, wrapped, len(wrapped), template.array, template.count, self._object
            )
            if is_last or not self._is_ambiguous(code, self._altered.unwrap):
                break
        if code:
            raise self._blame(code, "C_UnwrapKey", self._altered.unwrap, "a wrapped key does not unwrap")
        self.made += 1
        return int(self._object[0])

    def sign(self, mechanism: int, key: int, data: bytes) -> bytes:
        """Sign, or make a MAC: C_SignInit and C_Sign."""
        code = self._sign_init(self._session, self.mechanism(mechanism), key)
        if code:
            raise ckr.error(code, "C_SignInit")
        self._length[0] = _MAX_ANSWER
        code = self._sign(self._session, data, len(data), self._answer, self._length)
        if code:
            raise ckr.error(code, "C_Sign")
        return self._answer_view[0 : _believed(self._length, _MAX_ANSWER, "C_Sign")]

    def encrypt(self, mechanism: Any, key: int, data: bytes, out: Any, room: int) -> int:  # noqa: ANN401 - C memory
        """Encrypt with a mechanism structure of the caller's into its memory; the length of the answer in octets."""
        code = self._encrypt_init(self._session, mechanism, key)
        if code:
            raise ckr.error(code, "C_EncryptInit")
        self._length[0] = room
        code = self._encrypt(self._session, data, len(data), out, self._length)
        if code:
            raise ckr.error(code, "C_Encrypt")
        return _believed(self._length, room, "C_Encrypt")

    def decrypt(self, mechanism: Any, key: int, data: bytes, out: Any, room: int) -> int:  # noqa: ANN401 - C memory
        """Decrypt like encrypt(); IntegrityError if the tag is wrong."""
        for is_last in (False, True):
            code = self._decrypt_init(self._session, mechanism, key)
            if code:
                raise ckr.error(code, "C_DecryptInit")
            self._length[0] = room
            code = self._decrypt(self._session, data, len(data), out, self._length)
            if is_last or not self._is_ambiguous(code, self._altered.decrypt):
                break
        if code:
            raise self._blame(code, "C_Decrypt", self._altered.decrypt, "the authentication tag is wrong")
        return _believed(self._length, room, "C_Decrypt")

    def derive_ecdh(
        self, mechanism: int, private: int, point: bytes, template: Template, kdf: int = _CKD_NULL, shared: bytes = b""
    ) -> int:
        """Agree on a secret that stays in the token: the x-coordinate as it is, or what the token's KDF makes of it."""
        public, data = ffi.new("unsigned char[]", point), ffi.new("unsigned char[]", shared or 1)
        parameters = ffi.new(
            "CK_ECDH1_DERIVE_PARAMS *",
            {
                "kdf": kdf,
                "ulSharedDataLen": len(shared),
                "pSharedData": data if shared else ffi.NULL,
                "ulPublicDataLen": len(point),
                "pPublicData": public,
            },
        )
        return self._derive(mechanism, parameters, ffi.sizeof("CK_ECDH1_DERIVE_PARAMS"), private, template)

    def derive_with_data(self, mechanism: int, base: int, data: bytes, template: Template) -> int:
        """Make a key of another key and octets of the host's (PKCS#11 2.40, section 2.43)."""
        octets = ffi.new("unsigned char[]", data)
        parameters = ffi.new("CK_KEY_DERIVATION_STRING_DATA *", {"pData": octets, "ulLen": len(data)})
        return self._derive(mechanism, parameters, ffi.sizeof("CK_KEY_DERIVATION_STRING_DATA"), base, template)

    def derive_hash(self, mechanism: int, base: int, template: Template) -> int:
        """Make a key of the first octets of another key's hash (PKCS#11 2.40, section 2.20)."""
        return self._derive(mechanism, ffi.NULL, 0, base, template)

    def _derive(self, mechanism: int, parameters: Any, octets: int, base: int, template: Template) -> int:  # noqa: ANN401 - a C structure
        structure = ffi.new(
            "CK_MECHANISM *", {"mechanism": mechanism, "pParameter": parameters, "ulParameterLen": octets}
        )
        self._call("C_DeriveKey", structure, base, template.array, template.count, self._object)
        return int(self._object[0])

    def digest_key(self, mechanism: int, before: bytes, key: int, after: bytes, out: Any) -> None:  # noqa: ANN401 - C memory
        """Hash what stands before, a key's value, and what stands after, into C memory of the digest's length."""
        room = ffi.sizeof(out)
        self._call("C_DigestInit", self.mechanism(mechanism))
        try:
            if before:
                self._call("C_DigestUpdate", before, len(before))
            self._call("C_DigestKey", key)
            if after:
                self._call("C_DigestUpdate", after, len(after))
        except HsmkmError:
            self._length[0] = _MAX_ANSWER  # the operation would stay open, and refuse the next one
            self._module.functions["C_DigestFinal"](self._session, self._answer, self._length)
            raise
        self._length[0] = room
        self._call("C_DigestFinal", out, self._length)
        if self._length[0] != room:
            raise TokenRefusedError(f"the token's digest has {self._length[0]} octets instead of {room}")

    def random(self, count: int) -> bytes:
        """Take random octets from the token."""
        memory = ffi.new("unsigned char[]", max(count, 1))
        self._call("C_GenerateRandom", memory, count)
        return bytes(ffi.buffer(memory, count))

    @staticmethod
    def _is_ambiguous(code: int, altered: Container[int]) -> bool:
        """Whether a return value blames the input or the token: then the call is made again, which changes nothing.

        A peer is not accused for what the token failed at once.
        """
        return code in altered and code in ckr.GONE

    def _blame(self, code: int, operation: str, altered: Container[int], what: str) -> Exception:
        if code in altered and (code not in ckr.GONE or self.alive()):
            return ckr.integrity_error(code, operation, what)
        return ckr.error(code, operation)


def _believed(length: Any, room: int, operation: str) -> int:  # noqa: ANN401 - a C number
    """Give the length that the module told; TokenRefusedError if its answer cannot be that long."""
    told = int(length[0])
    if told > room:
        raise TokenRefusedError(f"{operation} told of {told} octets or entries where there is room for {room}")
    return told


def _padded(field: Any) -> str:  # noqa: ANN401 - a C array
    octets = bytes(ffi.buffer(field)).rstrip(b" \0")
    return octets.decode(errors="replace")
