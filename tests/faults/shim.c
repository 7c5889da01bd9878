/*
 * A PKCS#11 module that stands before another one: it passes every call on, and breaks one where it is told to.
 *
 * Environment, read once when it is loaded:
 *   SHIM_MODULE    path of the module behind it (needed)
 *   SHIM_FAULT     a plan (below)
 *   SHIM_ONCE      path of a file that is made when the plan strikes; while it exists, no process of the plan strikes
 *   SHIM_DELAY_US  microseconds that each call takes longer: a token behind a network
 *   SHIM_RECORD    path of a file to which each call appends a line of JSON
 *
 * A plan is "CALL NTH ACTION CODE TIMES": from the NTH call of this name on ("*" is any name), TIMES calls (0: all that
 * follow) are struck. ACTION is fail (not passed on, answers CODE), lose (passed on, then answers CODE), delay (CODE
 * milliseconds), hang, mute (passed on, then hangs), kill (the process dies instead of the call) or die (after it).
 * In a process, shim_arm() takes a plan and starts to count; shim_hits() tells how often it struck.
 *
 * The record names keys by what C_DigestKey says of them in a session of its own, so that no value leaves the token.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_KEYS 4096
#define LINE_OCTETS 16384
#define DIGEST_OCTETS 32

enum action { PASS, FAIL, LOSE, DELAY, HANG, MUTE, KILL, DIE };

static const char *const ACTIONS[] = {"pass", "fail", "lose", "delay", "hang", "mute", "kill", "die"};

struct plan {
    char call[40];
    long nth;
    enum action action;
    unsigned long code;
    long times;
    long seen;
    long hits;
};

struct known {
    CK_OBJECT_HANDLE handle;
    char text[200];
};

struct line {
    char text[LINE_OCTETS];
    size_t length;
};

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST mine;
static struct plan plan;
static long delay_us;
static int record = -1;
static long generation;
static CK_SESSION_HANDLE own_session;
static CK_SLOT_ID own_slot;
static struct known known[MAX_KEYS];
static size_t known_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The plan */

static void sleep_us(long us) {
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (us > 0 && nanosleep(&left, &left) != 0) {
    }
}

static int set_plan(const char *text) {
    struct plan made;
    char action[8];
    memset(&made, 0, sizeof made);
    if (*text && sscanf(text, "%39s %ld %7s %li %ld", made.call, &made.nth, action, (long *)&made.code, &made.times) != 5)
        return 0;
    for (size_t i = 0; *text && i < sizeof ACTIONS / sizeof *ACTIONS; i++)
        if (strcmp(action, ACTIONS[i]) == 0)
            made.action = (enum action)i;
    pthread_mutex_lock(&lock);
    plan = made;
    pthread_mutex_unlock(&lock);
    return !*text || made.action != PASS;
}

/* Whether the plan may strike in this process: with SHIM_ONCE it strikes in one. */
static int first_of_all(void) {
    const char *once = getenv("SHIM_ONCE");
    if (!once || plan.hits)
        return 1;
    int file = open(once, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (file < 0)
        return 0;
    close(file);
    return 1;
}

static struct plan begin(const char *name) {
    struct plan struck;
    memset(&struck, 0, sizeof struck);
    sleep_us(delay_us);
    pthread_mutex_lock(&lock);
    if (plan.action != PASS && (strcmp(plan.call, "*") == 0 || strcmp(plan.call, name) == 0)) {
        plan.seen++;
        int reached = plan.seen >= plan.nth && (plan.times == 0 || plan.seen < plan.nth + plan.times);
        if (reached && first_of_all()) {
            plan.hits++;
            struck = plan;
        }
    }
    pthread_mutex_unlock(&lock);
    if (struck.action == KILL)
        kill(getpid(), SIGKILL);
    while (struck.action == HANG)
        pause();
    if (struck.action == DELAY)
        sleep_us((long)struck.code * 1000);
    return struck;
}

static CK_RV end(const struct plan *struck, CK_RV code) {
    if (struck->action == DIE)
        kill(getpid(), SIGKILL);
    while (struck->action == MUTE)
        pause();
    return struck->action == LOSE ? struck->code : code;
}

/* The record */

static void put(struct line *line, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int made = vsnprintf(line->text + line->length, LINE_OCTETS - line->length, format, list);
    va_end(list);
    if (made > 0 && line->length + (size_t)made < LINE_OCTETS)
        line->length += (size_t)made;
}

static void put_hex(struct line *line, const unsigned char *octets, size_t count) {
    for (size_t i = 0; i < count; i++)
        put(line, "%02x", octets[i]);
}

static void forget(CK_OBJECT_HANDLE handle) {
    for (size_t i = 0; i < known_count; i++)
        if (known[i].handle == handle)
            known[i--] = known[--known_count];
}

static CK_RV digest(CK_OBJECT_HANDLE key, unsigned char *out) {
    CK_MECHANISM mechanism = {CKM_SHA256, NULL, 0};
    CK_ULONG room = DIGEST_OCTETS;
    unsigned char prefix[] = "hsmkm fault record";
    CK_RV code = real->C_DigestInit(own_session, &mechanism);
    if (code)
        return code;
    real->C_DigestUpdate(own_session, prefix, sizeof prefix);
    code = real->C_DigestKey(own_session, key);
    CK_RV ended = real->C_DigestFinal(own_session, out, &room);
    return code ? code : ended;
}

static int open_own_session(CK_SESSION_HANDLE session) {
    CK_SESSION_INFO info;
    if (real->C_GetSessionInfo(session, &info))
        return 0;
    if (own_session && own_slot == info.slotID)
        return 1;
    own_slot = info.slotID;
    return !real->C_OpenSession(own_slot, CKF_SERIAL_SESSION, NULL, NULL, &own_session);
}

/* Say what an object is: "CLASS:FINGERPRINT:LABEL", with a label for token objects only. */
static void describe(char *out, size_t room, CK_OBJECT_HANDLE handle) {
    CK_OBJECT_CLASS class = 0;
    CK_BBOOL on_token = 0;
    unsigned char label[64] = "", hash[DIGEST_OCTETS];
    CK_ATTRIBUTE asked[] = {{CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &on_token, sizeof on_token}};
    CK_ATTRIBUTE named = {CKA_LABEL, label, sizeof label - 1};
    if (real->C_GetAttributeValue(own_session, handle, asked, 2)) {
        snprintf(out, room, "unknown::");
        return;
    }
    if (on_token && real->C_GetAttributeValue(own_session, handle, &named, 1) == CKR_OK)
        label[named.ulValueLen] = 0;
    struct line text = {.length = 0};
    put(&text, "%s:", class == CKO_SECRET_KEY ? "secret" : class == CKO_PRIVATE_KEY ? "private" : "other");
    if (class == CKO_SECRET_KEY && digest(handle, hash) == CKR_OK)
        put_hex(&text, hash, 16);
    put(&text, ":%s", label);
    size_t octets = text.length < room ? text.length : room - 1;
    memcpy(out, text.text, octets);
    out[octets] = 0;
}

static void put_object(struct line *line, const char *name, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle) {
    put(line, ",\"%s\":", name);
    for (size_t i = 0; i < known_count; i++)
        if (known[i].handle == handle) {
            put(line, "[%lu,\"%s\"]", handle, known[i].text);
            return;
        }
    struct known made = {.handle = handle, .text = "unknown::"};
    if (open_own_session(session)) {
        describe(made.text, sizeof made.text, handle);
        if (known_count < MAX_KEYS && strncmp(made.text, "unknown", 7) != 0)
            known[known_count++] = made;
    }
    put(line, "[%lu,\"%s\"]", handle, made.text);
}

/* A value is named by its length only; so is a template within a template. */
static void put_template(struct line *line, const char *name, const CK_ATTRIBUTE *listed, CK_ULONG count, int answers) {
    put(line, ",\"%s\":{", name);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_ULONG octets = listed[i].ulValueLen;
        int hidden = answers || listed[i].type == CKA_VALUE || octets > 256 || (listed[i].type & CKF_ARRAY_ATTRIBUTE);
        put(line, "%s\"%lu\":", i ? "," : "", listed[i].type);
        if (hidden) {
            put(line, "%ld", (long)octets);
            continue;
        }
        put(line, "\"");
        put_hex(line, listed[i].pValue, octets);
        put(line, "\"");
    }
    put(line, "}");
}

static void put_mechanism(struct line *line, const CK_MECHANISM *mechanism) {
    put(line, ",\"mechanism\":%lu", mechanism->mechanism);
    if (mechanism->mechanism == CKM_AES_GCM) {
        const CK_GCM_PARAMS *gcm = mechanism->pParameter;
        put(line, ",\"iv\":\"");
        put_hex(line, gcm->pIv, gcm->ulIvLen);
        put(line, "\"");
    }
}

static void start_line(struct line *line, const char *name, CK_RV code, const struct plan *struck) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    line->length = 0;
    put(line, "{\"time\":%lld,\"process\":%d,\"generation\":%ld,\"call\":\"%s\",\"code\":%lu,\"struck\":\"%s\"",
        (long long)now.tv_sec * 1000000000 + now.tv_nsec, getpid(), generation, name, code, ACTIONS[struck->action]);
}

static void end_line(struct line *line) {
    put(line, "}\n");
    if (write(record, line->text, line->length) != (ssize_t)line->length)
        abort(); /* a record with holes proves nothing */
}

/*
 * One hook for each call: NOTE writes what the record needs of it, after the call, under the lock. FIRST is what must be
 * noted before it, while the object still exists.
 */
#define HOOK(NAME, PARAMETERS, ARGUMENTS, FIRST, NOTE)                    \
    static CK_RV shim_##NAME PARAMETERS {                                  \
        struct plan struck = begin(#NAME);                                 \
        if (struck.action == FAIL)                                         \
            return struck.code;                                            \
        struct line line;                                                  \
        line.length = 0;                                                   \
        if (record >= 0) {                                                 \
            pthread_mutex_lock(&lock);                                     \
            FIRST;                                                         \
            pthread_mutex_unlock(&lock);                                   \
        }                                                                  \
        CK_RV code = real->NAME ARGUMENTS;                                 \
        if (record >= 0) {                                                 \
            pthread_mutex_lock(&lock);                                     \
            start_line(&line, #NAME, code, &struck);                       \
            NOTE;                                                          \
            end_line(&line);                                               \
            pthread_mutex_unlock(&lock);                                   \
        }                                                                  \
        return end(&struck, code);                                         \
    }
#define NOTHING (void)0
#define KEY(NAME, HANDLE) put_object(&line, NAME, session, HANDLE)
#define MADE(HANDLE)                                    \
    do {                                                \
        if (code == CKR_OK) {                           \
            forget(HANDLE);                             \
            KEY("made", HANDLE);                        \
        }                                               \
    } while (0)

static void forget_all(void) {
    known_count = 0;
    own_session = 0;
    generation++;
}

HOOK(C_Initialize, (void *arguments), (arguments), NOTHING, forget_all())
HOOK(C_Finalize, (void *reserved), (reserved), NOTHING, forget_all())
HOOK(C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count), (present, slots, count), NOTHING, NOTHING)
HOOK(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO *info), (slot, info), NOTHING, NOTHING)
HOOK(C_GetMechanismList, (CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count), (slot, list, count), NOTHING, NOTHING)
HOOK(C_InitToken, (CK_SLOT_ID slot, unsigned char *pin, CK_ULONG octets, unsigned char *label), (slot, pin, octets, label), NOTHING, NOTHING)
HOOK(C_InitPIN, (CK_SESSION_HANDLE session, unsigned char *pin, CK_ULONG octets), (session, pin, octets), NOTHING, NOTHING)
HOOK(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *session),
     (slot, flags, application, notify, session), NOTHING, NOTHING)
HOOK(C_CloseSession, (CK_SESSION_HANDLE session), (session), NOTHING, known_count = 0)
HOOK(C_GetSessionInfo, (CK_SESSION_HANDLE session, CK_SESSION_INFO *info), (session, info), NOTHING, NOTHING)
HOOK(C_Login, (CK_SESSION_HANDLE session, CK_USER_TYPE user, unsigned char *pin, CK_ULONG octets), (session, user, pin, octets), NOTHING,
     put(&line, ",\"user\":%lu", user))
HOOK(C_Logout, (CK_SESSION_HANDLE session), (session), NOTHING, NOTHING)
HOOK(C_CreateObject, (CK_SESSION_HANDLE session, CK_ATTRIBUTE *listed, CK_ULONG count, CK_OBJECT_HANDLE *object),
     (session, listed, count, object), NOTHING, put_template(&line, "template", listed, count, 0); MADE(*object))
HOOK(C_CopyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_ATTRIBUTE *listed, CK_ULONG count, CK_OBJECT_HANDLE *object),
     (session, key, listed, count, object), NOTHING,
     KEY("key", key); put_template(&line, "template", listed, count, 0); MADE(*object))
HOOK(C_DestroyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key), (session, key), KEY("key", key),
     KEY("key", key); forget(key))
HOOK(C_GetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_ATTRIBUTE *listed, CK_ULONG count),
     (session, key, listed, count), NOTHING, KEY("key", key); put_template(&line, "read", listed, count, 1))
HOOK(C_SetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_ATTRIBUTE *listed, CK_ULONG count),
     (session, key, listed, count), NOTHING, KEY("key", key); put_template(&line, "template", listed, count, 0))
HOOK(C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE *listed, CK_ULONG count), (session, listed, count), NOTHING, NOTHING)
HOOK(C_FindObjects, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG most, CK_ULONG *count), (session, objects, most, count),
     NOTHING, put(&line, ",\"found\":[");
     for (CK_ULONG i = 0; code == CKR_OK && i < *count; i++) put(&line, "%s%lu", i ? "," : "", objects[i]); put(&line, "]"))
HOOK(C_FindObjectsFinal, (CK_SESSION_HANDLE session), (session), NOTHING, NOTHING)
HOOK(C_EncryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key), NOTHING,
     KEY("key", key); put_mechanism(&line, mechanism))
HOOK(C_Encrypt, (CK_SESSION_HANDLE session, unsigned char *data, CK_ULONG octets, unsigned char *out, CK_ULONG *room),
     (session, data, octets, out, room), NOTHING, NOTHING)
HOOK(C_DecryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key), NOTHING,
     KEY("key", key); put_mechanism(&line, mechanism))
HOOK(C_Decrypt, (CK_SESSION_HANDLE session, unsigned char *data, CK_ULONG octets, unsigned char *out, CK_ULONG *room),
     (session, data, octets, out, room), NOTHING, NOTHING)
HOOK(C_DigestInit, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism), (session, mechanism), NOTHING, put_mechanism(&line, mechanism))
HOOK(C_DigestUpdate, (CK_SESSION_HANDLE session, unsigned char *data, CK_ULONG octets), (session, data, octets), NOTHING, NOTHING)
HOOK(C_DigestKey, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key), (session, key), NOTHING, KEY("key", key))
HOOK(C_DigestFinal, (CK_SESSION_HANDLE session, unsigned char *out, CK_ULONG *room), (session, out, room), NOTHING, NOTHING)
HOOK(C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key), NOTHING,
     KEY("key", key); put_mechanism(&line, mechanism))
HOOK(C_Sign, (CK_SESSION_HANDLE session, unsigned char *data, CK_ULONG octets, unsigned char *out, CK_ULONG *room),
     (session, data, octets, out, room), NOTHING, NOTHING)
HOOK(C_GenerateKey, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *listed, CK_ULONG count, CK_OBJECT_HANDLE *key),
     (session, mechanism, listed, count, key), NOTHING,
     put_mechanism(&line, mechanism); put_template(&line, "template", listed, count, 0); MADE(*key))
HOOK(C_GenerateKeyPair,
     (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public, CK_ULONG public_count, CK_ATTRIBUTE *private,
      CK_ULONG private_count, CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key),
     (session, mechanism, public, public_count, private, private_count, public_key, private_key), NOTHING,
     put_mechanism(&line, mechanism); put_template(&line, "public", public, public_count, 0);
     put_template(&line, "template", private, private_count, 0);
     if (code == CKR_OK) { forget(*public_key); put_object(&line, "half", session, *public_key); } MADE(*private_key))
HOOK(C_WrapKey,
     (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE under, CK_OBJECT_HANDLE key, unsigned char *out, CK_ULONG *room),
     (session, mechanism, under, key, out, room), NOTHING, put_mechanism(&line, mechanism); KEY("under", under); KEY("key", key))
HOOK(C_UnwrapKey,
     (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE under, unsigned char *wrapped, CK_ULONG octets,
      CK_ATTRIBUTE *listed, CK_ULONG count, CK_OBJECT_HANDLE *key),
     (session, mechanism, under, wrapped, octets, listed, count, key), NOTHING,
     put_mechanism(&line, mechanism); KEY("under", under); put_template(&line, "template", listed, count, 0); MADE(*key))
HOOK(C_DeriveKey,
     (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE base, CK_ATTRIBUTE *listed, CK_ULONG count, CK_OBJECT_HANDLE *key),
     (session, mechanism, base, listed, count, key), NOTHING,
     put_mechanism(&line, mechanism); KEY("base", base); put_template(&line, "template", listed, count, 0); MADE(*key))
HOOK(C_GenerateRandom, (CK_SESSION_HANDLE session, unsigned char *out, CK_ULONG octets), (session, out, octets), NOTHING, NOTHING)

/* Loading, and what a process that holds it may ask */

#define USE(NAME) mine.NAME = shim_##NAME

static void hook_all(void) {
    mine = *real;
    USE(C_Initialize); USE(C_Finalize); USE(C_GetSlotList); USE(C_GetTokenInfo); USE(C_GetMechanismList); USE(C_InitToken);
    USE(C_InitPIN); USE(C_OpenSession); USE(C_CloseSession); USE(C_GetSessionInfo); USE(C_Login); USE(C_Logout);
    USE(C_CreateObject); USE(C_CopyObject); USE(C_DestroyObject); USE(C_GetAttributeValue); USE(C_SetAttributeValue);
    USE(C_FindObjectsInit); USE(C_FindObjects); USE(C_FindObjectsFinal); USE(C_EncryptInit); USE(C_Encrypt);
    USE(C_DecryptInit); USE(C_Decrypt); USE(C_DigestInit); USE(C_DigestUpdate); USE(C_DigestKey); USE(C_DigestFinal);
    USE(C_SignInit); USE(C_Sign); USE(C_GenerateKey); USE(C_GenerateKeyPair); USE(C_WrapKey); USE(C_UnwrapKey);
    USE(C_DeriveKey); USE(C_GenerateRandom);
}

static CK_RV load(void) {
    const char *path = getenv("SHIM_MODULE"), *file = getenv("SHIM_RECORD"), *delay = getenv("SHIM_DELAY_US"), *fault = getenv("SHIM_FAULT");
    void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    CK_RV (*entry)(CK_FUNCTION_LIST **) = module ? (CK_RV(*)(CK_FUNCTION_LIST **))dlsym(module, "C_GetFunctionList") : NULL;
    if (!entry || entry(&real) != CKR_OK) {
        fprintf(stderr, "shim: SHIM_MODULE names no PKCS#11 module: %s\n", path ? path : "(not set)");
        return CKR_GENERAL_ERROR;
    }
    delay_us = delay ? atol(delay) : 0;
    if (fault && !set_plan(fault)) {
        fprintf(stderr, "shim: SHIM_FAULT is no plan: %s\n", fault);
        return CKR_ARGUMENTS_BAD;
    }
    if (file && (record = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)) < 0)
        return CKR_GENERAL_ERROR;
    hook_all();
    return CKR_OK;
}

EXPORT CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    CK_RV code = real ? CKR_OK : load();
    *list = &mine;
    return code;
}

EXPORT int shim_arm(const char *text) { return set_plan(text); }

EXPORT long shim_hits(void) { return plan.hits; }

EXPORT long shim_seen(void) { return plan.seen; }

/* Append what follows to another file; an empty path ends the record. */
EXPORT int shim_record(const char *path) {
    pthread_mutex_lock(&lock);
    if (record >= 0)
        close(record);
    record = *path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    pthread_mutex_unlock(&lock);
    return !*path || record >= 0;
}

EXPORT void shim_delay(long microseconds) { delay_us = microseconds; }

/* End what a broken run left initialised. */
EXPORT void shim_reset(void) {
    set_plan("");
    if (real)
        real->C_Finalize(NULL);
    pthread_mutex_lock(&lock);
    forget_all();
    pthread_mutex_unlock(&lock);
}
