"""The one container in which keys travel between parties: what it says, how it is signed, carried, sent and opened."""
