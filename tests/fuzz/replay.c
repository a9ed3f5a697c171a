/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives a fuzz target without libFuzzer: the files and folders named as arguments (the kept
 * corpus), then a fixed number of pseudo-random inputs made of small numbers and protocol words,
 * always the same. So the target is compiled and run by every test run; the real fuzzing is done
 * with clang (README.md).
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/hash.h"
#include "tests/fuzz/fuzz.h"

#ifndef INPUT_COUNT /* fewer where each takes long */
#define INPUT_COUNT 200000u
#endif
#define INPUT_SIZE_MAX 96u

static void run(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size ? size : 1); /* its end is where the sanitizer watches */
    ASSERT(exact);
    memcpy(exact, data, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

static int run_file(const char *path)
{
    static uint8_t data[1 << 20];
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 1;
    }
    size_t size = fread(data, 1, sizeof(data), f);
    fclose(f);
    run(data, size);
    return 0;
}

/* Files of a folder in the order of their names; what cannot be listed is taken as a file. */
static int run_path(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort), failed = 0;
    if (count < 0)
        return run_file(path);
    for (int i = 0; i < count; i++) {
        char name[4096];
        snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.')
            failed |= run_file(name);
        free(entries[i]);
    }
    free(entries);
    return failed;
}

static size_t make_input(uint64_t seed, uint8_t *out)
{
    static const char *const words[] = {"IHAVEOPT", "\x25\x60\x95\x13", "base:allocation",
                                        "disk@a"};
    uint64_t state = hash_u64(seed + 1);
    size_t size = state % INPUT_SIZE_MAX;
    for (size_t i = 0; i < size;) {
        state = hash_u64(state + i);
        const char *word = words[state >> 8 & 3];
        if ((state & 15) == 0 && i + strlen(word) <= size) {
            memcpy(out + i, word, strlen(word));
            i += strlen(word);
        } else {
            unsigned kind = state >> 16 & 7;
            out[i++] = (uint8_t)(kind < 5 ? 0 : kind < 7 ? state >> 24 & 7 : state >> 24);
        }
    }
    return size;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (run_path(argv[i]) != 0)
            return 1;
    }
    uint8_t input[INPUT_SIZE_MAX];
    for (uint64_t seed = 0; seed < INPUT_COUNT; seed++)
        run(input, make_input(seed, input));
    printf("%d paths and %u made inputs\n", argc - 1, INPUT_COUNT);
    return 0;
}
