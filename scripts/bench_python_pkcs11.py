"""Provisions meters as one would with python-pkcs11: MODULE TOKEN_LABEL PIN_FILE COUNT; prints the seconds it took.

The same keys as hsmkm makes, of the same attributes, wrapped and destroyed through the library's objects.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

BITS, PACKAGE_BITS = 128, 256
MAC_DATA = bytes(512)
TRAVELS = {Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: True, Attribute.TOKEN: False}


def provision(session: Any, found: dict[str, Any], package: Any) -> None:  # noqa: ANN401 - the library has no types
    """Make one key set: 4 keys, wrapped for the store and for the meter, and a MAC."""
    wraps = pkcs11.MechanismFlag.WRAP
    master = session.generate_key(KeyType.AES, BITS, capabilities=wraps, template=TRAVELS)
    others = [session.generate_key(KeyType.AES, BITS, capabilities=0, template=TRAVELS) for _ in range(3)]
    for number, key in enumerate((master, *others)):
        found["gak-storage:1" if number == 3 else "storage:1"].wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP)  # noqa: PLR2004 - the last is the GAK
    for key in others:
        master.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP)
    package.wrap_key(master, mechanism=Mechanism.AES_KEY_WRAP)
    found["integrity:1"].sign(MAC_DATA, mechanism=Mechanism.SHA256_HMAC)
    for key in (master, *others):
        key.destroy()


def main(module: str, label: str, pin_file: str, count: str) -> None:
    """Log in, find the long-lived keys, and provision."""
    token = pkcs11.lib(module).get_token(token_label=label)
    with token.open(rw=True, user_pin=Path(pin_file).read_text(encoding="ascii").strip()) as session:
        names = ("storage:1", "gak-storage:1", "integrity:1")
        found = {name: session.get_key(ObjectClass.SECRET_KEY, label=name) for name in names}
        template = {Attribute.TOKEN: False, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
        wraps = pkcs11.MechanismFlag.WRAP
        package = session.generate_key(KeyType.AES, PACKAGE_BITS, capabilities=wraps, template=template)
        began = time.monotonic()
        for _ in range(int(count)):
            provision(session, found, package)
        sys.stdout.write(f"{time.monotonic() - began:.9f}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
