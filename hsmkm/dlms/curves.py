"""Points and signatures on the curves of suites 1 and 2, checked before anybody computes with them.

P-256 and P-384 of NIST SP 800-186: y^2 = x^3 - 3x + b over a prime field, cofactor 1. Everything here is public.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsmkm.dlms.suspicion import BadPointError, BadSignatureError
from hsmkm.dlms.types import SecuritySuite


@dataclass(frozen=True, slots=True)
class _Curve:
    prime: int
    b: int
    order: int


_P256 = _Curve(
    prime=2**256 - 2**224 + 2**192 + 2**96 - 1,
    b=0x5AC635D8_AA3A93E7_B3EBBD55_769886BC_651D06B0_CC53B0F6_3BCE3C3E_27D2604B,
    order=0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551,
)
_P384 = _Curve(
    prime=2**384 - 2**128 - 2**96 + 2**32 - 1,
    b=0xB3312FA7_E23EE7E4_988E056B_E3F82D19_181D9C6E_FE814112_0314088F_5013875A_C656398D_8A2ED19D_2A85C8ED_D3EC2AEF,
    order=0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFF_C7634D81_F4372DDF_581A0DB2_48B0A77A_ECEC196A_CCC52973,
)


def check_point(suite: SecuritySuite, point: bytes) -> None:
    """Check X || Y; raises IntegrityError unless it is a point of the suite's curve, RefusedError for suite 0."""
    curve = _P384 if suite is SecuritySuite.SUITE_2 else _P256
    if len(point) != suite.point_octets:
        raise BadPointError(f"a point of suite {int(suite)} has {suite.point_octets} octets, not {len(point)}")
    x, y = _halves(point)
    if x >= curve.prime or y >= curve.prime or (y * y - (x * x - 3) * x - curve.b) % curve.prime:
        raise BadPointError("the point is not on the curve of the security suite")


def check_signature(suite: SecuritySuite, raw: bytes) -> None:
    """Check the form of r || s, each from 1 to the order - 1; raises IntegrityError, RefusedError for suite 0."""
    curve = _P384 if suite is SecuritySuite.SUITE_2 else _P256
    if len(raw) != suite.point_octets:
        raise BadSignatureError(f"a signature of suite {int(suite)} has {suite.point_octets} octets, not {len(raw)}")
    if not all(0 < half < curve.order for half in _halves(raw)):
        raise BadSignatureError("r or s of the signature is out of range")


def _halves(octets: bytes) -> tuple[int, int]:
    middle = len(octets) // 2
    return int.from_bytes(octets[:middle], "big"), int.from_bytes(octets[middle:], "big")
