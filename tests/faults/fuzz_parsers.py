"""Every parser of what others send or write, with the errors that it may raise and real inputs to begin with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkm.concentrator import fetch, health
from hsmkm.config import SETTINGS_FILE, load_model, load_settings, read_model
from hsmkm.dlms import acse, agreement, axdr, broadcast, certificates, ciphering, general, security_setup, xdlms
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.types import AttributeRef, LogicalName, SecuritySuite, SystemTitle
from hsmkm.errors import HsmkmError, InputError, IntegrityError, ProtocolError, RefusedError, TokenRefusedError
from hsmkm.link import aim, gateway
from hsmkm.link.tls import PeerRefusedError, PeerRule
from hsmkm.link.wrapper import Decoder, Frame
from hsmkm.packages.approval import open_approval, parse_request
from hsmkm.packages.archive import open_archive, parse_manifest
from hsmkm.packages.container import open_container
from hsmkm.packages.content import parse_content
from hsmkm.packages.receipt import open_receipt, parse_receipt
from hsmkm.packages.receive import inspect_package
from hsmkm.packages.strict_json import parse as parse_json
from hsmkm.packages.transport import parse_recipient_info
from hsmkm.pki.certificates import parse_certificates
from hsmkm.pki.requests import check_request
from hsmkm.pki.revocation import parse_crl
from hsmkm.simulator.meter import ACTIVE_ENERGY
from hsmkm.steps.attest import _is_checkpoint
from hsmkm.steps.communicate import split_address, split_listen
from hsmkm.steps.model import read_key_file
from hsmkm.steps.order import parse_order
from hsmkm.steps.setup import write_home
from hsmkm.token import curves
from hsmkm.token.profile import parse_profile
from hsmkm.token.types import SecretRole
from hsmkm.token.uri import TokenUri
from tests.faults import fuzz_seeds, fuzz_token
from tests.simulator.dlms_realm import CLIENT, realm

Errors = tuple[type[Exception], ...]
PROTOCOL: Errors = (ProtocolError,)
INPUT: Errors = (InputError,)
ANSWER: Errors = (ProtocolError, IntegrityError)
SIGNED: Errors = (InputError, IntegrityError, RefusedError)
_LIST = b'{"packages":[{"id":"0f8fad5b-d9cb-469f-a165-70867728950e","sha256":"%s"}]}' % (b"00" * 32)
_SOME_JSON = (b'{"a":[1,"b",null,true],"c":{}}', _LIST)
_ORDER = b"system_title,serial,model,suite\n4D4D4D0000BC614E,12345678,virtual,0\n"
_KEYS = b"".join(
    b"%s = %s\n" % (name, b"0%d" % number * 16) for number, name in enumerate((b"guek", b"gak", b"master"))
)


@dataclass(frozen=True, slots=True)
class Parser:
    """One parser: what reads octets, the errors that it may raise, and inputs that it takes or nearly takes."""

    name: str
    parse: Callable[[bytes], object]
    errors: Errors
    seeds: Callable[[], Sequence[bytes]]


@cache
def parsers() -> tuple[Parser, ...]:
    """List them all."""
    return (*_dlms(), *_link(), *_packages(), *_pki(), *_files(), *_texts(), *_token())


def _of_data(name: str, read: Callable[[Data], object]) -> Parser:
    return Parser(name, lambda octets: read(axdr.decode(octets)), PROTOCOL, fuzz_seeds.data)


def _dlms() -> list[Parser]:
    one = partial(Parser, errors=PROTOCOL, seeds=fuzz_seeds.apdus)
    return [
        _of_data("axdr", lambda data: data),
        one("aarq", acse.parse_request),
        one("aare", acse.parse_response),
        one("rlrq", acse.parse_release_request),
        one("rlre", acse.parse_release_response),
        one("initiate request", xdlms.parse_initiate_request),
        one("initiate response", xdlms.parse_initiate_response),
        one("xdlms request", xdlms.parse_request),
        one("xdlms response", xdlms.parse_response),
        one("xdlms error", xdlms.parse_error),
        one("ciphered apdu", ciphering.parse),
        one("ciphered content", ciphering.Content.parse),
        one("general apdu", general.parse),
        one("broadcast", broadcast.check, errors=(ProtocolError, InputError)),
        _of_data("key_transfer", security_setup.decode_key_transfer),
        _of_data("key_agreement, suite 1", partial(agreement.decode_key_agreement, SecuritySuite.SUITE_1)),
        _of_data("key_agreement, suite 2", partial(agreement.decode_key_agreement, SecuritySuite.SUITE_2)),
        _of_data("certificate type", certificates.decode_type),
        _of_data("certificate identification", certificates.decode_identification),
        _of_data("certificates of a meter", certificates.decode_certificates),
        one("answer to an aarq", _associating, errors=ANSWER, seeds=_masks),
        one("answer in an association", _associated, errors=ANSWER, seeds=_masks),
    ]


def _masks() -> tuple[bytes, ...]:
    return (b"\0", b"\0\0\0\0\1", *fuzz_seeds.apdus()[::40])


def _answered(answer: bytes, octets: bytes) -> bytes:
    """Give the octets for an answer, or after a first octet of zero the answer with them laid over it."""
    if octets[:1] != b"\0":
        return octets
    return bytes(octet ^ mask for octet, mask in zip_longest(answer, octets[1:], fillvalue=0))


def _associating(octets: bytes) -> object:
    wire = realm(SecuritySuite.SUITE_0).wire()
    wire.back = lambda answer: _answered(answer, octets)
    return wire.associate()


def _associated(octets: bytes) -> object:
    wire = realm(SecuritySuite.SUITE_0).wire()
    wire.associate()
    wire.back = lambda answer: _answered(answer, octets)
    return wire.drive(wire.association.get(ACTIVE_ENERGY))


def _framed() -> tuple[bytes, ...]:
    return tuple(Frame(1, 1, apdu).encode() for apdu in fuzz_seeds.apdus()[:20])


def _prefixed() -> tuple[bytes, ...]:
    frame = partial(gateway.GatewayFrame, gateway.Direction.REQUEST, 0, CLIENT.octets)
    return tuple(frame(apdu).encode() for apdu in fuzz_seeds.apdus()[:20])


def _link() -> list[Parser]:
    rule = PeerRule(ExtendedKeyUsageOID.CLIENT_AUTH)
    return [
        Parser("wrapper frame", lambda octets: Decoder().feed(octets), PROTOCOL, _framed),
        Parser("gateway frame", gateway.parse, PROTOCOL, _prefixed),
        Parser("tls peer", rule.check, (PeerRefusedError,), partial(_signed, "certificate")),
        Parser("aim's list", fetch._read_list, PROTOCOL, lambda: _SOME_JSON),
        Parser("aim's refusal", aim._said, (), lambda: (b'{"error":"no","hint":"later"}', *_SOME_JSON)),
    ]


def _signed(name: str) -> tuple[bytes, ...]:
    return fuzz_seeds.signed()[name]


def _extracted(path: Path) -> None:
    with open_archive(path) as archive, tempfile.TemporaryDirectory() as folder:
        archive.extract(Path(folder, "home"))


def _packages() -> list[Parser]:
    return [
        Parser("container", open_container, SIGNED, partial(_signed, "package")),
        Parser("package", inspect_package, SIGNED, partial(_signed, "package")),
        Parser("package content", parse_content, INPUT, partial(_signed, "content")),
        Parser("recipient info", parse_recipient_info, INPUT, partial(_signed, "recipient info")),
        Parser("signed receipt", open_receipt, SIGNED, partial(_signed, "receipt")),
        Parser("receipt", parse_receipt, INPUT, partial(_signed, "receipt")),
        Parser("signed checkpoint", open_container, SIGNED, partial(_signed, "checkpoint")),
        Parser("checkpoint", _is_checkpoint, INPUT, partial(_signed, "checkpoint")),
        Parser("approval request", parse_request, INPUT, partial(_signed, "approval")),
        Parser("signed approval", open_approval, SIGNED, partial(_signed, "approval")),
        Parser("manifest", parse_manifest, INPUT, partial(_signed, "manifest")),
        Parser("archive", _in_file(_extracted, "backup"), SIGNED, partial(_signed, "archive")),
        Parser("strict json", lambda octets: parse_json(octets, 1 << 20, "it"), INPUT, lambda: _SOME_JSON),
    ]


def _pki() -> list[Parser]:
    request = partial(Parser, errors=INPUT, seeds=partial(_signed, "request"))
    return [
        Parser("certificates", parse_certificates, INPUT, partial(_signed, "certificate")),
        request("request", lambda octets: check_request(octets, "digital-signature", "5554490000000001")),
        request("request for tls", lambda octets: check_request(octets, "tls")),
        Parser("crl", _crl, INPUT, partial(_signed, "crl")),
    ]


def _crl(octets: bytes) -> list[x509.RevokedCertificate]:
    return list(parse_crl(octets))


@cache
def _folder() -> Path:
    made = tempfile.TemporaryDirectory(prefix="hsmkm-fuzz-", ignore_cleanup_errors=True)
    _kept.append(made)
    return Path(made.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _in_file(read: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    def parse(octets: bytes) -> object:
        path = _folder() / name
        path.write_bytes(octets)
        path.chmod(0o600)
        return read(path)

    return parse


@cache
def _settings() -> tuple[bytes, ...]:
    made = []
    for role in ("factory", "utility", "authority", "concentrator"):
        write_home(_folder() / role, "a", role, "5554490000000001", ("MMM",))
        made.append((_folder() / role / SETTINGS_FILE).read_bytes())
    return tuple(made)


def _files() -> list[Parser]:
    settings = _in_file(lambda path: load_settings(path.parent, {}), SETTINGS_FILE)
    keys = _in_file(lambda path: read_key_file(path, 16, (SecretRole.LLS,)), "model.keys")
    status = _in_file(lambda path: health.findings(health.load(path.parent), datetime.now(UTC)), health.FILE)
    return [
        Parser("order", lambda octets: parse_order("order", octets, load_model), INPUT, lambda: (_ORDER,)),
        Parser("settings", settings, INPUT, _settings),
        Parser("meter model", _in_file(read_model, "model.toml"), INPUT, fuzz_seeds.models),
        Parser("token profile", lambda octets: parse_profile(octets.decode("latin-1")), INPUT, fuzz_seeds.profiles),
        Parser("key file", keys, INPUT, lambda: (_KEYS, _KEYS + b"lls = 3132333435363738\n# a model's\n")),
        Parser("concentrator's health", status, INPUT, lambda: (b'{"packages":1,"error":"","fetch_seconds":5}',)),
    ]


def _of_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda octets: read(octets.decode("utf-8", errors="replace"))


def _texts() -> list[Parser]:
    one = partial(Parser, errors=INPUT)
    addresses = (b"127.0.0.1:4059", b"[::1]:8443", b"host.example:1")
    return [
        one(
            "token uri",
            _of_text(TokenUri.parse),
            seeds=lambda: (b"pkcs11:token=a%20b;serial=0a?module-path=/usr/x.so",),
        ),
        one("system title", _of_text(SystemTitle.parse), seeds=lambda: (b"4D4D4D0000BC614E",)),
        one("logical name", _of_text(LogicalName.parse), seeds=lambda: (b"0.0.43.0.0.255",)),
        one("attribute", _of_text(_attribute), seeds=lambda: (b"3/1.0.1.8.0.255/2",)),
        one("address", _of_text(partial(split_address, owner="it")), seeds=lambda: addresses),
        one("address to listen on", _of_text(split_listen), seeds=lambda: addresses),
    ]


def _attribute(text: str) -> bytes:
    return xdlms.GetRequest(1, AttributeRef.parse(text)).encode()


def _point(octets: bytes) -> object:
    end = 2 + (octets[1] if len(octets) > 1 else 0)
    return curves.from_token(octets[:end], octets[end:])


def _token() -> list[Parser]:
    answers = (*(bytes((octet,)) * 400 for octet in (0x00, 0x05, 0x0B, 0x55, 0xAA)), bytes(range(256)) * 2)
    return [
        Parser("public point of a token", _point, (InputError, TokenRefusedError), fuzz_seeds.points),
        Parser("answers of a token", fuzz_token.converse, (HsmkmError,), lambda: answers),
    ]
