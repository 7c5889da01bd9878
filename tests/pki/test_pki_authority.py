from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.pki.authority import Authority, Draft, create_root, sign
from hsmkm.pki.certificates import fingerprint, holder, read_certificates, write_certificates
from hsmkm.pki.lint import Linted, Plan, expected_extensions, lint
from hsmkm.pki.profiles import NO_END, PROFILES, hash_for, profile
from hsmkm.pki.requests import CheckedRequest, build_request, check_request, subject_name
from hsmkm.pki.to_be_signed import encode, with_signature

if TYPE_CHECKING:
    from tests.pki.conftest import Hierarchy

ROOT = Path(__file__).resolve().parents[2]
SMUGGLE = """\
from dataclasses import replace
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from hsmkm.pki.authority import sign
from hsmkm.pki.lint import Linted, Plan, lint

def smuggle(certificate: x509.Certificate, plan: Plan, signer: EllipticCurvePrivateKey) -> None:
    sign(certificate, signer)
    sign(plan, signer)
    sign(Linted(plan, certificate), signer)
    sign(Linted(plan, certificate, object()), signer)
    sign(replace(lint(certificate, plan), certificate=certificate), signer)
    sign(lint(certificate, plan), signer)
"""
TITLE = "4D4D4D0000BC614E"
NAMES = ("dc-1.example", "192.0.2.7")


def checked_request(
    key: ec.EllipticCurvePrivateKey, profile: str = "digital-signature", subject: str = TITLE
) -> CheckedRequest:
    return check_request(build_request(key, profile, subject).public_bytes(Encoding.DER), profile)


def pem(path: Path, *certificates: x509.Certificate | x509.CertificateRevocationList) -> str:
    path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    return str(path)


@pytest.mark.parametrize("name", ["digital-signature", "key-agreement", "tls", "package-signing"])
@pytest.mark.parametrize("curve", ["hierarchy", "hierarchy_384"])
def test_openssl_accepts_each_chain_in_its_strict_mode_with_every_list(
    name: str, curve: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tree: Hierarchy = request.getfixturevalue(curve)
    leaf, _key = tree.leaf(name, names=NAMES if name == "tls" else ())
    authority = tree.package_issuing if name == "package-signing" else tree.issuing
    done = subprocess.run(
        [
            "openssl", "verify", "-x509_strict", "-crl_check_all", "-policy_check",
            "-attime", str(int(tree.now.timestamp()) + 60),
            "-CAfile", pem(tmp_path / "root.pem", tree.root.certificate),
            "-CRLfile", pem(tmp_path / "crl.pem", tree.crl(tree.root), tree.crl(authority)),
            "-untrusted", pem(tmp_path / "issuing.pem", authority.certificate),
            pem(tmp_path / "leaf.pem", leaf),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dlms_certificate_holds_the_title_and_the_one_usage(hierarchy: Hierarchy) -> None:
    leaf, key = hierarchy.leaf("key-agreement", TITLE)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert holder(leaf) == TITLE
    assert usage.critical
    assert usage.value == profile("key-agreement").key_usage()
    assert usage.value.key_agreement
    assert not usage.value.digital_signature
    assert leaf.public_key() == key.public_key()
    assert leaf.serial_number.bit_length() == 159
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)


def test_only_authorities_have_critical_basic_constraints(hierarchy: Hierarchy) -> None:
    for authority, length in ((hierarchy.root, 1), (hierarchy.issuing, 0), (hierarchy.package_issuing, 0)):
        found = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (found.critical, found.value) == (True, x509.BasicConstraints(ca=True, path_length=length))


def test_every_certificate_is_recorded_before_it_is_signed(hierarchy: Hierarchy) -> None:
    events: list[str] = []

    class Signer:
        curve = hierarchy.issuing.signer.curve

        def sign(self, data: bytes, algorithm: ec.ECDSA) -> bytes:
            events.append("signed")
            return bytes(hierarchy.issuing.signer.sign(data, algorithm))

    def record(linted: Linted) -> None:
        events.append(f"recorded {linted.plan.serial}")

    authority = Authority(Signer(), hierarchy.issuing.certificate, record)  # type: ignore[arg-type]
    key = ec.generate_private_key(ec.SECP256R1())
    checked = check_request(
        build_request(key, "digital-signature", TITLE).public_bytes(Encoding.DER), "digital-signature"
    )
    leaf = authority.issue(checked, hierarchy.now)
    assert events == [f"recorded {leaf.serial_number}", "signed"]


def test_a_record_that_fails_leaves_nothing_signed(hierarchy: Hierarchy) -> None:
    class NeverAsked:
        def sign(self, *_arguments: object) -> bytes:
            raise AssertionError("signed without a record")

    def full(_linted: Linted) -> None:
        raise RefusedError("the serial number is taken")

    key = ec.generate_private_key(ec.SECP256R1())
    checked = check_request(
        build_request(key, "digital-signature", TITLE).public_bytes(Encoding.DER), "digital-signature"
    )
    with pytest.raises(RefusedError, match="taken"):
        Authority(NeverAsked(), hierarchy.issuing.certificate, full).issue(checked, hierarchy.now)  # type: ignore[arg-type]


def test_what_is_signed_is_what_was_linted(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    assert hierarchy.recorded[-1].tbs == leaf.tbs_certificate_bytes
    assert hierarchy.recorded[-1].certificate.signature != leaf.signature


def test_nobody_makes_a_linted_but_lint(hierarchy: Hierarchy) -> None:
    made = hierarchy.recorded[0]
    with pytest.raises(TypeError, match="only lint"):
        Linted(made.plan, made.certificate, object())  # type: ignore[arg-type] # what the type forbids
    with pytest.raises(ValueError, match="made_by"):
        replace(made, certificate=hierarchy.root.certificate)  # type: ignore[call-arg] # as above


def test_what_was_not_linted_is_not_signed(hierarchy: Hierarchy) -> None:
    class LooksLinted:
        plan = hierarchy.recorded[0].plan
        tbs = b"anything"

    class NeverAsked:
        def sign(self, *_arguments: object) -> bytes:
            raise AssertionError("signed what was not linted")

    for wrong in (LooksLinted(), hierarchy.root.certificate, LooksLinted.plan):
        with pytest.raises(TypeError, match="only what lint"):
            sign(wrong, NeverAsked())  # type: ignore[arg-type] # what the type forbids


def test_mypy_names_every_way_around_the_lint(tmp_path: Path) -> None:
    snippet = tmp_path / "smuggle.py"
    snippet.write_text(SMUGGLE)
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty", "--no-incremental",
            "--follow-imports=silent", str(snippet),
        ],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    found = re.findall(r"smuggle\.py:(\d+): error: .*\[([a-z-]+)\]", done.stdout)
    assert found == [("8", "arg-type"), ("9", "arg-type"), ("10", "call-arg"), ("11", "arg-type"), ("12", "call-arg")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subject": "4D4D4D0000BC614F"}, "the subject"),
        ({"serial": 5}, "serial number"),
        ({"profile": PROFILES["tls"]}, "extension 2.5.29.37 is missing"),
        ({"profile": PROFILES["key-agreement"]}, "extension 2.5.29.15 is not what the profile says"),
        ({"names": ("a.example",)}, "extension 2.5.29.17 is missing"),
    ],
)
def test_lint_names_each_field_that_differs_from_the_plan(
    hierarchy: Hierarchy, change: dict[str, Any], reason: str
) -> None:
    leaf, _key = hierarchy.leaf()
    plan = hierarchy.recorded[-1].plan
    fields = {name: getattr(plan, name) for name in Plan.__slots__}
    assert lint(leaf, plan).tbs == leaf.tbs_certificate_bytes
    with pytest.raises(RefusedError) as raised:
        lint(leaf, Plan(**{**fields, **change}))
    assert any(reason in one for one in raised.value.reasons), raised.value.reasons


def test_an_authority_issues_only_its_own_profiles(hierarchy: Hierarchy) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    checked = check_request(
        build_request(key, "package-signing", "factory").public_bytes(Encoding.DER), "package-signing"
    )
    with pytest.raises(RefusedError, match="does not issue package-signing"):
        hierarchy.issuing.issue(checked, hierarchy.now)
    with pytest.raises(RefusedError, match="does not issue package-signing"):
        hierarchy.root.issue(checked, hierarchy.now)


def test_a_p256_authority_does_not_certify_a_p384_key(hierarchy: Hierarchy) -> None:
    with pytest.raises(RefusedError) as raised:
        hierarchy.leaf(curve=ec.SECP384R1())
    assert "an authority on secp256r1 may not certify a key on secp384r1" in raised.value.reasons


def test_a_p384_authority_certifies_both(hierarchy_384: Hierarchy) -> None:
    for curve in (ec.SECP256R1(), ec.SECP384R1()):
        leaf, _key = hierarchy_384.leaf(curve=curve)
        leaf.verify_directly_issued_by(hierarchy_384.issuing.certificate)


def test_no_certificate_outlives_its_authority(hierarchy: Hierarchy) -> None:
    late = hierarchy.issuing.certificate.not_valid_after_utc - timedelta(days=30)
    leaf, _key = hierarchy.leaf(now=late)
    assert leaf.not_valid_after_utc == hierarchy.issuing.certificate.not_valid_after_utc
    with pytest.raises(RefusedError, match="not valid now"):
        hierarchy.leaf(now=late + timedelta(days=31))


def test_a_signature_of_another_key_never_leaves(hierarchy: Hierarchy) -> None:
    other = Authority(ec.generate_private_key(ec.SECP256R1()), hierarchy.issuing.certificate, lambda _linted: None)
    key = ec.generate_private_key(ec.SECP256R1())
    checked = check_request(
        build_request(key, "digital-signature", TITLE).public_bytes(Encoding.DER), "digital-signature"
    )
    with pytest.raises(IntegrityError):
        other.issue(checked, hierarchy.now)


def test_a_root_on_a_curve_outside_the_suites_is_refused(hierarchy: Hierarchy) -> None:
    with pytest.raises(InputError, match="secp256k1"):
        create_root(ec.generate_private_key(ec.SECP256K1()), "Test root", hierarchy.now, lambda _linted: None)


def test_certificates_are_written_and_read_in_order(hierarchy: Hierarchy, tmp_path: Path) -> None:
    leaf, _key = hierarchy.leaf()
    path = tmp_path / "certificates" / "digital-signature.pem"
    write_certificates(path, [leaf, hierarchy.issuing.certificate])
    assert read_certificates(path) == (leaf, hierarchy.issuing.certificate)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert len(fingerprint(leaf)) == 32


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(InputError, match="'server'"):
        profile("server")


def drafts_of(authority: Authority, requests: Sequence[CheckedRequest], now: datetime) -> list[Draft]:
    plans = [authority.plan(one, now) for one in requests]
    return [Draft(one, plan.serial, encode(plan)) for one, plan in zip(requests, plans, strict=True)]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_drafts_travel_and_are_signed_as_they_were_planned(hierarchy_384: Hierarchy, curve: ec.EllipticCurve) -> None:
    requests = [
        checked_request(ec.generate_private_key(curve), name) for name in ("digital-signature", "key-agreement", "tls")
    ]
    issuing = hierarchy_384.issuing
    drafts: list[Draft] = pickle.loads(pickle.dumps(drafts_of(issuing, requests, hierarchy_384.now)))  # noqa: S301 - our own
    assert [one.request for one in drafts] == requests
    assert all(one.request.profile is asked.profile for one, asked in zip(drafts, requests, strict=True))
    for draft, signature in zip(drafts, issuing.sign_drafts(drafts, hierarchy_384.now), strict=True):
        plan = issuing.plan(draft.request, hierarchy_384.now, serial=draft.serial)
        made = x509.load_der_x509_certificate(with_signature(draft.tbs, plan, signature))
        made.verify_directly_issued_by(issuing.certificate)
        assert made.serial_number == draft.serial
        assert made.public_key() == draft.request.public_key


def test_a_draft_that_is_not_what_was_planned_is_not_signed(hierarchy: Hierarchy) -> None:
    class NeverAsked:
        curve = ec.SECP256R1()

        def sign(self, *_arguments: object) -> bytes:
            raise AssertionError("signed what does not fit")

    authority = replace(hierarchy.issuing, signer=NeverAsked())  # type: ignore[arg-type] # never asked
    one, other = (
        checked_request(ec.generate_private_key(ec.SECP256R1()), name) for name in ("digital-signature", "tls")
    )
    draft = drafts_of(authority, [one], hierarchy.now)[0]
    wrong = [
        replace(draft, serial=draft.serial + 1),
        replace(draft, request=other),
        replace(draft, tbs=drafts_of(authority, [other], hierarchy.now)[0].tbs),
    ]
    for each in wrong:
        with pytest.raises(RefusedError, match="does not fit the profile"):
            next(authority.sign_drafts([each], hierarchy.now))
    with pytest.raises(RefusedError, match="does not fit the profile"):
        next(authority.sign_drafts([draft], hierarchy.now + timedelta(seconds=1)))


@pytest.mark.parametrize("tree", ["hierarchy", "hierarchy_384"])
def test_what_is_to_be_signed_is_what_cryptography_builds(tree: str, request: pytest.FixtureRequest) -> None:
    made: Hierarchy = request.getfixturevalue(tree)
    for name in ("digital-signature", "key-agreement", "tls", "package-signing"):
        made.leaf(name, names=("dc-1.example", "192.0.2.7") if name == "tls" else ())
    made.issuing.issue(
        checked_request(ec.generate_private_key(ec.SECP256R1()), "key-agreement"), made.now, without_end=True
    )
    assert {one.plan.profile.name for one in made.recorded} >= {"root", "issuing", "package-issuing", "tls"}
    for linted in made.recorded:
        assert built(linted.plan).tbs_certificate_bytes == encode(linted.plan) == linted.tbs


def built(plan: Plan) -> x509.Certificate:
    """Build what was planned with cryptography, signed by a key of no importance."""
    key = load_der_public_key(plan.key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name(plan.subject))
        .issuer_name(plan.issuer_subject or subject_name(plan.subject))
        .public_key(key)
        .serial_number(plan.serial)
        .not_valid_before(plan.not_before)
        .not_valid_after(plan.not_after)
    )
    for critical, value in expected_extensions(plan):
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(ec.generate_private_key(plan.issuer_key.curve), hash_for(plan.issuer_key.curve))


def test_only_a_device_of_the_dlms_profiles_has_a_certificate_without_an_end(hierarchy: Hierarchy) -> None:
    for name, lacks in (("digital-signature", True), ("key-agreement", True), ("tls", False)):
        request = checked_request(ec.generate_private_key(ec.SECP256R1()), name)
        made = hierarchy.issuing.issue(request, hierarchy.now, without_end=True)
        assert (made.not_valid_after_utc == NO_END) is lacks
        hierarchy.trust().check(made, hierarchy.chain, name, hierarchy.now, TITLE)
