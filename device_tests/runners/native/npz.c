#include "npz.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

/* Signatures and sizes of the records of a zip archive (PKWARE APPNOTE 6.3, sections 4.3.7, 4.3.12 and 4.3.16). */
enum { LOCAL = 0x04034b50, CENTRAL = 0x02014b50, END = 0x06054b50 };
enum { LOCAL_BYTES = 30, CENTRAL_BYTES = 46, END_BYTES = 22 };
enum { NPY_HEADER_BYTES = 128 };

static uint32_t little(const uint8_t *at, int bytes) {
    uint32_t number = 0;
    while (bytes--) number = number << 8 | at[bytes];
    return number;
}

/* --- reading --- */

typedef struct {
    const char *path;
    const uint8_t *bytes;
    size_t size;
} Archive;

static const uint8_t *span(const Archive *archive, size_t offset, size_t length) {
    if (offset > archive->size || length > archive->size - offset) fail("inputs", "%s: the archive is cut off", archive->path);
    return archive->bytes + offset;
}

/* Return the end of what `text` says after "key': ", or NULL. */
static const char *after(const char *text, const char *key) {
    const char *found = strstr(text, key);
    return found ? found + strlen(key) : NULL;
}

/* Read a .npy file (numpy.lib.format, versions 1 to 3) that lies in the archive. */
static void read_array(const Archive *archive, size_t offset, size_t size, Array *array) {
    const uint8_t *file = span(archive, offset, size);
    if (size < 12 || memcmp(file, "\x93NUMPY", 6) != 0) fail("inputs", "%s: not a numpy array", archive->path);
    size_t start = file[6] == 1 ? 10 : 12, length = little(file + 8, file[6] == 1 ? 2 : 4);
    if (length > size - start || length > 65536) fail("inputs", "%s: not a numpy array", archive->path);
    char *header = allocate(length + 1, 1);
    memcpy(header, file + start, length);
    const char *shape = after(header, "'shape': (");
    const char *type = after(header, "'descr': '<");
    size_t width = type && (type[1] == '4' || type[1] == '8') ? (size_t)(type[1] - '0') : 0;
    bool integers = width && *type == 'i', floats = width == 4 && *type == 'f';
    if (!shape || !(integers || floats) || type[2] != '\'' || !strstr(header, "'fortran_order': False"))
        fail("inputs", "%s: arrays must be float32, int32 or int64 in C order", archive->path);
    size_t count = 1;
    for (array->rank = 0; *shape && *shape != ')'; ++array->rank) {
        char *end;
        unsigned long dimension = strtoul(shape, &end, 10);
        if (end == shape || array->rank == NPZ_MAX_RANK || __builtin_mul_overflow(count, dimension, &count))
            fail("inputs", "%s: the shape of an array cannot be used", archive->path);
        array->shape[array->rank] = dimension;
        shape = end + strspn(end, ", ");
    }
    if (count > size / width || count * width != size - start - length)
        fail("inputs", "%s: an array has another size than its shape", archive->path);
    const uint8_t *data = file + start + length;
    if (floats) array->values = memcpy(allocate(count, width), data, count * width);
    else array->integers = allocate(count, sizeof *array->integers);
    for (size_t i = 0; integers && i < count; ++i) {
        int32_t narrow;
        memcpy(width == 4 ? (void *)&narrow : (void *)&array->integers[i], data + i * width, width);
        if (width == 4) array->integers[i] = narrow;
    }
    free(header);
}

static const uint8_t *find_end(const Archive *archive) {
    for (size_t back = END_BYTES; back <= archive->size && back < END_BYTES + 65536u; ++back)
        if (little(archive->bytes + archive->size - back, 4) == END) return archive->bytes + archive->size - back;
    fail("inputs", "%s: not a zip archive", archive->path);
}

size_t npz_read(const char *path, Array *arrays, size_t most) {
    Archive archive = {.path = path};
    archive.bytes = (const uint8_t *)read_file(path, &archive.size);
    if (!archive.bytes) fail("inputs", "%s: %s", path, strerror(errno));
    const uint8_t *end = find_end(&archive);
    size_t count = little(end + 10, 2), at = little(end + 16, 4);
    if (!count || count > most) fail("inputs", "%s: %zu inputs given, the artifact takes %zu", path, count, most);
    bool *seen = allocate(count, sizeof *seen);
    for (size_t i = 0; i < count; ++i) {
        const uint8_t *entry = span(&archive, at, CENTRAL_BYTES);
        size_t name_length = little(entry + 28, 2), size = little(entry + 24, 4), local = little(entry + 42, 4);
        char name[32] = "";
        memcpy(name, span(&archive, at + CENTRAL_BYTES, name_length), name_length < sizeof name ? name_length : sizeof name - 1);
        unsigned number;
        if (little(entry, 4) != CENTRAL || little(entry + 10, 2) != 0 || size == UINT32_MAX || local == UINT32_MAX ||
            sscanf(name, "input_%3u.npy", &number) != 1 || number >= count || seen[number])
            fail("inputs", "%s: must hold input_0, input_1, … uncompressed", path);
        const uint8_t *header = span(&archive, local, LOCAL_BYTES);
        read_array(&archive, local + LOCAL_BYTES + little(header + 26, 2) + little(header + 28, 2), size, &arrays[number]);
        seen[number] = true;
        at += CENTRAL_BYTES + name_length + little(entry + 30, 2) + little(entry + 32, 2);
    }
    free((void *)archive.bytes);
    return count;
}

/* --- writing --- */

static uint32_t checksum(uint32_t crc, const void *bytes, size_t size) {
    static uint32_t table[256];
    for (uint32_t i = 0; !table[255] && i < 256; ++i) {
        uint32_t entry = i;
        for (int bit = 0; bit < 8; ++bit) entry = entry >> 1 ^ (entry & 1 ? 0xEDB88320u : 0);
        table[i] = entry;
    }
    crc = ~crc;
    for (const uint8_t *at = bytes, *end = at + size; at < end; ++at) crc = table[(crc ^ *at) & 0xFF] ^ crc >> 8;
    return ~crc;
}

static void put(FILE *file, uint32_t number, int bytes) {
    for (; bytes--; number >>= 8) fputc((int)(number & 0xFF), file);
}

/* Write what local and central headers share: versions, method "stored", 1 January 1980, checksum, sizes, length of the name. */
static void put_common(FILE *file, uint32_t crc, uint32_t size, size_t name_length) {
    put(file, 20, 2), put(file, 0, 2), put(file, 0, 2), put(file, 0, 2), put(file, 33, 2);
    put(file, crc, 4), put(file, size, 4), put(file, size, 4), put(file, (uint32_t)name_length, 2), put(file, 0, 2);
}

static size_t make_header(const Array *array, char header[NPY_HEADER_BYTES]) {
    char shape[NPZ_MAX_RANK * 22] = "";
    size_t count = 1;
    for (size_t i = 0; i < array->rank; ++i) {
        snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%zu, ", array->shape[i]);
        count *= array->shape[i];
    }
    memset(header, ' ', NPY_HEADER_BYTES);
    memcpy(header, "\x93NUMPY\x01\x00\x76\x00", 10); /* 0x76 = 128 - 10 */
    int length = snprintf(header + 10, NPY_HEADER_BYTES - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }", shape);
    if (length >= NPY_HEADER_BYTES - 11) fail("internal", "a shape is too long to write");
    header[10 + length] = ' ';
    header[NPY_HEADER_BYTES - 1] = '\n';
    return count * sizeof(float);
}

void npz_write(const char *path, const Array *arrays, size_t count) {
    FILE *file = fopen(path, "wb");
    if (!file) fail("internal", "%s: %s", path, strerror(errno));
    char *directory = NULL, name[32], header[NPY_HEADER_BYTES];
    size_t directory_bytes = 0;
    FILE *central = open_memstream(&directory, &directory_bytes);
    if (!central) fail("memory", "out of memory");
    for (size_t i = 0; i < count; ++i) {
        size_t bytes = make_header(&arrays[i], header);
        if (bytes + (size_t)ftell(file) > UINT32_MAX - 4096) fail("memory", "outputs of more than 4 GiB; ask for fewer samples at once");
        uint32_t offset = (uint32_t)ftell(file), crc = checksum(checksum(0, header, sizeof header), arrays[i].values, bytes);
        size_t length = (size_t)snprintf(name, sizeof name, "output_%zu.npy", i);
        put(file, LOCAL, 4), put_common(file, crc, (uint32_t)(bytes + sizeof header), length);
        fwrite(name, 1, length, file), fwrite(header, 1, sizeof header, file), fwrite(arrays[i].values, 1, bytes, file);
        put(central, CENTRAL, 4), put(central, 20, 2), put_common(central, crc, (uint32_t)(bytes + sizeof header), length);
        put(central, 0, 2), put(central, 0, 2), put(central, 0, 2), put(central, 0, 4), put(central, offset, 4);
        fwrite(name, 1, length, central);
    }
    fclose(central);
    uint32_t start = (uint32_t)ftell(file);
    fwrite(directory, 1, directory_bytes, file);
    put(file, END, 4), put(file, 0, 4), put(file, (uint32_t)count, 2), put(file, (uint32_t)count, 2);
    put(file, (uint32_t)directory_bytes, 4), put(file, start, 4), put(file, 0, 2);
    bool bad = ferror(file);
    if (fclose(file) || bad) fail("internal", "%s: %s", path, strerror(errno));
    free(directory);
}
