"""All of PKCS#11: sessions of a token, the keys of a party in it, and the operations on a meter's keys."""
