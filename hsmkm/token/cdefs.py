"""The C declarations of PKCS#11 2.40 that are called, for cffi in ABI mode (Linux, 64-bit CK_ULONG).

`scripts/declare.py --write` compiles them to `hsmkm.token.declared`, so that no process parses C when it starts.
"""

from __future__ import annotations

_CALLED = {
    "C_Initialize": "void *",
    "C_Finalize": "void *",
    "C_GetSlotList": "unsigned char, CK_ULONG *, CK_ULONG *",
    "C_GetTokenInfo": "CK_ULONG, CK_TOKEN_INFO *",
    "C_GetMechanismList": "CK_ULONG, CK_ULONG *, CK_ULONG *",
    "C_InitToken": "CK_ULONG, unsigned char *, CK_ULONG, unsigned char *",
    "C_InitPIN": "CK_ULONG, unsigned char *, CK_ULONG",
    "C_OpenSession": "CK_ULONG, CK_ULONG, void *, void *, CK_ULONG *",
    "C_CloseSession": "CK_ULONG",
    "C_GetSessionInfo": "CK_ULONG, CK_SESSION_INFO *",
    "C_Login": "CK_ULONG, CK_ULONG, unsigned char *, CK_ULONG",
    "C_Logout": "CK_ULONG",
    "C_CreateObject": "CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "C_CopyObject": "CK_ULONG, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "C_DestroyObject": "CK_ULONG, CK_ULONG",
    "C_GetAttributeValue": "CK_ULONG, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG",
    "C_SetAttributeValue": "CK_ULONG, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG",
    "C_FindObjectsInit": "CK_ULONG, CK_ATTRIBUTE *, CK_ULONG",
    "C_FindObjects": "CK_ULONG, CK_ULONG *, CK_ULONG, CK_ULONG *",
    "C_FindObjectsFinal": "CK_ULONG",
    "C_EncryptInit": "CK_ULONG, CK_MECHANISM *, CK_ULONG",
    "C_Encrypt": "CK_ULONG, unsigned char *, CK_ULONG, unsigned char *, CK_ULONG *",
    "C_DecryptInit": "CK_ULONG, CK_MECHANISM *, CK_ULONG",
    "C_Decrypt": "CK_ULONG, unsigned char *, CK_ULONG, unsigned char *, CK_ULONG *",
    "C_DigestInit": "CK_ULONG, CK_MECHANISM *",
    "C_DigestUpdate": "CK_ULONG, unsigned char *, CK_ULONG",
    "C_DigestKey": "CK_ULONG, CK_ULONG",
    "C_DigestFinal": "CK_ULONG, unsigned char *, CK_ULONG *",
    "C_SignInit": "CK_ULONG, CK_MECHANISM *, CK_ULONG",
    "C_Sign": "CK_ULONG, unsigned char *, CK_ULONG, unsigned char *, CK_ULONG *",
    "C_GenerateKey": "CK_ULONG, CK_MECHANISM *, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "C_GenerateKeyPair": (
        "CK_ULONG, CK_MECHANISM *, CK_ATTRIBUTE *, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *, CK_ULONG *"
    ),
    "C_WrapKey": "CK_ULONG, CK_MECHANISM *, CK_ULONG, CK_ULONG, unsigned char *, CK_ULONG *",
    "C_UnwrapKey": (
        "CK_ULONG, CK_MECHANISM *, CK_ULONG, unsigned char *, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *"
    ),
    "C_DeriveKey": "CK_ULONG, CK_MECHANISM *, CK_ULONG, CK_ATTRIBUTE *, CK_ULONG, CK_ULONG *",
    "C_GenerateRandom": "CK_ULONG, unsigned char *, CK_ULONG",
}

# The order is that of CK_FUNCTION_LIST in pkcs11f.h.
FUNCTIONS = (
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetFunctionList",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_InitToken",
    "C_InitPIN",
    "C_SetPIN",
    "C_OpenSession",
    "C_CloseSession",
    "C_CloseAllSessions",
    "C_GetSessionInfo",
    "C_GetOperationState",
    "C_SetOperationState",
    "C_Login",
    "C_Logout",
    "C_CreateObject",
    "C_CopyObject",
    "C_DestroyObject",
    "C_GetObjectSize",
    "C_GetAttributeValue",
    "C_SetAttributeValue",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_EncryptInit",
    "C_Encrypt",
    "C_EncryptUpdate",
    "C_EncryptFinal",
    "C_DecryptInit",
    "C_Decrypt",
    "C_DecryptUpdate",
    "C_DecryptFinal",
    "C_DigestInit",
    "C_Digest",
    "C_DigestUpdate",
    "C_DigestKey",
    "C_DigestFinal",
    "C_SignInit",
    "C_Sign",
    "C_SignUpdate",
    "C_SignFinal",
    "C_SignRecoverInit",
    "C_SignRecover",
    "C_VerifyInit",
    "C_Verify",
    "C_VerifyUpdate",
    "C_VerifyFinal",
    "C_VerifyRecoverInit",
    "C_VerifyRecover",
    "C_DigestEncryptUpdate",
    "C_DecryptDigestUpdate",
    "C_SignEncryptUpdate",
    "C_DecryptVerifyUpdate",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_WrapKey",
    "C_UnwrapKey",
    "C_DeriveKey",
    "C_SeedRandom",
    "C_GenerateRandom",
    "C_GetFunctionStatus",
    "C_CancelFunction",
    "C_WaitForSlotEvent",
)
CALLED = tuple(_CALLED)

_TYPES = """
typedef unsigned long CK_ULONG;
typedef struct { unsigned char major; unsigned char minor; } CK_VERSION;
typedef struct { CK_ULONG type; void *pValue; CK_ULONG ulValueLen; } CK_ATTRIBUTE;
typedef struct { CK_ULONG mechanism; void *pParameter; CK_ULONG ulParameterLen; } CK_MECHANISM;
typedef struct {
    void *CreateMutex; void *DestroyMutex; void *LockMutex; void *UnlockMutex; CK_ULONG flags; void *pReserved;
    void *nssReserved;
} CK_C_INITIALIZE_ARGS;
typedef struct {
    unsigned char label[32]; unsigned char manufacturerID[32]; unsigned char model[16]; unsigned char serialNumber[16];
    CK_ULONG flags; CK_ULONG ulMaxSessionCount; CK_ULONG ulSessionCount; CK_ULONG ulMaxRwSessionCount;
    CK_ULONG ulRwSessionCount; CK_ULONG ulMaxPinLen; CK_ULONG ulMinPinLen; CK_ULONG ulTotalPublicMemory;
    CK_ULONG ulFreePublicMemory; CK_ULONG ulTotalPrivateMemory; CK_ULONG ulFreePrivateMemory;
    CK_VERSION hardwareVersion; CK_VERSION firmwareVersion; unsigned char utcTime[16];
} CK_TOKEN_INFO;
typedef struct { CK_ULONG slotID; CK_ULONG state; CK_ULONG flags; CK_ULONG ulDeviceError; } CK_SESSION_INFO;
typedef struct {
    unsigned char *pIv; CK_ULONG ulIvLen; CK_ULONG ulIvBits; unsigned char *pAAD; CK_ULONG ulAADLen; CK_ULONG ulTagBits;
} CK_GCM_PARAMS;
typedef struct {
    CK_ULONG kdf; CK_ULONG ulSharedDataLen; unsigned char *pSharedData;
    CK_ULONG ulPublicDataLen; unsigned char *pPublicData;
} CK_ECDH1_DERIVE_PARAMS;
typedef struct { unsigned char *pData; CK_ULONG ulLen; } CK_KEY_DERIVATION_STRING_DATA;
"""


def cdefs() -> str:
    """Write the declarations: the types, the function list in its order, and the one exported entry point."""
    members = [
        f"    CK_ULONG (*{name})({_CALLED[name]});" if name in _CALLED else f"    void *{name};" for name in FUNCTIONS
    ]
    function_list = "typedef struct {\n    CK_VERSION version;\n" + "\n".join(members) + "\n} CK_FUNCTION_LIST;\n"
    return _TYPES + function_list + "CK_ULONG C_GetFunctionList(CK_FUNCTION_LIST **);\n"
