/* What every part of the runner uses: how it fails, and memory that is there or ends it. */
#ifndef EDGECOMPRESS_COMMON_H
#define EDGECOMPRESS_COMMON_H

#include <stddef.h>
#include <stdint.h>

/* Write an error reply of this kind (see ../README.md) and exit. */
_Noreturn void fail(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Return zeroed memory for `count` things of `size` bytes; a shortage ends the run with the error "memory". Little of it is given back: the
   process ends soon. */
void *allocate(size_t count, size_t size);

/* Return the bytes of a file with a zero behind them, or NULL with errno set. `size` may be NULL. */
char *read_file(const char *path, size_t *size);

#endif
