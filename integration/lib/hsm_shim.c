/* A PKCS#11 module that is SoftHSM, but for what HSM_TROUBLE says: what SoftHSM itself never does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ul;

/* PKCS#11 2.40, CK_FUNCTION_LIST: a version, and the functions in the standard's order. */
struct functions {
    ul version;
    ul (*function[68])();
};
enum { GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, LOGIN = 18 };

static struct functions *real, changed;

static int trouble(const char *name) {
    const char *set = getenv("HSM_TROUBLE");
    return set && !strcmp(set, name);
}

static ul get_slot_list(unsigned char present, ul *slots, ul *count) {
    if (trouble("hang"))
        for (;;)
            pause();
    if (trouble("slow"))
        sleep(2);
    return real->function[GET_SLOT_LIST](present, slots, count);
}

static ul get_token_info(ul slot, unsigned char *info) {
    ul code = real->function[GET_TOKEN_INFO](slot, info), flags;
    memcpy(&flags, info + 96, sizeof flags);
    if (trouble("final-try"))
        flags |= 0x20000; /* CKF_USER_PIN_FINAL_TRY */
    memcpy(info + 96, &flags, sizeof flags);
    return code;
}

static ul open_session(ul slot, ul flags, void *application, void *notify, ul *session) {
    if (trouble("removed"))
        return 0x32; /* CKR_DEVICE_REMOVED */
    return real->function[OPEN_SESSION](slot, flags, application, notify, session);
}

/* Each PIN that is tried is a byte in HSM_LOGINS. */
static ul login(ul session, ul user, unsigned char *pin, ul length) {
    const char *path = getenv("HSM_LOGINS");
    FILE *logins = path ? fopen(path, "a") : 0;
    if (logins) {
        fputc('x', logins);
        fclose(logins);
    }
    if (trouble("locked"))
        return 0xa4; /* CKR_PIN_LOCKED */
    return real->function[LOGIN](session, user, pin, length);
}

ul C_GetFunctionList(struct functions **list) {
    void *library = dlopen("/usr/lib/softhsm/libsofthsm2.so", RTLD_NOW | RTLD_LOCAL);
    ul (*get)(struct functions **) = library ? dlsym(library, "C_GetFunctionList") : 0;
    if (!get || get(&real) != 0)
        return 5; /* CKR_GENERAL_ERROR */
    changed = *real;
    changed.function[GET_SLOT_LIST] = (ul (*)())get_slot_list;
    changed.function[GET_TOKEN_INFO] = (ul (*)())get_token_info;
    changed.function[OPEN_SESSION] = (ul (*)())open_session;
    changed.function[LOGIN] = (ul (*)())login;
    *list = &changed;
    return 0;
}
