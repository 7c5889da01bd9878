"""What the return values of PKCS#11 mean to a caller: gone, busy, login, altered, or refused."""

from __future__ import annotations

from hsmkm.errors import (
    HsmkmError,
    IntegrityError,
    LoginError,
    TokenBusyError,
    TokenRefusedError,
    TokenUnreachableError,
)

# PKCS#11 base specification 2.40, section 5.1 and appendix B.
NAMES = {
    0x000: "CKR_OK",
    0x001: "CKR_CANCEL",
    0x002: "CKR_HOST_MEMORY",
    0x003: "CKR_SLOT_ID_INVALID",
    0x005: "CKR_GENERAL_ERROR",
    0x006: "CKR_FUNCTION_FAILED",
    0x007: "CKR_ARGUMENTS_BAD",
    0x00A: "CKR_CANT_LOCK",
    0x010: "CKR_ATTRIBUTE_READ_ONLY",
    0x011: "CKR_ATTRIBUTE_SENSITIVE",
    0x012: "CKR_ATTRIBUTE_TYPE_INVALID",
    0x013: "CKR_ATTRIBUTE_VALUE_INVALID",
    0x01B: "CKR_ACTION_PROHIBITED",
    0x020: "CKR_DATA_INVALID",
    0x021: "CKR_DATA_LEN_RANGE",
    0x030: "CKR_DEVICE_ERROR",
    0x031: "CKR_DEVICE_MEMORY",
    0x032: "CKR_DEVICE_REMOVED",
    0x040: "CKR_ENCRYPTED_DATA_INVALID",
    0x041: "CKR_ENCRYPTED_DATA_LEN_RANGE",
    0x050: "CKR_FUNCTION_CANCELED",
    0x054: "CKR_FUNCTION_NOT_SUPPORTED",
    0x060: "CKR_KEY_HANDLE_INVALID",
    0x062: "CKR_KEY_SIZE_RANGE",
    0x063: "CKR_KEY_TYPE_INCONSISTENT",
    0x067: "CKR_KEY_INDIGESTIBLE",
    0x068: "CKR_KEY_FUNCTION_NOT_PERMITTED",
    0x069: "CKR_KEY_NOT_WRAPPABLE",
    0x06A: "CKR_KEY_UNEXTRACTABLE",
    0x070: "CKR_MECHANISM_INVALID",
    0x071: "CKR_MECHANISM_PARAM_INVALID",
    0x082: "CKR_OBJECT_HANDLE_INVALID",
    0x090: "CKR_OPERATION_ACTIVE",
    0x091: "CKR_OPERATION_NOT_INITIALIZED",
    0x0A0: "CKR_PIN_INCORRECT",
    0x0A1: "CKR_PIN_INVALID",
    0x0A2: "CKR_PIN_LEN_RANGE",
    0x0A3: "CKR_PIN_EXPIRED",
    0x0A4: "CKR_PIN_LOCKED",
    0x0B0: "CKR_SESSION_CLOSED",
    0x0B1: "CKR_SESSION_COUNT",
    0x0B3: "CKR_SESSION_HANDLE_INVALID",
    0x0B5: "CKR_SESSION_READ_ONLY",
    0x0B6: "CKR_SESSION_EXISTS",
    0x0C0: "CKR_SIGNATURE_INVALID",
    0x0C1: "CKR_SIGNATURE_LEN_RANGE",
    0x0D0: "CKR_TEMPLATE_INCOMPLETE",
    0x0D1: "CKR_TEMPLATE_INCONSISTENT",
    0x0E0: "CKR_TOKEN_NOT_PRESENT",
    0x0E1: "CKR_TOKEN_NOT_RECOGNIZED",
    0x0E2: "CKR_TOKEN_WRITE_PROTECTED",
    0x0F0: "CKR_UNWRAPPING_KEY_HANDLE_INVALID",
    0x0F1: "CKR_UNWRAPPING_KEY_SIZE_RANGE",
    0x0F2: "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT",
    0x100: "CKR_USER_ALREADY_LOGGED_IN",
    0x101: "CKR_USER_NOT_LOGGED_IN",
    0x102: "CKR_USER_PIN_NOT_INITIALIZED",
    0x103: "CKR_USER_TYPE_INVALID",
    0x104: "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
    0x110: "CKR_WRAPPED_KEY_INVALID",
    0x112: "CKR_WRAPPED_KEY_LEN_RANGE",
    0x113: "CKR_WRAPPING_KEY_HANDLE_INVALID",
    0x114: "CKR_WRAPPING_KEY_SIZE_RANGE",
    0x115: "CKR_WRAPPING_KEY_TYPE_INCONSISTENT",
    0x130: "CKR_DOMAIN_PARAMS_INVALID",
    0x140: "CKR_CURVE_NOT_SUPPORTED",
    0x150: "CKR_BUFFER_TOO_SMALL",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED",
    0x191: "CKR_CRYPTOKI_ALREADY_INITIALIZED",
}
CODES = {name: code for code, name in NAMES.items()}

GONE = frozenset(
    CODES[name]
    for name in (
        "CKR_SLOT_ID_INVALID",
        "CKR_GENERAL_ERROR",
        "CKR_FUNCTION_FAILED",
        "CKR_DEVICE_ERROR",
        "CKR_DEVICE_REMOVED",
        "CKR_SESSION_CLOSED",
        "CKR_SESSION_HANDLE_INVALID",
        "CKR_TOKEN_NOT_PRESENT",
        "CKR_TOKEN_NOT_RECOGNIZED",
        "CKR_USER_NOT_LOGGED_IN",
        "CKR_CRYPTOKI_NOT_INITIALIZED",
        "CKR_OPERATION_ACTIVE",  # the session is out of step: an answer was lost on the way
        "CKR_OPERATION_NOT_INITIALIZED",
        "CKR_KEY_HANDLE_INVALID",  # a handle of this generation names nothing: the token's objects went with it
        "CKR_OBJECT_HANDLE_INVALID",
        "CKR_UNWRAPPING_KEY_HANDLE_INVALID",
        "CKR_WRAPPING_KEY_HANDLE_INVALID",
    )
)
BUSY = frozenset(
    CODES[name]
    for name in ("CKR_HOST_MEMORY", "CKR_DEVICE_MEMORY", "CKR_SESSION_COUNT", "CKR_FUNCTION_CANCELED", "CKR_CANCEL")
)
LOGIN = frozenset(code for code, name in NAMES.items() if name.startswith("CKR_PIN_")) | {
    CODES["CKR_USER_PIN_NOT_INITIALIZED"]
}


class PinRefusedError(LoginError):
    """The token refused a PIN at a login: nobody may try this PIN again by itself."""


class LoginLostError(LoginError):
    """A session that was logged in heard of its PIN in the midst of its work; the PIN itself was not tried."""


LOST = TokenUnreachableError, LoginLostError
"""What ends a session in the midst of its work, whatever becomes of the token."""


def name(code: int) -> str:
    """Name a return value; one that the standard does not name keeps its number."""
    return NAMES.get(code, f"CKR_{code:#010x}")


def error(code: int, operation: str) -> HsmkmError:
    """Make the error for a return value of an operation, where the context adds nothing to it."""
    text = f"{operation} failed with {name(code)}"
    if code in BUSY:
        return TokenBusyError(text, hint="the token is out of memory or sessions; try again later")
    if code in GONE:
        return TokenUnreachableError(text, hint="check that the token is reachable: hsmkm token doctor")
    if code in LOGIN:
        kind = PinRefusedError if operation == "C_Login" else LoginLostError
        return kind(text, hint="check the PIN source; the PIN is not tried again, lest the token lock itself")
    return TokenRefusedError(text, hint="what this token can do is shown by: hsmkm token doctor")


def integrity_error(code: int, operation: str, what: str) -> IntegrityError:
    """Make the error for a return value with which this token says that its input was altered."""
    return IntegrityError(f"{what}: {operation} answered {name(code)}", hint="it was altered, or another key made it")
