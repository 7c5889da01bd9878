"""Mutual TLS between parties, 1.2 or later (RFC 5246, RFC 8446), and a link through a concentrator over it.

A context made here holds no trust of its own: for every connection it reads the home folder again and builds a context
for that connection alone, so that a new CRL or a renewed certificate counts from the next connection on, and no session
ticket carries a peer past a check. What has to hold for a peer, before one octet of it is read:

* its chain ends at a self-signed certificate of `trust/anchors.pem`, over `trust/intermediates.pem` or what it sent;
* every certificate of the chain is covered by a CRL of `trust/crl/` that is in date and does not name it;
* it is of the TLS profile: extended key usage for its side is present (OpenSSL alone accepts its absence, and with it
  the digital-signature certificate of any meter), digitalSignature is allowed, and it is no certification authority;
* a server is the one that was dialled: by system title (the subject's common name), or else by host name.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import stat
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from hsmkm.errors import InputError, ProtocolError, RefusedError, TransportError
from hsmkm.link import gateway
from hsmkm.link.gateway import Direction, GatewayFrame
from hsmkm.link.tcp import TcpLink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CIPHERS_TLS12 = "ECDHE+AESGCM:ECDHE+CHACHA20"
NETWORK_ID = 0
_MAX_FILE = 16 * 1024 * 1024
_CHUNK = 65_536
_UNREADABLE = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)

logger = logging.getLogger(__name__)


class PeerRefusedError(ssl.SSLCertVerificationError):
    """The peer's chain is good and its certificate is still the wrong one; raised inside the handshake."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a party keeps what TLS needs; `key` must be readable by its owner alone."""

    certificate: Path
    key: Path
    anchors: Path
    intermediates: Path
    crls: Path

    @classmethod
    def of(cls, home: Path) -> TlsFiles:
        """Name the files of a home folder."""
        trust = home / "trust"
        return cls(
            certificate=home / "certificates" / "tls.pem",
            key=home / "tls" / "key.pem",
            anchors=trust / "anchors.pem",
            intermediates=trust / "intermediates.pem",
            crls=trust / "crl",
        )


@dataclass(frozen=True, slots=True)
class PeerRule:
    """What a peer's certificate must be beyond a good chain; `title` is 16 capital hex digits."""

    purpose: x509.ObjectIdentifier
    title: str = ""

    def check(self, der: bytes | None) -> None:
        """Raise PeerRefusedError that names every fault of the certificate."""
        if der is None:
            raise PeerRefusedError(1, "the peer showed no certificate")
        try:
            faults = list(self._faults(x509.load_der_x509_certificate(der)))
        except _UNREADABLE as error:
            raise PeerRefusedError(1, "the peer's certificate cannot be read") from error
        if faults:
            raise PeerRefusedError(1, "; ".join(faults))

    def _faults(self, certificate: x509.Certificate) -> Iterator[str]:
        found = {extension.oid: extension.value for extension in certificate.extensions}
        purposes = found.get(ExtensionOID.EXTENDED_KEY_USAGE)
        if not isinstance(purposes, x509.ExtendedKeyUsage) or self.purpose not in purposes:
            yield "the certificate is not of the tls profile: no extended key usage for its side of TLS"
        usage = found.get(ExtensionOID.KEY_USAGE)
        if not isinstance(usage, x509.KeyUsage) or not usage.digital_signature:
            yield "the certificate's key usage lacks digitalSignature"
        constraints = found.get(ExtensionOID.BASIC_CONSTRAINTS)
        if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
            yield "the certificate is a certification authority's"
        names = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if self.title and names != [self.title]:
            yield f"the certificate names {names!r}, and {self.title} was dialled"


class _CheckedSocket(ssl.SSLSocket):
    """A socket whose handshake ends with the rule of its context."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature of ssl
        super().do_handshake(block)
        _check_peer(self.context, self.getpeercert(binary_form=True))


class _CheckedObject(ssl.SSLObject):
    """The same for asyncio; a refusal is logged, because asyncio only closes the connection."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
            _check_peer(self.context, self.getpeercert(binary_form=True))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            logger.warning("TLS peer refused: %s", reason_of(error))
            raise


class _UnfitObject(ssl.SSLObject):
    """A connection that cannot be, because the files of the home folder are unfit now."""

    def do_handshake(self) -> None:
        raise ssl.SSLError(1, "the files of the home folder are unfit")


class _ConnectionContext(ssl.SSLContext):
    """The context of one connection, with what its peer must be."""

    sslsocket_class = _CheckedSocket
    sslobject_class = _CheckedObject
    rule: PeerRule


class ReloadingContext(ssl.SSLContext):
    """A context that reads its files for every connection; made by `server_context` and `client_context`.

    What is set on it from outside (ALPN, options) has no effect on the connections. A file that is missing or
    unreadable raises InputError at the connection.
    """

    def __init__(self, protocol: int, files: TlsFiles, rule: PeerRule) -> None:
        self._protocol = protocol
        self._files = files
        self._rule = rule
        self.check_hostname = protocol == ssl.PROTOCOL_TLS_CLIENT and not rule.title
        self.verify_mode = ssl.CERT_REQUIRED

    def connection_context(self) -> ssl.SSLContext:
        """Build the context of one connection from the files as they are now."""
        context = _ConnectionContext(self._protocol)
        context.rule = self._rule
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS_TLS12)
        context.check_hostname = self.check_hostname
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if self._protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0
        context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN | ssl.VERIFY_X509_STRICT
        _load_own(context, self._files)
        _load_trust(context, self._files)
        return context

    def expecting(self, server_title: str) -> ReloadingContext:
        """Return a client's context for one server: by system title (16 capital hex digits), by host name without."""
        return ReloadingContext(self._protocol, self._files, replace(self._rule, title=server_title))

    def wrap_socket(self, sock: socket.socket, *args: Any, **named: Any) -> ssl.SSLSocket:  # noqa: ANN401 - passed through
        """Wrap a socket in the context of this connection."""
        return self.connection_context().wrap_socket(sock, *args, **named)

    def wrap_bio(self, *args: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401 - passed through
        """Wrap memory buffers (asyncio) in the context of this connection; with unfit files its handshake fails.

        asyncio leaves a socket open, and says nothing, when this raises.
        """
        try:
            context = self.connection_context()
        except InputError as error:
            logger.error("no TLS connection can be made: %s", error)  # noqa: TRY400 - the message names the file
            context = ssl.SSLContext(self._protocol)
            context.check_hostname = False
            context.sslobject_class = _UnfitObject
        return context.wrap_bio(*args, **named)


def server_context(home: Path) -> ReloadingContext:
    """Make a server's context: clients must show a certificate of the TLS profile; InputError if files are unfit."""
    rule = PeerRule(ExtendedKeyUsageOID.CLIENT_AUTH)
    return _checked(ReloadingContext(ssl.PROTOCOL_TLS_SERVER, TlsFiles.of(home), rule))


def client_context(home: Path, server_title: str = "") -> ReloadingContext:
    """Make a client's context; `server_title` as in `expecting`, InputError if files are unfit."""
    rule = PeerRule(ExtendedKeyUsageOID.SERVER_AUTH, server_title)
    return _checked(ReloadingContext(ssl.PROTOCOL_TLS_CLIENT, TlsFiles.of(home), rule))


def _checked(context: ReloadingContext) -> ReloadingContext:
    context.connection_context()
    return context


def reason_of(error: OSError) -> str:
    """Say in words why TLS failed, without OpenSSL's source lines."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, PeerRefusedError):
        return str(error.args[1])
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or "connection broken off").lower().replace("_", " ")
    return (error.strerror or str(error) or "connection closed").lower()


def failure(peer: str, error: OSError) -> RefusedError | TransportError:
    """Tell our refusal of a peer's certificate (RefusedError) from a broken connection (TransportError)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return RefusedError(f"{peer} is not trusted: {reason_of(error)}", (reason_of(error),))
    return TransportError(
        f"{peer} cannot be reached: {reason_of(error)}",
        hint="a connection closed at once may mean that our TLS certificate is not trusted there",
    )


def _check_peer(context: ssl.SSLContext, der: bytes | None) -> None:
    if not isinstance(context, _ConnectionContext):
        raise TypeError("a connection of this module keeps the context that it was made with")
    context.rule.check(der)


def _load_own(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        mode = files.key.stat()
        if stat.S_IMODE(mode.st_mode) & 0o077 or mode.st_uid not in (0, os.geteuid()):
            raise InputError(f"others can read the TLS key {files.key}", hint=f"chmod 600 {files.key}")
        context.load_cert_chain(files.certificate, files.key, password="")
    except OSError as error:
        raise InputError(
            f"the TLS certificate {files.certificate} and its key cannot be used: {reason_of(error)}",
            hint="make them with hsmkm pki",
        ) from error


def _load_trust(context: ssl.SSLContext, files: TlsFiles) -> None:
    anchors = _certificates(files.anchors)
    others = _certificates(files.intermediates) if files.intermediates.exists() else []
    for certificate in others:
        if certificate.issuer == certificate.subject:
            raise InputError(
                f"{files.intermediates} holds a self-signed certificate",
                hint=f"a trust anchor belongs in {files.anchors}",
            )
    lists = [_revocation_list(path) for path in sorted(files.crls.glob("*.crl"))]
    pem = [certificate.public_bytes(Encoding.PEM) for certificate in (*anchors, *others)]
    pem += [revocation_list.public_bytes(Encoding.PEM) for revocation_list in lists]
    # The ssl module takes CRLs from a file only.
    with tempfile.NamedTemporaryFile(prefix="hsmkm-trust-") as file:
        file.write(b"".join(pem))
        file.flush()
        try:
            context.load_verify_locations(file.name)
        except ssl.SSLError as error:
            raise InputError(
                f"the certificates of {files.anchors.parent} cannot be used: {reason_of(error)}"
            ) from error


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise InputError(f"{path} holds no PEM certificate") from error


def _revocation_list(path: Path) -> x509.CertificateRevocationList:
    try:
        return x509.load_der_x509_crl(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is not a CRL in DER") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            octets = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from error
    if len(octets) > _MAX_FILE:
        raise InputError(f"{path} is longer than {_MAX_FILE} octets")
    return octets


class TlsLink(TcpLink):
    """The way to one meter behind a concentrator: mutual TLS, the wrapper, and the gateway prefix.

    The TLS peer is the concentrator, told as in `ReloadingContext.expecting`. `meter` is the meter's system title (8
    octets), the address of the prefix. Opening raises RefusedError for a concentrator that is not trusted; what
    `TcpLink` says about timeouts and errors holds here too.
    """

    def __init__(
        self, host: str, port: int, context: ReloadingContext, timeout: float, server_title: str, meter: bytes
    ) -> None:
        super().__init__(host, port, timeout)
        self._host = host
        self._context = context.expecting(server_title)
        self._meter = meter

    def open(self) -> socket.socket:
        """Connect and shake hands unless connected; raises TransportError, RefusedError and InputError."""
        if self._socket is None:
            plain = super().open()
            try:
                self._socket = self._context.wrap_socket(plain, server_hostname=self._host)
            except OSError as error:
                raise failure(self.peer, error) from error
            finally:
                if self._socket is plain:
                    self.close()
        return self._socket

    def exchange(self, apdu: bytes, client_sap: int, server_sap: int) -> bytes:
        """Send an APDU to the meter and give its answer; an answer of another meter raises ProtocolError."""
        request = self._request(apdu)
        try:
            answer = gateway.parse(super().exchange(request.encode(), client_sap, server_sap))
        except ProtocolError:
            self.close()
            raise
        except TransportError as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise failure(self.peer, error.__cause__) from error.__cause__
            raise
        if answer != request.answer(answer.apdu):
            self.close()
            raise ProtocolError(f"{self.peer} answered for another meter")
        return answer.apdu

    def send(self, apdu: bytes, client_sap: int, server_sap: int) -> None:
        """Send an APDU to the meter that has no answer, and close; raises TransportError and RefusedError.

        The concentrator's end is waited for: a connection closed over octets that nobody read would be reset, and the
        frame could be lost with it.
        """
        super().send(self._request(apdu).encode(), client_sap, server_sap)
        connection = self.open()
        try:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(_CHUNK):
                pass
        except OSError as error:
            raise failure(self.peer, error) from error
        finally:
            self.close()

    def _request(self, apdu: bytes) -> GatewayFrame:
        return GatewayFrame(Direction.REQUEST, NETWORK_ID, self._meter, apdu)
