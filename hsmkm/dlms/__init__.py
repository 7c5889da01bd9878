"""DLMS/COSEM as the standard has it: octets and values in, octets and values out.

No input or output, clock, randomness or key lives here. Cryptography is asked for through the protocols of
`ciphering`; the bounds on outside input are those of `octets` and `axdr`.
"""
