/* SPDX-License-Identifier: Apache-2.0 */
/* Names of volumes and tags, and their keys. */
#include "volume/names.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/err.h"

/* Length of one well-formed UTF-8 character at p, 0 if it is none; *ret its code point. */
static size_t utf8_next(const uint8_t *p, uint32_t *ret)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (p[0] < 0x80) {
        *ret = p[0];
        return 1;
    }
    size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
    if (length == 0 || p[0] > 0xf4)
        return 0;
    uint32_t c = p[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (c < least[length] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    *ret = c;
    return length;
}

/* Control characters, and characters that cannot be seen or turn the writing direction. */
static bool is_unprintable(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0xa0 || c == 0xad ||
           (c >= 0x2000 && c <= 0x200f) || (c >= 0x2028 && c <= 0x202f) ||
           (c >= 0x205f && c <= 0x206f) || c == 0x3000 || c == 0xfeff || (c & 0xfffe) == 0xfffe ||
           (c >= 0xe000 && c <= 0xf8ff) || c >= 0xe0000;
}

int name_check(const char *name, const char **ret_why)
{
    const char *why_unused;
    const char **why = ret_why ? ret_why : &why_unused;
    size_t length = strlen(name);
    *why = "it is empty";
    if (length == 0)
        return -EINVAL;
    *why = "it is longer than 255 bytes";
    if (length >= VOLUME_NAME_SIZE)
        return -ENAMETOOLONG;
    for (const uint8_t *p = (const uint8_t *)name; *p;) {
        uint32_t c = 0;
        size_t n = utf8_next(p, &c);
        *why = "it is not UTF-8";
        if (n == 0)
            return -EINVAL;
        *why = "'/', '@' and spaces are not allowed";
        if (c == '/' || c == '@' || c == ' ')
            return -EINVAL;
        *why = "control and invisible characters are not allowed";
        if (is_unprintable(c))
            return -EINVAL;
        p += n;
    }
    return 0;
}

/* Characters that stand for themselves in a key. */
static bool is_plain(uint8_t c)
{
    return c > ' ' && c < 0x7f && c != '%' && c != '~' && c != '/';
}

/* A hash ends long keys: two 64-bit values over the name, forwards and with a prefix. */
#define KEY_HASH_LENGTH 33 /* '~' and 32 digits */

void name_key(const char *name, char out[CS_KEY_SIZE])
{
    char key[sizeof(VOLUME_PREFIX) + 3 * VOLUME_NAME_SIZE];
    size_t n = sizeof(VOLUME_PREFIX) - 1;
    memcpy(key, VOLUME_PREFIX, n);
    for (const uint8_t *p = (const uint8_t *)name; *p; p++) {
        if (is_plain(*p))
            key[n++] = (char)*p;
        else
            n += (size_t)snprintf(key + n, 4, "%%%02x", *p);
    }
    key[n] = '\0';
    if (n < CS_KEY_SIZE) {
        memcpy(out, key, n + 1);
        return;
    }
    char again[VOLUME_NAME_SIZE + 1];
    int length = snprintf(again, sizeof(again), "~%s", name);
    size_t kept = CS_KEY_SIZE - 1 - KEY_HASH_LENGTH;
    memcpy(out, key, kept);
    snprintf(out + kept, KEY_HASH_LENGTH + 1, "~%016" PRIx64 "%016" PRIx64,
             hash_bytes(name, strlen(name)), hash_bytes(again, (size_t)length));
}

void trash_key(struct vid vid, char out[CS_KEY_SIZE])
{
    snprintf(out, CS_KEY_SIZE, TRASH_PREFIX "%016" PRIx64, vid.value);
}

void use_key(struct vid vid, struct session session, char out[CS_KEY_SIZE])
{
    snprintf(out, CS_KEY_SIZE, USE_PREFIX "%016" PRIx64 "/%" PRIu64, vid.value, session.value);
}

void use_prefix(struct vid vid, char out[CS_KEY_SIZE])
{
    snprintf(out, CS_KEY_SIZE, USE_PREFIX "%016" PRIx64 "/", vid.value);
}
