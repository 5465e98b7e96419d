/* numpy's .npz: a zip archive of .npy files, stored and not compressed. Float32 is read and written, int32 and int64 are read. */
#ifndef EDGECOMPRESS_NPZ_H
#define EDGECOMPRESS_NPZ_H

#include <stddef.h>
#include <stdint.h>

enum { NPZ_MAX_RANK = 9 };

typedef struct {
    size_t rank, shape[NPZ_MAX_RANK];
    float *values;     /* NULL when these are integers */
    int64_t *integers; /* NULL when these are not */
} Array;

/* Read `input_0`, `input_1`, … into `arrays` and return how many there are. What is not such a file ends the run with the error "inputs". */
size_t npz_read(const char *path, Array *arrays, size_t most);

/* Write `output_0`, `output_1`, …. */
void npz_write(const char *path, const Array *arrays, size_t count);

#endif
