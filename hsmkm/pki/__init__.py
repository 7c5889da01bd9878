"""Certificates of the parties and meters: profiles, requests, authorities, revocation and trust.

Private keys of authorities and parties lie in the token; this layer sees them as `ec.EllipticCurvePrivateKey` and calls
nothing of them but `sign`, `curve` and `public_key`. TLS keys are the one exception: they lie in a file.
"""
