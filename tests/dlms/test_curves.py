from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import curves
from hsmkm.dlms.types import SecuritySuite
from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.simulator.key_pairs import generate, point_of, public_of

SUITES = [SecuritySuite.SUITE_1, SecuritySuite.SUITE_2]
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@pytest.mark.parametrize("suite", SUITES)
def test_points_that_openssl_makes_are_on_the_curve(suite: SecuritySuite) -> None:
    for _ in range(5):
        curves.check_point(suite, point_of(generate(suite).public_key()))


def test_published_points_are_on_the_curve(vectors: dict[str, Any]) -> None:
    vector = vectors["key_agreement_ephemeral_unified"][0]
    for name in ("client_sign_q", "client_epk", "server_epk"):
        curves.check_point(SecuritySuite.SUITE_1, bytes.fromhex(vector[name]))


@pytest.mark.parametrize("suite", SUITES)
def test_other_octets_are_no_points(suite: SecuritySuite) -> None:
    point = point_of(generate(suite).public_key())
    size = suite.point_octets
    for octets in (bytes(size), point[:-1], point + b"\0", b"\xff" * size, point[:-1] + bytes([point[-1] ^ 1]), b""):
        with pytest.raises(IntegrityError):
            curves.check_point(suite, octets)


@given(st.binary(min_size=64, max_size=64))
def test_openssl_agrees_on_what_a_point_is(octets: bytes) -> None:
    try:
        public_of(SecuritySuite.SUITE_1, octets)
    except IntegrityError:
        with pytest.raises(IntegrityError):
            curves.check_point(SecuritySuite.SUITE_1, octets)
    else:
        curves.check_point(SecuritySuite.SUITE_1, octets)


@pytest.mark.parametrize(("suite", "order"), [(SUITES[0], P256_ORDER), (SUITES[1], P384_ORDER)])
def test_halves_of_a_signature_lie_between_zero_and_the_order(suite: SecuritySuite, order: int) -> None:
    size = suite.coordinate_octets
    one, last, past = (value.to_bytes(size, "big") for value in (1, order - 1, order))
    curves.check_signature(suite, one + last)
    for raw in (bytes(size) + one, one + bytes(size), past + one, one + past, one, one + one + b"\0"):
        with pytest.raises(IntegrityError):
            curves.check_signature(suite, raw)


def test_a_key_of_the_largest_private_value_is_on_the_curve() -> None:
    private = ec.derive_private_key(P256_ORDER - 1, ec.SECP256R1())
    curves.check_point(SecuritySuite.SUITE_1, point_of(private.public_key()))


def test_suite_0_has_no_public_keys() -> None:
    for check in (curves.check_point, curves.check_signature):
        with pytest.raises(RefusedError, match="no public keys"):
            check(SecuritySuite.SUITE_0, bytes(64))
