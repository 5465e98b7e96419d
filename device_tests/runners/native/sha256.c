#include "sha256.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 64 };

static uint32_t rotated(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

/* Return the first 32 bits of the fractional part of a root, which is how FIPS 180-4 defines its constants; long double carries them. */
static uint32_t fraction(long double root) { return (uint32_t)((root - floorl(root)) * 4294967296.0L); }

static uint32_t constants[64], initial[8];

static void make_constants(void) {
    for (int candidate = 2, found = 0; found < 64; ++candidate) {
        bool prime = true;
        for (int i = 2; i * i <= candidate; ++i) prime = prime && candidate % i != 0;
        if (!prime) continue;
        if (found < 8) initial[found] = fraction(sqrtl(candidate));
        constants[found++] = fraction(cbrtl(candidate));
    }
}

static void mix(uint32_t state[8], const uint8_t block[BLOCK]) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; ++i)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
        uint32_t low = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t high = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; ++i) {
        uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]), majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
        uint32_t first = s[7] + (rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25)) + choice + constants[i] + w[i];
        uint32_t second = (rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22)) + majority;
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += first;
        s[0] = first + second;
    }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
}

bool sha256_file(const char *path, char hex[65]) {
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    make_constants();
    uint32_t state[8];
    memcpy(state, initial, sizeof state);
    uint8_t block[BLOCK];
    uint64_t bytes = 0;
    size_t got;
    while ((got = fread(block, 1, BLOCK, file)) == BLOCK) {
        mix(state, block);
        bytes += BLOCK;
    }
    bool whole = !ferror(file);
    fclose(file);
    bytes += got;
    memset(block + got, 0, BLOCK - got);
    block[got] = 0x80;
    if (got >= BLOCK - 8) { /* no room for the length behind the mark */
        mix(state, block);
        memset(block, 0, BLOCK);
    }
    for (int i = 0; i < 8; ++i) block[BLOCK - 1 - i] = (uint8_t)(bytes * 8 >> 8 * i);
    mix(state, block);
    for (int i = 0; i < 8; ++i) snprintf(hex + 8 * i, 9, "%08x", state[i]);
    return whole;
}
