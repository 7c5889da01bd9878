"""How APDUs travel: framing, gateways and connections, without knowledge of keys."""
