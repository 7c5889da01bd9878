"""The client of gurux-dlms (GPLv2) against a meter, as a process of its own.

    python gurux_client.py PORT GUEK GAK KEK NEW_GUEK NEW_GAK

It reads the counter as the public client, associates with HLS-GMAC, reads a register, transfers two keys, and
associates again under them. Its last line is the register's value as read under the new keys.
"""

from __future__ import annotations

import socket
import struct
import sys
from io import StringIO
from typing import Any

from gurux_dlms.enums import Authentication, InterfaceType, Security  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.GXByteBuffer import GXByteBuffer  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.GXReplyData import GXReplyData  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.objects import GXDLMSData, GXDLMSRegister, GXDLMSSecuritySetup  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.objects.enums import GlobalKeyType  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.secure import GXDLMSSecureClient  # type: ignore[import-not-found] # lives in the peer environment only

CLIENT_TITLE = b"MMM\x00\x00\x00\x00\x01"
OUT, sys.stdout = sys.stdout, StringIO()  # gurux prints key material while deciphering


class Connection:
    def __init__(self, port: int, client: Any) -> None:  # noqa: ANN401 - gurux-dlms has no types
        self.client = client
        self.socket = socket.create_connection(("127.0.0.1", port), 10)

    def receive(self, count: int) -> bytes:
        octets = b""
        while len(octets) < count:
            chunk = self.socket.recv(count - len(octets))
            if not chunk:
                raise ConnectionError
            octets += chunk
        return octets

    def exchange(self, frame: bytes, reply: Any) -> None:  # noqa: ANN401 - gurux-dlms has no types
        self.socket.sendall(bytes(frame))
        header = self.receive(8)
        answer = header + self.receive(struct.unpack(">H", header[6:])[0])
        self.client.getData(GXByteBuffer(answer), reply)

    def send(self, frames: Any) -> Any:  # noqa: ANN401 - gurux-dlms has no types
        reply = GXReplyData()
        for frame in frames if isinstance(frames, list) else [frames]:
            reply.clear()
            self.exchange(frame, reply)
            while reply.isMoreData():
                self.exchange(self.client.receiverReady(reply), reply)
        if reply.error:
            raise RuntimeError(f"refused with {reply.error}")
        return reply

    def associate(self) -> None:
        self.client.parseAareResponse(self.send(self.client.aarqRequest()).data)
        if self.client.authentication > Authentication.LOW:
            reply = self.send(self.client.getApplicationAssociationRequest())
            self.client.parseApplicationAssociationResponse(reply.data)

    def read(self, target: Any, index: int) -> Any:  # noqa: ANN401 - gurux-dlms has no types
        return self.client.updateValue(target, index, self.send(self.client.read(target, index)).value)

    def close(self) -> None:
        self.send(self.client.releaseRequest())
        self.socket.close()


def public_client(port: int) -> Connection:
    connection = Connection(port, GXDLMSSecureClient(True, 16, 1, Authentication.NONE, None, InterfaceType.WRAPPER))
    connection.associate()
    return connection


def secure_client(port: int, guek: bytes, gak: bytes, counter: int) -> Connection:
    client = GXDLMSSecureClient(True, 1, 1, Authentication.HIGH_GMAC, None, InterfaceType.WRAPPER)
    client.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
    client.ciphering.systemTitle = CLIENT_TITLE
    client.ciphering.blockCipherKey = guek
    client.ciphering.authenticationKey = gak
    client.ciphering.invocationCounter = counter
    connection = Connection(port, client)
    connection.associate()
    return connection


def main() -> None:
    port = int(sys.argv[1])
    guek, gak, kek, new_guek, new_gak = [bytes.fromhex(value) for value in sys.argv[2:]]
    public = public_client(port)
    counter = public.read(GXDLMSData("0.0.43.1.0.255"), 2)
    public.socket.close()
    old = secure_client(port, guek, gak, counter + 1)
    assert old.read(GXDLMSRegister("1.0.1.8.0.255"), 2) == 123456
    assert len(old.read(GXDLMSData("0.0.128.0.0.255"), 2)) >= 5000
    setup = GXDLMSSecuritySetup("0.0.43.0.0.255")
    keys = [(GlobalKeyType.UNICAST_ENCRYPTION, new_guek), (GlobalKeyType.AUTHENTICATION, new_gak)]
    old.send(setup.globalKeyTransfer(old.client, kek, keys))
    counter = old.client.ciphering.invocationCounter
    old.socket.close()
    new = secure_client(port, new_guek, new_gak, counter + 1)
    print(new.read(GXDLMSRegister("1.0.1.8.0.255"), 2), file=OUT)


if __name__ == "__main__":
    main()
