/*
 * The floor of scripts/bench: the PKCS#11 calls of one work on the same kind of keys, and nothing else.
 *
 *   bench_loop MODULE TOKEN_LABEL PIN_FILE WORK COUNT THREADS BATCH [KEY_LABEL]
 *
 * WORK is provision (4 generate, 8 wrap, 2 for the MAC, 4 destroy), transfer (4 unwrap, 4 wrap, 2 for the MAC, 4
 * destroy), gcm (64 octets: init, encrypt) or sign (init, sign, with the private key KEY_LABEL). Each thread has a
 * session of its own. With a BATCH the keys of so many rounds are made in a session of their own, which is closed
 * instead of destroying them; 0 destroys each. Prints the seconds that COUNT rounds took, without start and login.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KEYS 4
#define WRAPPED 24
#define MAC_DATA 512
#define APDU 64
#define AAD 17
#define FLAGS 7

static CK_FUNCTION_LIST *p11;
static CK_SLOT_ID slot;
static CK_OBJECT_HANDLE storage, gak_storage, integrity, signing;
static const char *work;
static long batch;
static pthread_barrier_t start;

struct share {
    pthread_t thread;
    long count;
};

static void check(CK_RV code, const char *call) {
    if (code != CKR_OK) {
        fprintf(stderr, "%s failed with 0x%lx\n", call, code);
        exit(1);
    }
}

#define CALL(name, ...) check(p11->name(__VA_ARGS__), #name)

static CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
static CK_OBJECT_CLASS secret = CKO_SECRET_KEY;
static CK_KEY_TYPE aes = CKK_AES;
static CK_ULONG octets = 16, package_octets = 32;
static const CK_ATTRIBUTE_TYPE USAGES[FLAGS] = {CKA_ENCRYPT, CKA_DECRYPT, CKA_WRAP, CKA_UNWRAP,
                                                CKA_SIGN,    CKA_VERIFY,  CKA_DERIVE};

/* The attributes of a session key, those of hsmkm/token/attributes.py in their order. */
struct key_template {
    CK_ATTRIBUTE list[8 + FLAGS + 1];
    CK_ULONG count;
};

static struct key_template key_template(CK_BBOOL *extractable, unsigned usages, CK_ULONG *length) {
    struct key_template made = {{{CKA_CLASS, &secret, sizeof secret},
                                 {CKA_KEY_TYPE, &aes, sizeof aes},
                                 {CKA_TOKEN, &no, 1},
                                 {CKA_PRIVATE, &yes, 1},
                                 {CKA_SENSITIVE, &yes, 1},
                                 {CKA_EXTRACTABLE, extractable, 1},
                                 {CKA_MODIFIABLE, &no, 1},
                                 {CKA_COPYABLE, &no, 1}},
                                8};
    for (int i = 0; i < FLAGS; i++)
        made.list[made.count++] = (CK_ATTRIBUTE){USAGES[i], usages >> i & 1 ? &yes : &no, 1};
    if (length)
        made.list[made.count++] = (CK_ATTRIBUTE){CKA_VALUE_LEN, length, sizeof *length};
    return made;
}

enum { ENCRYPTS = 3, WRAPS = 4 };

static CK_MECHANISM generate = {CKM_AES_KEY_GEN, NULL, 0}, wrap = {0x2109, NULL, 0}, hmac = {CKM_SHA256_HMAC, NULL, 0},
                    ecdsa = {CKM_ECDSA, NULL, 0};

static CK_OBJECT_HANDLE make(CK_SESSION_HANDLE session, struct key_template *like) {
    CK_OBJECT_HANDLE made;
    CALL(C_GenerateKey, session, &generate, like->list, like->count, &made);
    return made;
}

static void wrapped(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE under, CK_OBJECT_HANDLE key, unsigned char *out) {
    CK_ULONG length = 64;
    CALL(C_WrapKey, session, &wrap, under, key, out, &length);
}

static void mac(CK_SESSION_HANDLE session) {
    unsigned char data[MAC_DATA] = {0}, out[64];
    CK_ULONG length = sizeof out;
    CALL(C_SignInit, session, &hmac, integrity);
    CALL(C_Sign, session, data, sizeof data, out, &length);
}

static CK_SESSION_HANDLE opened(void) {
    CK_SESSION_HANDLE session;
    CALL(C_OpenSession, slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session);
    return session;
}

static void provision(long count, CK_SESSION_HANDLE session, CK_SESSION_HANDLE lasting) {
    struct key_template plain = key_template(&yes, 0, &octets), master = key_template(&yes, WRAPS, &octets),
                        carrier = key_template(&no, 0, &package_octets);
    carrier.list[5].pValue = &no;
    carrier.list[8 + 2].pValue = &yes;
    CK_OBJECT_HANDLE package = make(lasting, &carrier), keys[KEYS];
    unsigned char out[64];
    for (long round = 0; round < count; round++) {
        if (batch && round % batch == 0)
            session = opened();
        keys[0] = make(session, &master);
        for (int i = 1; i < KEYS; i++)
            keys[i] = make(session, &plain);
        for (int i = 0; i < KEYS; i++)
            wrapped(session, i == 3 ? gak_storage : storage, keys[i], out);
        for (int i = 1; i < KEYS; i++)
            wrapped(session, keys[0], keys[i], out);
        wrapped(session, package, keys[0], out);
        mac(session);
        for (int i = 0; i < KEYS && !batch; i++)
            CALL(C_DestroyObject, session, keys[i]);
        if (batch && (round % batch == batch - 1 || round == count - 1))
            CALL(C_CloseSession, session);
    }
}

static void transfer(long count, CK_SESSION_HANDLE session, CK_SESSION_HANDLE lasting) {
    struct key_template plain = key_template(&yes, 0, &octets), moving = key_template(&yes, 0, NULL),
                        carrier = key_template(&no, 0, &package_octets);
    carrier.list[8 + 2].pValue = &yes;
    moving.list[6].pValue = &yes; /* SoftHSM unwraps nothing that is not MODIFIABLE */
    CK_OBJECT_HANDLE package = make(lasting, &carrier), keys[KEYS];
    unsigned char stored[KEYS][64], out[64];
    for (int i = 0; i < KEYS; i++) {
        keys[i] = make(session, &plain);
        wrapped(session, i == 3 ? gak_storage : storage, keys[i], stored[i]);
        CALL(C_DestroyObject, session, keys[i]);
    }
    for (long round = 0; round < count; round++) {
        if (batch && round % batch == 0)
            session = opened();
        mac(session);
        for (int i = 0; i < KEYS; i++) {
            CALL(C_UnwrapKey, session, &wrap, i == 3 ? gak_storage : storage, stored[i], WRAPPED, moving.list,
                 moving.count, &keys[i]);
            wrapped(session, package, keys[i], out);
            if (!batch)
                CALL(C_DestroyObject, session, keys[i]);
        }
        if (batch && (round % batch == batch - 1 || round == count - 1))
            CALL(C_CloseSession, session);
    }
}

static void gcm(long count, CK_SESSION_HANDLE session, CK_SESSION_HANDLE lasting) {
    (void)lasting;
    struct key_template in_use = key_template(&no, ENCRYPTS, &octets);
    CK_OBJECT_HANDLE key = make(session, &in_use);
    unsigned char iv[12] = {0}, aad[AAD] = {0x30}, data[APDU] = {0}, out[APDU + 32];
    CK_GCM_PARAMS parameters;
    memset(&parameters, 0, sizeof parameters);
    parameters.pIv = iv, parameters.ulIvLen = sizeof iv, parameters.ulIvBits = 8 * sizeof iv;
    parameters.pAAD = aad, parameters.ulAADLen = sizeof aad, parameters.ulTagBits = 96;
    CK_MECHANISM mechanism = {CKM_AES_GCM, &parameters, sizeof parameters};
    for (long round = 0; round < count; round++) {
        CK_ULONG length = sizeof out;
        memcpy(iv + 8, &round, 4);
        CALL(C_EncryptInit, session, &mechanism, key);
        CALL(C_Encrypt, session, data, sizeof data, out, &length);
    }
}

static void sign(long count, CK_SESSION_HANDLE session, CK_SESSION_HANDLE lasting) {
    (void)lasting;
    unsigned char digest[48] = {1}, out[256];
    for (long round = 0; round < count; round++) {
        CK_ULONG length = sizeof out;
        CALL(C_SignInit, session, &ecdsa, signing);
        CALL(C_Sign, session, digest, sizeof digest, out, &length);
    }
}

static void *run(void *argument) {
    struct share *share = argument;
    CK_SESSION_HANDLE session = opened(), lasting = opened();
    void (*works[])(long, CK_SESSION_HANDLE, CK_SESSION_HANDLE) = {provision, transfer, gcm, sign};
    const char *const names[] = {"provision", "transfer", "gcm", "sign"};
    pthread_barrier_wait(&start);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(work, names[i]) == 0)
            works[i](share->count, session, lasting);
    return NULL;
}

static CK_OBJECT_HANDLE found(CK_SESSION_HANDLE session, CK_OBJECT_CLASS of_class, const char *label) {
    CK_ATTRIBUTE query[] = {{CKA_CLASS, &of_class, sizeof of_class},
                            {CKA_TOKEN, &yes, 1},
                            {CKA_LABEL, (void *)label, strlen(label)}};
    CK_OBJECT_HANDLE key;
    CK_ULONG count = 0;
    CALL(C_FindObjectsInit, session, query, 3);
    CALL(C_FindObjects, session, &key, 1, &count);
    CALL(C_FindObjectsFinal, session);
    if (!count) {
        fprintf(stderr, "the token has no key %s\n", label);
        exit(1);
    }
    return key;
}

static void load(const char *path, const char *label) {
    void *library = dlopen(path, RTLD_NOW);
    CK_C_GetFunctionList get = library ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : NULL;
    if (!get) {
        fprintf(stderr, "%s is not a PKCS#11 module\n", path);
        exit(1);
    }
    check(get(&p11), "C_GetFunctionList");
    CK_C_INITIALIZE_ARGS arguments = {.flags = CKF_OS_LOCKING_OK};
    CALL(C_Initialize, &arguments);
    CK_SLOT_ID slots[256];
    CK_ULONG count = 256;
    CALL(C_GetSlotList, CK_TRUE, slots, &count);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO info;
        CALL(C_GetTokenInfo, slots[i], &info);
        if (strncmp((char *)info.label, label, strlen(label)) == 0) {
            slot = slots[i];
            return;
        }
    }
    fprintf(stderr, "there is no token %s\n", label);
    exit(1);
}

static void log_in(CK_SESSION_HANDLE session, const char *path) {
    unsigned char pin[256];
    FILE *file = fopen(path, "r");
    size_t length = file ? fread(pin, 1, sizeof pin, file) : 0;
    while (length && pin[length - 1] == '\n')
        length--;
    if (file)
        fclose(file);
    CALL(C_Login, session, CKU_USER, pin, length);
}

int main(int argc, char **argv) {
    if (argc < 8) {
        fprintf(stderr, "bench_loop MODULE TOKEN_LABEL PIN_FILE WORK COUNT THREADS BATCH [KEY_LABEL]\n");
        return 2;
    }
    long count = atol(argv[5]), threads = atol(argv[6]);
    work = argv[4];
    batch = atol(argv[7]);
    load(argv[1], argv[2]);
    CK_SESSION_HANDLE first = opened();
    log_in(first, argv[3]);
    storage = found(first, CKO_SECRET_KEY, "storage:1");
    gak_storage = found(first, CKO_SECRET_KEY, "gak-storage:1");
    integrity = found(first, CKO_SECRET_KEY, "integrity:1");
    signing = argc > 8 ? found(first, CKO_PRIVATE_KEY, argv[8]) : 0;
    struct share *shares = calloc((size_t)threads, sizeof *shares);
    pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
    for (long i = 0; i < threads; i++) {
        shares[i].count = count / threads + (i < count % threads);
        pthread_create(&shares[i].thread, NULL, run, &shares[i]);
    }
    struct timespec began, ended;
    pthread_barrier_wait(&start);
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (long i = 0; i < threads; i++)
        pthread_join(shares[i].thread, NULL);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    printf("%.9f\n", (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
    CALL(C_Finalize, NULL);
    free(shares);
    return 0;
}
