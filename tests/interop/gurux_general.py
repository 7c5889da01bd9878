"""What gurux-dlms (GPLv2) makes of the content of a general-ciphering APDU, as a process of its own.

    python gurux_general.py SUITE KEY GAK ORIGINATOR RECIPIENT COUNTER PLAIN

Its last line is the content: ciphertext and tag. It takes the counter as transaction-id, in 8 octets.
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
    suite, counter = int(sys.argv[1]), int(sys.argv[6])
    key, gak, originator, recipient, plain = (bytearray.fromhex(sys.argv[at]) for at in (2, 3, 4, 5, 7))
    parameters = AesGcmParameter(0xDD, originator, key, gak)
    parameters.recipientSystemTitle = recipient
    parameters.security = Security.AUTHENTICATION_ENCRYPTION
    parameters.securitySuite = SecuritySuite(suite)
    parameters.invocationCounter = counter
    parameters.type_ = CountType.DATA | CountType.TAG
    content = GXDLMSChippering.encryptAesGcm(parameters, bytes(plain))
    OUT.write(bytes(content).hex() + "\n")


main()
