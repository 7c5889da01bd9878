"""A line without CMS or PKCS#11 brings a record's keys into the independent meter, which then holds the store's."""

from __future__ import annotations

import json
import secrets

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from hsmkm.dlms import security_setup
from hsmkm.dlms.security_setup import KeyTransfer
from hsmkm.dlms.types import KeyId
from hsmkm.steps.line_keys import import_line_key
from hsmkm.steps.line_records import provision_records
from tests.interop.station import READING, REGISTER, Station, stranger
from tests.realm import title_of

pytestmark = pytest.mark.slow

TITLE = title_of(31)


def test_an_independent_meter_takes_the_keys_of_a_record_as_they_are(station: Station) -> None:
    key, order = secrets.token_bytes(32), station.realm.order(31, name="legacy.csv")
    file = station.folder / "line.key"
    file.touch(0o600)
    file.write_text(key.hex())
    with station.realm.open("factory") as party:
        import_line_key(party, "press-7", order, [file])
        (path,) = provision_records(party, order, "press-7").packages
        record = json.loads(path.read_text())
        wrapped = {role: bytes.fromhex(each["wrapped"]) for role, each in record["keys"].items()}
        port = station.start(TITLE, "--kek", aes_key_unwrap(key, wrapped["master"]).hex())
        with stranger(port, TITLE, station.realm.initial_keys()) as client:
            keys = [KeyTransfer(KeyId[role.upper()], wrapped[role]) for role in ("guek", "gbek", "gak")]
            client.action(security_setup.key_transfer_method(), security_setup.encode_key_transfer(keys))
        held = station.meter_keys(TITLE)
        assert held == station.store_keys(party, TITLE)
    with stranger(port, TITLE, held) as client:
        assert client.get(REGISTER).integer() == READING
