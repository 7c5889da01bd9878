"""A key manager for DLMS/COSEM smart metering whose keys live in a token behind PKCS#11."""
