from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.container import sign_content
from hsmkm.packages.content import PackageContent, Peer, Purpose
from hsmkm.packages.receive import Opened, PackageRefusedError, Sender, inspect_package, open_package
from hsmkm.packages.registry import StoreRegistry, given_by, pinned_signers, registered_recipient, store_opened
from hsmkm.packages.send import Outgoing, Package, Recipient, build_package, new_header, outgoing
from hsmkm.pki.certificates import fingerprint
from hsmkm.store import certificates, key_sets, meters, parties
from hsmkm.store import packages as package_rows
from hsmkm.store.certificates import CertificateRecord, Source
from hsmkm.store.key_set import KeyState
from hsmkm.store.packages import Direction, PackageRecord
from hsmkm.store.parties import Party
from hsmkm.store.store import Store
from hsmkm.token.types import KeyRole

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from tests.packages.conftest import World


def reasons(world: World, data: bytes, now: datetime | None = None) -> str:
    at = now or world.pki.root.certificate.not_valid_before_utc
    with pytest.raises(PackageRefusedError) as raised:
        world.open(data, at)
    return "\n".join(raised.value.reasons)


def signed_again(world: World, content: PackageContent) -> bytes:
    return sign_content(
        content.encode(), world.sender.signer, world.sender.certificate, world.sender.chain, content.header.created
    )


def with_key(package: Package, role: KeyRole, wrapped: bytes) -> PackageContent:
    content = inspect_package(package.data).content
    first = content.meters[0]
    keys = tuple(replace(key, wrapped=wrapped) if key.role is role else key for key in first.keys)
    return replace(content, meters=(replace(first, keys=keys), *content.meters[1:]))


def test_the_keys_that_arrive_are_the_keys_that_were_sent(world: World) -> None:
    sent = [world.out(number) for number in range(1, 4)]
    opened = world.open(world.build(*sent).data)
    assert opened.sender == "factory"
    for received, one in zip(opened.meters, sent, strict=True):
        assert received.key_set is not None
        assert one.key_set is not None
        # both parties share one token here, and AES key wrap is deterministic
        assert received.key_set.keys == one.key_set.keys
        assert received.key_set.mac == one.key_set.mac
        assert received.meter.serial == one.entry.serial


def test_a_package_names_no_key_in_clear_and_each_one_is_its_own(world: World) -> None:
    package = world.build(world.out(1), world.out(2))
    assert len({key.wrapped for entry in package.meters for key in entry.keys}) == 8
    assert repr(package.data) not in repr(package)


def test_everything_wrong_is_reported_at_once(world: World) -> None:
    package = world.build(world.out(1), world.out(2, flag="XXX"))
    world.known.sequences["factory", "delivery"] = 1
    world.known.generations[world.meter(1).system_title, 0, 1] = 1
    world.known.meters[world.meter(1).system_title] = replace(world.meter(1), serial="other")
    world.receiver = replace(world.receiver, trust=world.pki.trust(world.sender.certificate))
    found = reasons(world, package.data, package.header.created + timedelta(days=40))
    for text in (
        "is revoked",
        "past its date",
        "the package has expired",
        "the sequence 1 does not rise: 1 was taken before",
        "the sender may not speak for meters of 'XXX'",
        "the generation does not rise, 1 is known",
        "serial number, model or suite differ",
    ):
        assert text in found


def test_a_signer_that_is_not_registered_is_refused_whatever_its_chain(world: World) -> None:
    package = world.build(world.out())
    world.known.senders.clear()
    assert "not the package-signing certificate of a registered party" in reasons(world, package.data)


@pytest.mark.parametrize(
    ("registered", "text"),
    [
        (Sender("factory", "third-party", b"", ("MMM",)), "comes from a party of role factory, not third-party"),
        (Sender("factory", "factory", b"", ()), "may not speak for meters of 'MMM'"),
        (Sender("factory", "factory", b"FACTORY1", ("MMM",)), "with another role or system title"),
    ],
)
def test_a_sender_needs_its_role_and_flag_ids(world: World, registered: Sender, text: str) -> None:
    package = world.build(world.out())
    world.known.senders[fingerprint(world.sender.certificate)] = registered
    assert text in reasons(world, package.data)


def test_a_package_for_another_is_refused(world: World) -> None:
    package = world.build(world.out())
    world.receiver = replace(world.receiver, peer=Peer("other", "utility", b"UTI00002"))
    assert "the package is for another recipient" in reasons(world, package.data)


def test_a_package_from_the_future_is_refused(world: World) -> None:
    package = world.build(world.out())
    assert "created in the future" in reasons(world, package.data, package.header.created - timedelta(hours=1))


def test_a_package_signed_again_under_another_header_does_not_open(world: World) -> None:
    content = inspect_package(world.build(world.out()).data).content
    stolen = replace(content, header=replace(content.header, sequence=9))
    assert "bound to another header" in reasons(world, signed_again(world, stolen))


def test_every_key_is_tried_before_any_is_taken(world: World) -> None:
    package = world.build(world.out(1), world.out(2))
    altered = with_key(package, KeyRole.GAK, bytes(24))
    assert reasons(world, signed_again(world, altered)) == "meter 4D4D4D0000000001 generation 1: gak does not unwrap"


def test_one_key_in_two_roles_is_refused(world: World) -> None:
    package = world.build(world.out(1))
    guek = next(key for key in package.meters[0].keys if key.role is KeyRole.GUEK)
    with pytest.raises(InputError, match="faults of form"):
        with_key(package, KeyRole.GBEK, guek.wrapped).encode()


def test_an_altered_package_is_an_integrity_error(world: World) -> None:
    data = world.build(world.out()).data
    place = data.index(b'"wrapped":"') + 12
    with pytest.raises(IntegrityError):
        world.open(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_the_recipient_is_checked_before_a_key_is_wrapped(world: World) -> None:
    one = world.out()
    now = world.pki.root.certificate.not_valid_before_utc
    header = new_header(Purpose.DELIVERY, 1, world.sender.peer, world.recipient.peer, now)
    revoked = world.pki.trust(world.recipient.certificate)
    with pytest.raises(RefusedError) as raised:
        build_package(world.vault, revoked, world.sender, world.recipient, header, [one])
    assert raised.value.reasons == ("the certificate of '5554490000000001' is revoked",)
    line = Recipient(replace(world.recipient.peer, role="line"), world.recipient.certificate)
    with pytest.raises(RefusedError) as raised:
        build_package(world.vault, world.pki.trust(), world.sender, line, header, [one])
    assert "goes to a party of role utility, not line" in raised.value.reasons[0]


def test_an_injection_is_not_taken_into_a_store(world: World) -> None:
    world.recipient = replace(world.recipient, peer=replace(world.recipient.peer, role="line"))
    package = world.build(world.out(), purpose=Purpose.INJECTION)
    world.receiver = replace(world.receiver, peer=world.recipient.peer)
    assert reasons(world, package.data) == "an injection is opened by line equipment, which keeps no keys"


def as_utility(world: World) -> None:
    """The sender becomes a utility and the recipient a concentrator."""
    world.sender = replace(world.sender, role="utility", system_title=b"UTI00001")
    world.recipient = replace(world.recipient, peer=replace(world.recipient.peer, name="dc-1", role="concentrator"))
    world.receiver = replace(world.receiver, peer=world.recipient.peer)
    world.known.senders[fingerprint(world.sender.certificate)] = Sender("utility", "utility", b"UTI00001")


def test_a_distribution_carries_no_master_key(world: World) -> None:
    as_utility(world)
    opened = world.open(world.build(world.out(), purpose=Purpose.DISTRIBUTION).data)
    key_set = opened.meters[0].key_set
    assert key_set is not None
    assert [key.role for key in key_set.keys] == [KeyRole.GAK, KeyRole.GBEK, KeyRole.GUEK]


def test_a_relay_gets_meters_and_addresses_without_keys(world: World) -> None:
    as_utility(world)
    meter = replace(world.meter(), address="192.0.2.1:4059")
    one = outgoing(meter, world.key_set(world.meter()), KeyState.ACTIVE, with_keys=False)
    package = world.build(one, purpose=Purpose.DISTRIBUTION)
    assert inspect_package(package.data).content.recipient_info == b""
    received = world.open(package.data).meters[0]
    assert (received.key_set, received.meter.address) == (None, "192.0.2.1:4059")


def test_an_activation_needs_a_generation_that_is_known(world: World) -> None:
    as_utility(world)
    activated = outgoing(world.meter(), world.key_set(world.meter(), 2), KeyState.ACTIVE, with_keys=False)
    data = world.build(activated, purpose=Purpose.ACTIVATION).data
    assert "there are no keys to activate" in reasons(world, data)
    world.known.generations[world.meter().system_title, 0, 1] = 2
    assert world.open(data).meters[0].entry.state == "active"


def test_a_refusal_travels_between_processes(world: World) -> None:
    world.known.senders.clear()
    data = world.build(world.out()).data
    with pytest.raises(PackageRefusedError) as raised:
        world.open(data)
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own octets
    assert (again.package, again.reasons) == (raised.value.package, raised.value.reasons)


def test_a_package_goes_into_a_store_whole_and_once(world: World, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"
    Store.create(url)
    sent: list[Outgoing] = [world.out(number) for number in range(1, 4)]
    package = world.build(*sent)
    pinned = {"package-signing": fingerprint(world.sender.certificate)}
    with Store.open(url, world.vault, "test") as store:
        with store.begin("party add", "factory", {}) as tx:
            parties.add(tx, Party("factory", "factory", None, ("MMM",), certificates=pinned))
        with store.begin("package import", package.header.id, {}) as tx:
            opened = world_open(world, tx_registry=StoreRegistry(tx), data=package.data)
            store_opened(tx, opened)
            package_rows.add(tx, record(package))
        with store.read() as tx:
            newest = key_sets.newest(tx, world.meter(2).system_title, 0, 1)
            assert newest is not None
            assert sent[1].key_set is not None
            assert newest.keys == sent[1].key_set.keys
            assert meters.require(tx, world.meter(3).system_title).serial == "S3"
            assert pinned_signers(tx, "factory") == (pinned["package-signing"],)
            with pytest.raises(PackageRefusedError, match="is refused") as raised:
                world_open(world, tx_registry=StoreRegistry(tx), data=package.data)
    assert "the sequence 1 does not rise: 1 was taken before" in raised.value.reasons
    assert len(raised.value.reasons) == 4


def world_open(world: World, tx_registry: StoreRegistry, data: bytes) -> Opened:
    at = world.pki.root.certificate.not_valid_before_utc
    return open_package(world.vault, tx_registry, world.receiver, data, at)


def record(package: Package) -> PackageRecord:
    header = package.header
    dates = (header.created, header.expires)
    purpose = header.purpose.value
    count = len(package.meters)
    return PackageRecord(
        header.id, Direction.RECEIVED, purpose, header.sequence, "factory", *dates, package.sha256, "accepted", count
    )


def test_a_registered_recipient_has_its_pinned_certificate(world: World, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"
    Store.create(url)
    leaf = world.recipient.certificate
    row = CertificateRecord(
        fingerprint(leaf), leaf.public_bytes(Encoding.DER), "key-agreement", "5554490000000001", "Test issuing",
        leaf.serial_number.to_bytes(20), leaf.not_valid_before_utc, leaf.not_valid_after_utc, "utility", Source.PARTY,
    )  # fmt: skip
    peer = world.recipient.peer
    with Store.open(url, world.vault, "test") as store, store.begin("party add", "utility", {}) as tx:
        certificates.add(tx, row)
        pinned = {"key-agreement": fingerprint(leaf)}
        parties.add(tx, Party(peer.name, peer.role, peer.system_title, certificates=pinned))
        parties.add(tx, Party("other", "utility"))
        assert registered_recipient(tx, "utility", world.recipient.chain) == world.recipient
        with pytest.raises(RefusedError, match="no key-agreement certificate"):
            registered_recipient(tx, "other")
        with pytest.raises(RefusedError, match="no package-signing certificate"):
            pinned_signers(tx, "other")


def test_holders_are_told_for_each_key(world: World) -> None:
    package = world.build(world.out(1), world.out(2))
    held = list(given_by(package.meters))
    assert [place for place, _ in held] == [entry.name for entry in package.meters]
    assert [len(identities) for _, identities in held] == [4, 4]
    assert len({identity for _, identities in held for identity in identities}) == 8
