/* SPDX-License-Identifier: Apache-2.0 */
/* CRC32C (Castagnoli), by ISA-L. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* CRC32C of `length` bytes as RFC 3720 defines it ("123456789" gives 0xe3069283). To continue over
 * a further range pass the value returned before as `seed`; start with 0. */
uint32_t crc32c(uint32_t seed, const void *p, size_t length);
