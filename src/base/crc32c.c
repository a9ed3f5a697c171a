/* SPDX-License-Identifier: Apache-2.0 */
/* CRC32C over ranges of any length; ISA-L takes at most INT_MAX bytes and leaves inversion to us.
 */
#include "base/crc32c.h"
#include <isa-l/crc.h>
#include "base/check.h"

#define PIECE_SIZE_MAX ((size_t)1 << 30)

uint32_t crc32c(uint32_t seed, const void *p, size_t length)
{
    const unsigned char *bytes = p;
    uint32_t crc = ~seed;
    while (length > 0) {
        size_t piece = MIN(length, PIECE_SIZE_MAX);
        crc = crc32_iscsi((unsigned char *)bytes, (int)piece, crc);
        bytes += piece;
        length -= piece;
    }
    return ~crc;
}
