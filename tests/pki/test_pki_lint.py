"""What the project issues, judged by pkilint, which is not ours, and by our own rules for files of anybody."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import RefusedError
from hsmkm.pki import pkilint
from hsmkm.pki.authority import Authority, create_issuing
from hsmkm.pki.conformance import certificate_faults, crl_faults
from hsmkm.pki.pkilint import LintFinding
from hsmkm.pki.profiles import EARLIER_ARC, KNOWN_ARCS, POLICY_ARC
from hsmkm.pki.requests import build_request, check_request
from hsmkm.pki.trust import TrustStore

if TYPE_CHECKING:
    from tests.pki.conftest import Hierarchy

TITLE = "4D4D4D0000BC614E"
NAMES = ("dc-1.example", "192.0.2.7", "2001:db8::7")
LEAVES = ("digital-signature", "key-agreement", "tls", "package-signing")
OWN_ARC = "1.3.6.1.4.1.32473.5"
"""Under the number that is for documentation (RFC 5612)."""


def everything(tree: Hierarchy) -> Iterator[x509.Certificate | x509.CertificateRevocationList]:
    curve = tree.root.signer.curve
    for authority in (tree.root, tree.issuing, tree.package_issuing):
        yield authority.certificate
        yield tree.crl(authority)
    for name in LEAVES:
        leaf, key = tree.leaf(name, names=NAMES if name == "tls" else (), curve=curve)
        yield leaf
    yield tree.crl(tree.package_issuing, leaf, number=2)
    request = check_request(
        build_request(key, "key-agreement", TITLE).public_bytes(Encoding.DER), "key-agreement", TITLE
    )
    yield tree.issuing.issue(request, tree.now, without_end=True)


def authorities(tree: Hierarchy) -> list[x509.Certificate]:
    return [tree.root.certificate, *tree.chain]


def forged(tree: Hierarchy) -> x509.Certificate:
    """Make one that is signed by the authority, and wrong: for signatures, and an authority too."""
    leaf, _ = tree.leaf()
    builder = x509.CertificateBuilder().subject_name(leaf.subject).issuer_name(leaf.issuer)
    builder = builder.public_key(ec.generate_private_key(ec.SECP256R1()).public_key()).serial_number(5)
    builder = builder.not_valid_before(tree.now).not_valid_after(tree.now + timedelta(days=1))
    for one in leaf.extensions:
        if not isinstance(one.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(one.value, one.critical)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=False)
    return builder.sign(tree.issuing.signer, hashes.SHA256())


@pytest.mark.slow
@pytest.mark.parametrize("curve", ["hierarchy", "hierarchy_384"])
def test_pkilint_finds_nothing_in_what_is_issued(curve: str, request: pytest.FixtureRequest) -> None:
    tree: Hierarchy = request.getfixturevalue(curve)
    found = [pkilint.findings(one) for one in everything(tree)]
    assert found == [[]] * 12


def test_pkilint_finds_what_is_wrong(hierarchy: Hierarchy) -> None:
    found = [one.text for one in pkilint.findings(forged(hierarchy)) if one.is_error]
    assert any("pkix.basic_constraints_extension_not_critical" in text for text in found), found


def test_pkilint_cannot_read_the_earlier_arc_which_is_why_there_is_another(hierarchy: Hierarchy) -> None:
    leaf = under(hierarchy, EARLIER_ARC)[0]
    assert [one.severity for one in pkilint.findings(leaf)] == ["FATAL"]


def test_a_severity_under_an_error_breaks_no_rule() -> None:
    assert [LintFinding(one, "").is_error for one in ("FATAL", "ERROR", "WARNING", "NOTICE")] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("curve", ["hierarchy", "hierarchy_384"])
def test_what_is_issued_fits_a_profile_also_as_a_file(curve: str, request: pytest.FixtureRequest) -> None:
    tree: Hierarchy = request.getfixturevalue(curve)
    for one in everything(tree):
        if isinstance(one, x509.Certificate):
            assert certificate_faults(one, authorities(tree)) == []
        else:
            assert crl_faults(one, authorities(tree)) == []


def test_a_certificate_that_fits_no_profile_is_told_what_keeps_it_from_the_nearest(hierarchy: Hierarchy) -> None:
    found = certificate_faults(forged(hierarchy), authorities(hierarchy))
    assert found == [
        "as digital-signature: the extension 2.5.29.14 is missing",
        "as digital-signature: the extension 2.5.29.19 has no place in the profile",
    ]


def test_an_issuer_that_is_not_at_hand_is_a_fault(hierarchy: Hierarchy, hierarchy_384: Hierarchy) -> None:
    leaf, _ = hierarchy.leaf()
    reason = "its issuer 'Test issuing' is not at hand, or did not sign it"
    assert certificate_faults(leaf, authorities(hierarchy_384)) == [reason]
    assert crl_faults(hierarchy.crl(hierarchy.issuing), authorities(hierarchy_384)) == [reason]


def test_a_list_that_is_not_as_ours_are_is_told_why(hierarchy: Hierarchy) -> None:
    builder = x509.CertificateRevocationListBuilder().issuer_name(hierarchy.issuing.certificate.subject)
    builder = builder.last_update(hierarchy.now).next_update(hierarchy.now + timedelta(days=1))
    signer = hierarchy.issuing.signer
    crl = builder.add_extension(x509.CRLNumber(3), critical=True).sign(signer, hashes.SHA256())
    assert crl_faults(crl, authorities(hierarchy)) == [
        "the extension 2.5.29.20 is critical",
        "the extension 2.5.29.35 is missing",
    ]


def under(tree: Hierarchy, arc: str) -> tuple[x509.Certificate, Authority]:
    """Issue a certificate by an authority whose policies stand under an arc; give both."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = create_issuing(tree.root, "issuing", "Test other arc", key.public_key(), tree.now, arc)
    request = check_request(build_request(key, "tls", TITLE).public_bytes(Encoding.DER), "tls")
    authority = Authority(key, made, lambda _: None)
    return authority.issue(request, tree.now), authority


@pytest.mark.parametrize("arc", [POLICY_ARC, EARLIER_ARC, OWN_ARC])
def test_a_certificate_has_its_policies_under_the_arc_of_its_authority(hierarchy: Hierarchy, arc: str) -> None:
    leaf, issuing = under(hierarchy, arc)
    policies = leaf.extensions.get_extension_for_class(x509.CertificatePolicies).value
    assert [one.policy_identifier.dotted_string for one in policies] == [f"{arc}.1.2"]
    assert certificate_faults(leaf, [issuing.certificate, hierarchy.root.certificate]) == []


@pytest.mark.parametrize(
    ("arc", "understood", "accepted"),
    [
        (POLICY_ARC, KNOWN_ARCS, True),
        (EARLIER_ARC, KNOWN_ARCS, True),
        (OWN_ARC, KNOWN_ARCS, False),
        (OWN_ARC, (OWN_ARC, *KNOWN_ARCS), True),
    ],
)
def test_trust_understands_the_arcs_that_it_is_told(
    hierarchy: Hierarchy, arc: str, understood: tuple[str, ...], *, accepted: bool
) -> None:
    leaf, issuing = under(hierarchy, arc)
    trust = TrustStore((hierarchy.root.certificate,), (issuing.certificate,), lists(hierarchy, issuing), understood)
    if accepted:
        trust.check(leaf, (), "tls", hierarchy.now, TITLE)
        return
    with pytest.raises(RefusedError) as raised:
        trust.check(leaf, (), "tls", hierarchy.now, TITLE)
    assert raised.value.reasons == (
        f"the certificate of {TITLE!r} lacks the policy of tls",
        "the certificate of 'Test other arc' lacks the policy of issuing",
        "the certificate of 'Test other arc' lacks the policy of tls",
    )


def test_a_path_has_its_policies_under_one_arc(hierarchy: Hierarchy) -> None:
    leaf, issuing = under(hierarchy, POLICY_ARC)
    renewed = create_issuing(
        hierarchy.root, "issuing", "Test other arc", issuing.signer.public_key(), hierarchy.now, EARLIER_ARC
    )
    trust = TrustStore((hierarchy.root.certificate,), (renewed,), lists(hierarchy, issuing))
    with pytest.raises(RefusedError) as raised:
        trust.check(leaf, (), "tls", hierarchy.now, TITLE)
    assert "the certificate of 'Test other arc' lacks the policy of tls" in raised.value.reasons


def lists(tree: Hierarchy, issuing: Authority) -> tuple[x509.CertificateRevocationList, ...]:
    return tree.crl(tree.root), tree.crl(issuing)
