"""What gurux-dlms (GPLv2) makes of the content of a broadcast under general-glo-ciphering, as a process of its own.

    python gurux_broadcast.py SUITE GBEK GAK SENDER COUNTER PLAIN

Its last line is the content: ciphertext and tag.
"""

from __future__ import annotations

import sys
from io import StringIO

from gurux_dlms.AesGcmParameter import AesGcmParameter  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.CountType import CountType  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.enums import Security  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.GXDLMSChippering import GXDLMSChippering  # type: ignore[import-not-found] # lives in the peer environment only
from gurux_dlms.objects.enums import SecuritySuite  # type: ignore[import-not-found] # lives in the peer environment only

OUT, sys.stdout = sys.stdout, StringIO()  # gurux prints key material while ciphering


def main() -> None:
    suite, counter = int(sys.argv[1]), int(sys.argv[5])
    key, gak, sender, plain = (bytearray.fromhex(sys.argv[at]) for at in (2, 3, 4, 6))
    parameters = AesGcmParameter(0xDB, sender, key, gak)
    parameters.security = Security.AUTHENTICATION_ENCRYPTION
    parameters.securitySuite = SecuritySuite(suite)
    parameters.invocationCounter = counter
    parameters.broadcast = True
    parameters.type_ = CountType.DATA | CountType.TAG
    content = GXDLMSChippering.encryptAesGcm(parameters, bytes(plain))
    OUT.write(bytes(content).hex() + "\n")


main()
