"""Certificates in Security Setup version 1: attribute 6, and the data of methods 4 to 8 (IEC 62056-6-2 clause 4.4.7).

Names are DER of X.501 names; a serial number is the content of a DER INTEGER.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from hsmkm.dlms import axdr
from hsmkm.dlms.axdr import Data
from hsmkm.errors import ProtocolError

E = TypeVar("E", bound=IntEnum)

LONGEST_NAME = 4096
MOST_CERTIFICATES = 256
_INFO_FIELDS = 6
_ENTITY_FIELDS = 3
_PAIR = 2


class CertificateEntity(IntEnum):
    """Whose certificate it is."""

    SERVER = 0
    CLIENT = 1
    CERTIFICATION_AUTHORITY = 2
    OTHER = 3


class CertificateType(IntEnum):
    """What its key is for."""

    DIGITAL_SIGNATURE = 0
    KEY_AGREEMENT = 1
    TLS = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class ByEntity:
    """A certificate by whose it is, what it is for, and its subject's system title."""

    entity: CertificateEntity
    kind: CertificateType
    system_title: bytes


@dataclass(frozen=True, slots=True)
class BySerial:
    """A certificate by its serial number and issuer."""

    serial: bytes
    issuer: bytes


Identification = ByEntity | BySerial


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What attribute 6 tells of a certificate."""

    entity: CertificateEntity
    kind: CertificateType
    serial: bytes
    issuer: bytes
    subject: bytes
    subject_alt_name: bytes = b""


def encode_type(kind: CertificateType) -> Data:
    """Build the data of generate_key_pair and generate_certificate_request."""
    return axdr.enum(kind)


def decode_type(data: Data) -> CertificateType:
    """Read a certificate type; raises ProtocolError."""
    return _member(CertificateType, data)


def encode_identification(wanted: Identification) -> Data:
    """Build the data of export_certificate and remove_certificate."""
    if isinstance(wanted, ByEntity):
        title = axdr.octet_string(wanted.system_title)
        return axdr.structure(axdr.enum(0), axdr.structure(axdr.enum(wanted.entity), axdr.enum(wanted.kind), title))
    pair = axdr.structure(axdr.octet_string(wanted.serial), axdr.octet_string(wanted.issuer))
    return axdr.structure(axdr.enum(1), pair)


def decode_identification(data: Data) -> Identification:
    """Read which certificate is meant; raises ProtocolError."""
    choice, inner = _exactly(data, _PAIR)
    if choice.integer() == 0:
        entity, kind, title = _exactly(inner, _ENTITY_FIELDS)
        return ByEntity(_member(CertificateEntity, entity), decode_type(kind), _name(title))
    if choice.integer() == 1:
        serial, issuer = _exactly(inner, _PAIR)
        return BySerial(_name(serial), _name(issuer))
    raise ProtocolError("a certificate is identified by entity or by serial number")


def encode_certificates(infos: Sequence[CertificateInfo]) -> Data:
    """Build attribute 6."""
    return axdr.array(
        *(
            axdr.structure(
                axdr.enum(info.entity),
                axdr.enum(info.kind),
                *(axdr.octet_string(text) for text in (info.serial, info.issuer, info.subject, info.subject_alt_name)),
            )
            for info in infos
        )
    )


def decode_certificates(data: Data) -> tuple[CertificateInfo, ...]:
    """Read attribute 6; raises ProtocolError."""
    entries = data.items()
    if len(entries) > MOST_CERTIFICATES:
        raise ProtocolError("a meter does not hold so many certificates")
    return tuple(_info(entry) for entry in entries)


def _info(entry: Data) -> CertificateInfo:
    entity, kind, *names = _exactly(entry, _INFO_FIELDS)
    return CertificateInfo(_member(CertificateEntity, entity), decode_type(kind), *(_name(name) for name in names))


def _exactly(data: Data, count: int) -> tuple[Data, ...]:
    fields = data.items()
    if len(fields) != count:
        raise ProtocolError(f"a structure of {count} elements was expected, not of {len(fields)}")
    return fields


def _name(data: Data) -> bytes:
    value = data.octets()
    if len(value) > LONGEST_NAME:
        raise ProtocolError("a name of a certificate is too long")
    return value


def _member(kind: type[E], data: Data) -> E:
    value = data.integer()
    if value not in kind.__members__.values():
        raise ProtocolError(f"{value} is no {kind.__name__}")
    return kind(value)
