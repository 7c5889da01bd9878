from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError, IntegrityError, PolicyError, RefusedError
from hsmkm.pki.certificates import parse_certificates, write_certificates
from hsmkm.pki.revocation import Revocation, build_crl, parse_crl, verify_crl
from hsmkm.pki.tls_key import create_tls_key, load_tls_key
from hsmkm.pki.trust import TrustStore

if TYPE_CHECKING:
    from tests.pki.conftest import Hierarchy

DAY = timedelta(days=1)


def reasons(
    trust: TrustStore,
    leaf: x509.Certificate,
    chain: list[x509.Certificate],
    profile: str,
    now: datetime,
    owner: str | None = None,
) -> str:
    with pytest.raises(RefusedError) as raised:
        trust.check(leaf, chain, profile, now, owner)
    return "\n".join(raised.value.reasons)


@pytest.mark.parametrize("profile", ["digital-signature", "key-agreement", "tls", "package-signing"])
def test_a_good_certificate_is_accepted_for_its_profile_and_for_no_other(hierarchy: Hierarchy, profile: str) -> None:
    leaf, _key = hierarchy.leaf(profile)
    trust = hierarchy.trust()
    trust.check(leaf, hierarchy.chain, profile, hierarchy.now, "4D4D4D0000BC614E")
    for other in {"digital-signature", "key-agreement", "tls", "package-signing", "issuing"} - {profile}:
        assert reasons(trust, leaf, hierarchy.chain, other, hierarchy.now)


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_a_serial_number_below_zero_is_no_certificates(hierarchy: Hierarchy, encoding: Encoding) -> None:
    der = hierarchy.leaf("tls")[0].public_bytes(Encoding.DER)
    serial = der.index(bytes.fromhex("a003020102")) + 5
    negative = der[: serial + 2] + bytes([der[serial + 2] | 0x80]) + der[serial + 3 :]
    data = negative if encoding is Encoding.DER else ssl.DER_cert_to_PEM_cert(negative).encode()
    with pytest.raises(InputError, match="not a certificate"):
        parse_certificates(data)


def test_a_p384_hierarchy_is_accepted(hierarchy_384: Hierarchy) -> None:
    leaf, _key = hierarchy_384.leaf(curve=ec.SECP384R1())
    hierarchy_384.trust().check(leaf, hierarchy_384.chain, "digital-signature", hierarchy_384.now)


def test_a_meter_certificate_is_refused_for_package_signing_by_usage_policy_and_authority(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf("digital-signature")
    found = reasons(hierarchy.trust(), leaf, hierarchy.chain, "package-signing", hierarchy.now)
    assert "lacks the policy of package-signing" in found


def test_a_certificate_is_refused_before_and_after_its_time(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf("tls")
    early = reasons(hierarchy.trust(), leaf, hierarchy.chain, "tls", hierarchy.now - DAY)
    late = reasons(hierarchy.trust(), leaf, hierarchy.chain, "tls", hierarchy.now + 91 * DAY)
    assert "is not valid yet" in early
    assert "has expired" in late


def test_a_revoked_certificate_is_refused(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    trust = hierarchy.trust(hierarchy.crl(hierarchy.root), hierarchy.crl(hierarchy.issuing, leaf))
    assert "is revoked" in reasons(trust, leaf, hierarchy.chain, "digital-signature", hierarchy.now)


def test_a_revoked_authority_is_refused(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    trust = hierarchy.trust(
        hierarchy.crl(hierarchy.root, hierarchy.issuing.certificate), hierarchy.crl(hierarchy.issuing)
    )
    found = reasons(trust, leaf, hierarchy.chain, "digital-signature", hierarchy.now)
    assert "the certificate of 'Test issuing' is revoked" in found


def test_the_newest_list_counts(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    lists = (hierarchy.crl(hierarchy.issuing, number=1), hierarchy.crl(hierarchy.issuing, leaf, number=2))
    trust = hierarchy.trust(hierarchy.crl(hierarchy.root), *lists)
    assert "is revoked" in reasons(trust, leaf, hierarchy.chain, "digital-signature", hierarchy.now)


def test_a_missing_list_refuses(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    trust = hierarchy.trust(hierarchy.crl(hierarchy.issuing))
    found = reasons(trust, leaf, hierarchy.chain, "digital-signature", hierarchy.now)
    assert found == "there is no revocation list of 'Test root'"


def test_a_list_past_its_date_refuses(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    found = reasons(hierarchy.trust(), leaf, hierarchy.chain, "digital-signature", hierarchy.now + 8 * DAY)
    assert "the revocation list of 'Test root' is past its date" in found
    assert "the revocation list of 'Test issuing' is past its date" in found


def test_a_list_signed_by_another_does_not_count(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(IntegrityError):
        build_crl(stranger, hierarchy.issuing.certificate, [], 1, hierarchy.now, hierarchy.now + DAY)
    builder = x509.CertificateRevocationListBuilder().issuer_name(hierarchy.issuing.certificate.subject)
    builder = builder.last_update(hierarchy.now).next_update(hierarchy.now + DAY)
    forged = builder.add_extension(x509.CRLNumber(9), critical=False).sign(stranger, hashes.SHA256())
    trust = hierarchy.trust(hierarchy.crl(hierarchy.root), forged)
    found = reasons(trust, leaf, hierarchy.chain, "digital-signature", hierarchy.now)
    assert "there is no revocation list of 'Test issuing'" in found


def test_another_hierarchy_of_the_same_names_has_no_path(
    hierarchy: Hierarchy, make_hierarchy: Callable[[ec.EllipticCurve, datetime], Hierarchy]
) -> None:
    other = make_hierarchy(ec.SECP256R1(), hierarchy.now)
    leaf, _key = other.leaf()
    chain = [*other.chain, other.root.certificate]
    found = reasons(hierarchy.trust(), leaf, chain, "digital-signature", hierarchy.now)
    assert found == "no path leads to a placed trust anchor"


def test_a_sent_root_is_never_an_anchor(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    trust = TrustStore((), (), hierarchy.crls())
    chain = [*hierarchy.chain, hierarchy.root.certificate]
    assert "no path" in reasons(trust, leaf, chain, "digital-signature", hierarchy.now)


def test_a_leaf_cannot_certify_another(hierarchy: Hierarchy) -> None:
    middle, key = hierarchy.leaf("digital-signature", "4D4D4D0000000001")
    child = ec.generate_private_key(ec.SECP256R1())
    good, _key = hierarchy.leaf()
    builder = x509.CertificateBuilder().subject_name(good.subject).issuer_name(middle.subject)
    builder = builder.public_key(child.public_key()).serial_number(77)
    builder = builder.not_valid_before(hierarchy.now).not_valid_after(hierarchy.now + DAY)
    for one in good.extensions:
        builder = builder.add_extension(one.value, one.critical)
    forged = builder.sign(key, hashes.SHA256())
    found = reasons(hierarchy.trust(), forged, [*hierarchy.chain, middle], "digital-signature", hierarchy.now)
    assert "the key usage of the certificate of '4D4D4D0000000001' is not that of issuing" in found
    assert "is not that of an authority" in found


def test_the_owner_is_compared(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    found = reasons(hierarchy.trust(), leaf, hierarchy.chain, "digital-signature", hierarchy.now, "4D4D4D0000BC614F")
    assert found == "the certificate belongs to '4D4D4D0000BC614E' and not to '4D4D4D0000BC614F'"


def test_all_reasons_come_at_once(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf("tls")
    trust = hierarchy.trust(hierarchy.crl(hierarchy.root), hierarchy.crl(hierarchy.issuing, leaf))
    found = reasons(trust, leaf, hierarchy.chain, "key-agreement", hierarchy.now + 100 * DAY, "4D4D4D0000BC614F")
    for one in (
        "has expired",
        "is revoked",
        "past its date",
        "key usage",
        "extended key usage",
        "policy",
        "belongs to",
    ):
        assert one in found


def test_a_folder_is_loaded_as_it_lies(hierarchy: Hierarchy, tmp_path: Path) -> None:
    leaf, _key = hierarchy.leaf()
    write_certificates(tmp_path / "anchors.pem", [hierarchy.root.certificate])
    write_certificates(tmp_path / "intermediates.pem", hierarchy.chain)
    (tmp_path / "crl").mkdir()
    for number, crl in enumerate(hierarchy.crls()):
        (tmp_path / "crl" / f"{number}.crl").write_bytes(crl.public_bytes(Encoding.DER))
    TrustStore.load(tmp_path).check(leaf, [], "digital-signature", hierarchy.now)
    (tmp_path / "crl" / "x.crl").write_bytes(b"\x30\x00")
    with pytest.raises(InputError):
        TrustStore.load(tmp_path)


def test_a_list_survives_its_encoding_and_names_its_reason(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf()
    crl = parse_crl(hierarchy.crl(hierarchy.issuing, leaf).public_bytes(Encoding.DER))
    verify_crl(crl, hierarchy.issuing.certificate)
    entry = crl.get_revoked_certificate_by_serial_number(leaf.serial_number)
    assert entry is not None
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise


def test_a_wrong_list_is_not_signed(hierarchy: Hierarchy) -> None:
    twice = [Revocation(5, hierarchy.now), Revocation(5, hierarchy.now), Revocation(-1, hierarchy.now + DAY)]
    with pytest.raises(RefusedError) as raised:
        build_crl(hierarchy.issuing.signer, hierarchy.issuing.certificate, twice, -1, hierarchy.now, hierarchy.now)
    assert len(raised.value.reasons) == 5


def test_a_tls_key_lies_in_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "tls" / "key.pem"
    key = create_tls_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_tls_key(path).public_key() == key.public_key()
    with pytest.raises(RefusedError):
        create_tls_key(path)
    path.chmod(0o640)
    with pytest.raises(PolicyError, match="0640"):
        load_tls_key(path)


def revoked_on(tree: Hierarchy, leaf: x509.Certificate, reason: x509.ReasonFlags, days: int) -> TrustStore:
    """Trust with lists of day 100, on which the leaf was taken back on a day before."""
    then = tree.now + 100 * DAY
    entry = Revocation(leaf.serial_number, tree.now + days * DAY, reason)
    issuing = build_crl(tree.issuing.signer, tree.issuing.certificate, [entry], 2, then, then + DAY)
    return tree.trust(tree.crl(tree.root, now=then), issuing)


def test_what_a_certificate_signed_in_its_time_holds_after_it(hierarchy: Hierarchy) -> None:
    leaf, _key = hierarchy.leaf("tls")
    later = hierarchy.now + 100 * DAY
    trust = hierarchy.trust(hierarchy.crl(hierarchy.root, now=later), hierarchy.crl(hierarchy.issuing, now=later))
    assert "has expired" in reasons(trust, leaf, hierarchy.chain, "tls", later)
    trust.check(leaf, hierarchy.chain, "tls", later, signed=hierarchy.now + DAY)
    for outside in (-1, 95):
        with pytest.raises(RefusedError):
            trust.check(leaf, hierarchy.chain, "tls", later, signed=hierarchy.now + outside * DAY)


@pytest.mark.parametrize(
    ("reason", "day", "holds"),
    [
        (x509.ReasonFlags.superseded, 50, True),
        (x509.ReasonFlags.superseded, 5, False),
        (x509.ReasonFlags.unspecified, 50, False),
        (x509.ReasonFlags.key_compromise, 50, False),
    ],
)
def test_a_later_revocation_undoes_a_signature_unless_it_is_harmless(
    hierarchy: Hierarchy, reason: x509.ReasonFlags, day: int, *, holds: bool
) -> None:
    leaf, _key = hierarchy.leaf()
    trust, later, signed = (
        revoked_on(hierarchy, leaf, reason, day), hierarchy.now + 100 * DAY, hierarchy.now + 10 * DAY,
    )  # fmt: skip
    assert "is revoked" in reasons(trust, leaf, hierarchy.chain, "digital-signature", later)
    if holds:
        trust.check(leaf, hierarchy.chain, "digital-signature", later, signed=signed)
    else:
        with pytest.raises(RefusedError, match="not accepted"):
            trust.check(leaf, hierarchy.chain, "digital-signature", later, signed=signed)
