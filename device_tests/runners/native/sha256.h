#ifndef EDGECOMPRESS_SHA256_H
#define EDGECOMPRESS_SHA256_H

#include <stdbool.h>

/* Write the file's SHA-256 (FIPS 180-4) as 64 hexadecimal digits and a zero; false, with errno set, when it cannot be read. */
bool sha256_file(const char *path, char hex[65]);

#endif
