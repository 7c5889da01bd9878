"""Certificate requests (PKCS#10, RFC 2986): made by the holder of a key, checked before an authority looks at them.

A request carries the common name and nothing else; the authority adds every usage from the profile. Only a TLS request
asks for an extension, its subjectAltName.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtensionOID, NameOID

from hsmkm.errors import Fault, InputError
from hsmkm.pki.certificates import UNREADABLE, common_name, is_name, is_title, public_octets
from hsmkm.pki.profiles import HASHES, KEY_AGREEMENT, TLS, CertificateProfile, hash_for, profile
from hsmkm.pki.request_form import form_faults
from hsmkm.pki.stand_in import signer_for_another

MAX_REQUEST = 16 << 10
MAX_NAMES = 16

_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")
"""The PKCS#9 attribute that carries asked-for extensions (RFC 2985 section 5.4.2)."""

_PEM = re.compile(rb"-----BEGIN ((?:NEW )?CERTIFICATE REQUEST)-----\r?\n([A-Za-z0-9+/=\s]*)-----END \1-----")

_DNS = re.compile(r"(?=.{1,253}$)(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request whose every field fits its profile; only `check_request` hands one out.

    It travels between processes; `key` is its SubjectPublicKeyInfo in DER.
    """

    profile: CertificateProfile
    subject: str
    key: bytes
    names: tuple[str, ...]
    der: bytes

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key that is to be certified; it was read before, so that this never fails."""
        key = load_der_public_key(self.key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("a checked request has an elliptic-curve key")
        return key


def build_request(
    signer: ec.EllipticCurvePrivateKey,
    profile_name: str,
    subject: str,
    names: Iterable[str] = (),
    public_key: ec.EllipticCurvePublicKey | None = None,
) -> x509.CertificateSigningRequest:
    """Build a request signed by the key it is for, which proves possession.

    A key-agreement key in a token cannot sign: its request names it in `public_key` and is signed by the same holder's
    digital-signature key.

    `subject` is a system title (16 hex digits) or, where the profile allows it, a name; `names` are the DNS names and
    IP addresses of a TLS service. Raises InputError for what `check_request` would refuse.
    """
    kind, names = profile(profile_name), tuple(names)
    faults = [*_subject_faults(kind, subject), *_names_faults(kind, names), *_other_key_faults(kind, public_key)]
    if faults:
        raise _wrong(faults, "request")
    if public_key is not None:
        signer = signer_for_another(signer, public_key)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name(subject))
    if names:
        builder = builder.add_extension(alternative_names(names), critical=False)
    return builder.sign(signer, hash_for(signer.curve))


def check_request(
    data: bytes,
    profile_name: str,
    subject: str | None = None,
    source: str = "request",
    signed_by: ec.EllipticCurvePublicKey | None = None,
) -> CheckedRequest:
    """Check a request in DER or PEM against a profile and, where given, the subject it must be for.

    `signed_by` is the digital-signature key that signed the request for a key-agreement key of the same holder. Raises
    InputError that names every field that is wrong.
    """
    kind = profile(profile_name)
    if kind.is_authority:
        raise _wrong(["an authority is not made from a request"], source)
    request = _parse(data, source)
    name = common_name(request.subject)
    names, faults = _asked_names(kind, request)
    faults += _subject_faults(kind, name)
    if subject is not None and name is not None and name != subject:
        faults.append(f"the subject is {name!r} and not {subject!r}")
    key, key_faults = _key(request, signed_by)
    faults += key_faults + _other_key_faults(kind, signed_by)
    if faults or key is None or name is None:
        raise _wrong(faults, source)
    return CheckedRequest(kind, name, public_octets(key), names, request.public_bytes(Encoding.DER))


def subject_name(text: str) -> x509.Name:
    """Return the X.501 name with this one common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def alternative_names(names: Iterable[str]) -> x509.SubjectAlternativeName:
    """Return the subjectAltName of DNS names and IP addresses given as text."""
    return x509.SubjectAlternativeName([_general_name(name) for name in names])


def _general_name(text: str) -> x509.GeneralName:
    address = _address(text)
    return x509.DNSName(text) if address is None else x509.IPAddress(address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _parse(data: bytes, source: str) -> x509.CertificateSigningRequest:
    if len(data) > MAX_REQUEST:
        raise _wrong([f"larger than {MAX_REQUEST} octets"], source)
    der = data if data[:1] == b"\x30" else _of_pem(data, source)
    faults = form_faults(der)
    if faults:
        raise _wrong(faults, source)
    try:
        request = x509.load_der_x509_csr(der)
        list(request.subject)
        list(request.attributes)
    except (*UNREADABLE, UnsupportedAlgorithm) as error:
        raise _wrong(["not a PKCS#10 request in DER or PEM"], source) from error
    return request


def _of_pem(data: bytes, source: str) -> bytes:
    """Take the one request out of PEM; nothing else may stand beside it, so that nothing is overlooked."""
    found = _PEM.fullmatch(data.strip())
    try:
        if found:
            return base64.b64decode(b"".join(found[2].split()), validate=True)
    except ValueError:
        pass
    raise _wrong(["not a PKCS#10 request in DER or PEM"], source)


def _subject_faults(kind: CertificateProfile, subject: str | None) -> list[str]:
    if subject is None:
        return ["the subject is not exactly one common name"]
    if kind.subject == "title" and not is_title(subject):
        return [f"the subject {subject!r} is not a system title of 16 hex digits in capitals"]
    if not is_name(subject):
        return ["the subject is not a name of 1 to 64 printable characters"]
    return []


def _names_faults(kind: CertificateProfile, names: tuple[str, ...]) -> list[str]:
    if kind is not TLS:
        return [f"the profile {kind.name} has no subjectAltName"] if names else []
    if len(names) > MAX_NAMES:
        return [f"the subjectAltName holds {len(names)} names, and {MAX_NAMES} are allowed"]
    faults = [
        f"the subjectAltName {name!r} is neither a DNS name in small letters nor an IP address"
        for name in names
        if _address(name) is None and not _DNS.fullmatch(name)
    ]
    if len(set(names)) != len(names):
        faults.append("the subjectAltName holds a name twice")
    return faults


def _asked_names(
    kind: CertificateProfile, request: x509.CertificateSigningRequest
) -> tuple[tuple[str, ...], list[str]]:
    """Read the asked-for subjectAltName, and say what else was asked for."""
    faults = [
        f"the attribute {one.oid.dotted_string} is not allowed"
        for one in request.attributes
        if one.oid != _EXTENSION_REQUEST
    ]
    try:
        extensions = request.extensions
    except (*UNREADABLE, UnsupportedAlgorithm):
        return (), [*faults, "the asked-for extensions cannot be read"]
    names: tuple[str, ...] = ()
    for extension in extensions:
        if extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME and kind is TLS:
            found = list(texts_of(extension.value))
            names = tuple(text for text in found if text)
            if len(names) != len(found):
                faults.append("the subjectAltName holds something else than DNS names and IP addresses")
        else:
            faults.append(f"the asked-for extension {extension.oid.dotted_string} is not allowed")
    return names, faults + _names_faults(kind, names)


def texts_of(value: x509.ExtensionType) -> Iterator[str]:
    """Yield each alternative name as text, and an empty text for kinds that are not allowed."""
    if not isinstance(value, x509.SubjectAlternativeName):
        return
    for name in value:
        if isinstance(name, x509.DNSName):
            yield name.value
        elif isinstance(name, x509.IPAddress) and not isinstance(
            name.value, ipaddress.IPv4Network | ipaddress.IPv6Network
        ):
            yield str(name.value)
        else:
            yield ""


def _other_key_faults(kind: CertificateProfile, other: ec.EllipticCurvePublicKey | None) -> list[str]:
    if other is None or kind is KEY_AGREEMENT:
        return []
    return [f"the key of a {kind.name} certificate signs its own request"]


def _key(
    request: x509.CertificateSigningRequest, signed_by: ec.EllipticCurvePublicKey | None
) -> tuple[ec.EllipticCurvePublicKey | None, list[str]]:
    try:
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None, ["the public key cannot be read"]
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in HASHES:
        return None, ["the curve is neither P-256 nor P-384"]
    signing = signed_by or key
    try:
        used = request.signature_hash_algorithm
    except UnsupportedAlgorithm:
        used = None
    if used is None or used.name != hash_for(signing.curve).name:
        return None, [
            f"the signature does not use {hash_for(signing.curve).name}, which goes with {signing.curve.name}"
        ]
    try:
        signing.verify(request.signature, request.tbs_certrequest_bytes, ec.ECDSA(hash_for(signing.curve)))
    except InvalidSignature:
        return None, ["the signature was not made by the key in the request, or the one that should have signed it"]
    return key, []


def _wrong(texts: Iterable[str], source: str) -> InputError:
    faults = [Fault(source, 0, 0, text) for text in texts]
    return InputError("the certificate request is not acceptable", faults)
