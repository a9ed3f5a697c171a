/* SPDX-License-Identifier: Apache-2.0 */
/* The entry that libFuzzer (or replay.c) calls, and what the fuzz programs share. */
#pragma once
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
