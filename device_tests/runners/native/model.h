/* A TFLite file in LiteRT's CompiledModel on the CPU (XNNPACK). What cannot be done ends the run with an error of the protocol. */
#ifndef EDGECOMPRESS_MODEL_H
#define EDGECOMPRESS_MODEL_H

#include <stddef.h>

#include "litert.h"

/* An input or output in the order of the model's arguments or results; real numbers outside, the file's element type inside. */
typedef struct {
    size_t index, count, rank, shape[LITERT_MAX_RANK];
    int element_type;
    float scale; /* 0 when it is not quantized */
    int64_t zero_point;
    LiteRtTensorBuffer buffer;
} Tensor;

typedef struct {
    const char *name;
    void *bytes;
    size_t size;
    LiteRtModel model;
    LiteRtCompiledModel compiled;
    Tensor *inputs, *outputs;
    size_t input_count, output_count;
    LiteRtTensorBuffer *input_buffers, *output_buffers; /* in the signature's order */
} Model;

/* What the calls of one op took of one inference, on average. */
typedef struct {
    char name[128];
    double calls, ms;
} Op;

/* A model that can be profiled may be slower. */
Model *model_open(const char *path, const char *name, int threads, bool profiled);
void model_close(Model *model);
void model_invoke(Model *model);

/* Set `count` real numbers, which a quantized tensor takes as round(x / scale) + zero_point, or, where `values` is NULL, `count` integers as
   they are. */
void model_set(const Model *model, const Tensor *input, const float *values, const int64_t *integers);

/* Get `count` real numbers, dequantized where the tensor is quantized. */
void model_get(const Model *model, const Tensor *output, float *values);

/* Run a model that was opened for it `runs` times; put at most `most` ops, the slowest first, and return how many. */
size_t model_profile(Model *model, int runs, Op *ops, size_t most);

/* Tell which real numbers to measure with: what a quantized input can represent, -1 to 1 for floats, and only 0 for wider integers: they are
   indices, of which only that one is known to exist. */
void model_range(const Tensor *input, double *low, double *high);

#endif
