#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"

/* The names under which LiteRT's parts look for their options, which are TOML. */
#define KERNELS "xnnpack"
#define RUNTIME "runtime_options_string"

static LiteRtEnvironment environment;

static void check(int status, const Model *model, const char *what) {
    if (status == 2) fail("memory", "%s: out of memory", model->name);
    if (status) fail("artifact", "%s: LiteRT %s refused it: %s gave status %d", model->name, LITERT_VERSION, what, status);
}

/* --- opening --- */

static void add_options(const Model *model, LiteRtOptions options, const char *name, const char *format, int number) {
    LiteRtOpaqueOptions opaque;
    char *toml = allocate(64, 1);
    snprintf(toml, 64, format, number);
    check(LiteRtCreateOpaqueOptions(name, toml, free, &opaque), model, "setting options");
    check(LiteRtAddOpaqueOptions(options, opaque), model, "setting options");
}

static LiteRtOptions cpu_options(const Model *model, int threads, bool profiled) {
    LiteRtOptions options;
    check(LiteRtCreateOptions(&options), model, "creating options");
    check(LiteRtSetOptionsHardwareAccelerators(options, LITERT_CPU), model, "choosing the CPU");
    add_options(model, options, KERNELS, "num_threads = %d\n", threads);
    if (profiled) add_options(model, options, RUNTIME, "enable_profiling = true\n", 0);
    return options;
}

/* Read what the file says of a tensor, and the shape it has once it is compiled. */
static void describe(const Model *model, Tensor *tensor, LiteRtTensor handle, const LiteRtLayout *layout, LiteRtRankedTensorType *type) {
    check(LiteRtGetRankedTensorType(handle, type), model, "asking for a type");
    type->layout = *layout;
    tensor->element_type = type->element_type;
    tensor->count = 1;
    tensor->rank = layout->rank;
    for (size_t i = 0; i < tensor->rank; ++i) {
        if (layout->dimensions[i] < 0) fail("artifact", "%s: its shapes are not fixed; export it with fixed ones", model->name);
        tensor->shape[i] = (size_t)layout->dimensions[i];
        if (__builtin_mul_overflow(tensor->count, tensor->shape[i], &tensor->count)) fail("artifact", "%s: absurd shapes", model->name);
    }
    int kind = 0;
    LiteRtQuantizationPerTensor quantization;
    check(LiteRtGetQuantizationTypeId(handle, &kind), model, "asking for quantization");
    if (kind == LITERT_PER_TENSOR) {
        check(LiteRtGetPerTensorQuantization(handle, &quantization), model, "asking for quantization");
        tensor->scale = quantization.scale;
        tensor->zero_point = quantization.zero_point;
    }
}

/* Return the number at the end of a name, -1 where there is none. */
static long trailing_number(const char *name) {
    size_t length = strlen(name), digits = 0;
    while (digits < length && digits < 9 && name[length - 1 - digits] >= '0' && name[length - 1 - digits] <= '9') ++digits;
    return digits ? strtol(name + length - digits, NULL, 10) : -1;
}

static int by_number(const void *a, const void *b) {
    const long *left = a, *right = b;
    return left[0] != right[0] ? (left[0] > right[0]) - (left[0] < right[0]) : (left[1] > right[1]) - (left[1] < right[1]);
}

/* Put the signature's indices in the order of the model's arguments or results: it names them args_0, args_1, … or output_0, … where the
   converter did, and stores them in any order. */
static void in_order(Tensor *tensors, size_t count, LiteRtSignature signature, int (*name_of)(LiteRtSignature, size_t, const char **)) {
    long(*numbers)[2] = allocate(count, sizeof *numbers);
    bool all = true;
    for (size_t i = 0; i < count; ++i) {
        const char *name = "";
        numbers[i][0] = name_of(signature, i, &name) == 0 ? trailing_number(name) : -1;
        numbers[i][1] = (long)i;
        all = all && numbers[i][0] >= 0;
    }
    if (all) qsort(numbers, count, sizeof *numbers, by_number);
    for (size_t i = 0; i < count; ++i) tensors[i].index = (size_t)numbers[i][1];
    free(numbers);
}

static void open_inputs(Model *model, LiteRtSignature signature) {
    check(LiteRtGetNumSignatureInputs(signature, &model->input_count), model, "counting inputs");
    model->inputs = allocate(model->input_count, sizeof *model->inputs);
    model->input_buffers = allocate(model->input_count, sizeof *model->input_buffers);
    in_order(model->inputs, model->input_count, signature, LiteRtGetSignatureInputName);
    for (size_t i = 0; i < model->input_count; ++i) {
        Tensor *tensor = &model->inputs[i];
        LiteRtTensor handle;
        LiteRtLayout layout;
        LiteRtRankedTensorType type;
        LiteRtTensorBufferRequirements needs;
        check(LiteRtGetSignatureInputTensorByIndex(signature, tensor->index, &handle), model, "asking for an input");
        check(LiteRtGetCompiledModelInputTensorLayout(model->compiled, 0, tensor->index, &layout), model, "asking for a shape");
        describe(model, tensor, handle, &layout, &type);
        check(LiteRtGetCompiledModelInputBufferRequirements(model->compiled, 0, tensor->index, &needs), model, "planning an input");
        check(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, needs, &tensor->buffer), model, "making an input");
        model->input_buffers[tensor->index] = tensor->buffer;
    }
}

static void open_outputs(Model *model, LiteRtSignature signature) {
    check(LiteRtGetNumSignatureOutputs(signature, &model->output_count), model, "counting outputs");
    model->outputs = allocate(model->output_count, sizeof *model->outputs);
    model->output_buffers = allocate(model->output_count, sizeof *model->output_buffers);
    in_order(model->outputs, model->output_count, signature, LiteRtGetSignatureOutputName);
    LiteRtLayout *layouts = allocate(model->output_count, sizeof *layouts);
    check(LiteRtGetCompiledModelOutputTensorLayouts(model->compiled, 0, model->output_count, layouts, true), model, "asking for shapes");
    for (size_t i = 0; i < model->output_count; ++i) {
        Tensor *tensor = &model->outputs[i];
        LiteRtTensor handle;
        LiteRtRankedTensorType type;
        LiteRtTensorBufferRequirements needs;
        check(LiteRtGetSignatureOutputTensorByIndex(signature, tensor->index, &handle), model, "asking for an output");
        describe(model, tensor, handle, &layouts[tensor->index], &type);
        check(LiteRtGetCompiledModelOutputBufferRequirements(model->compiled, 0, tensor->index, &needs), model, "planning an output");
        check(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, needs, &tensor->buffer), model, "making an output");
        model->output_buffers[tensor->index] = tensor->buffer;
    }
    free(layouts);
}

/* Map the file. LiteRT could open it itself, but checks only what it is given in memory: it dies of a file that was cut off. */
static void map(Model *model, const char *path) {
    struct stat facts;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &facts)) fail("request", "%s: %s", model->name, strerror(errno));
    if (!facts.st_size) fail("artifact", "%s: is empty", model->name);
    model->size = (size_t)facts.st_size;
    model->bytes = mmap(NULL, model->size, PROT_READ, MAP_PRIVATE, file, 0);
    if (model->bytes == MAP_FAILED) fail("memory", "%s: %s", model->name, strerror(errno));
    close(file);
}

Model *model_open(const char *path, const char *name, int threads, bool profiled) {
    Model *model = allocate(1, sizeof *model);
    model->name = name;
    if (!environment && LiteRtCreateEnvironment(0, NULL, &environment)) fail("runtime", "LiteRT %s does not start", LITERT_VERSION);
    map(model, path);
    check(LiteRtCreateModelFromBuffer(environment, model->bytes, model->size, &model->model), model, "reading");
    LiteRtOptions options = cpu_options(model, threads, profiled);
    check(LiteRtCreateCompiledModel(environment, model->model, options, &model->compiled), model, "compiling");
    LiteRtDestroyOptions(options);
    LiteRtSignature signature;
    check(LiteRtGetModelSignature(model->model, 0, &signature), model, "asking for its signature");
    open_inputs(model, signature);
    open_outputs(model, signature);
    return model;
}

void model_close(Model *model) {
    for (size_t i = 0; i < model->input_count; ++i) LiteRtDestroyTensorBuffer(model->input_buffers[i]);
    for (size_t i = 0; i < model->output_count; ++i) LiteRtDestroyTensorBuffer(model->output_buffers[i]);
    LiteRtDestroyCompiledModel(model->compiled);
    LiteRtDestroyModel(model->model);
    munmap(model->bytes, model->size);
    free(model->inputs), free(model->outputs), free(model->input_buffers), free(model->output_buffers), free(model);
}

/* --- running --- */

void model_invoke(Model *model) {
    int status = LiteRtRunCompiledModel(
        model->compiled, 0, model->input_count, model->input_buffers, model->output_count, model->output_buffers);
    check(status, model, "running");
}

static void limits(int type, double *low, double *high) {
    *low = *high = 0;
    if (type == LITERT_INT8) *low = INT8_MIN, *high = INT8_MAX;
    if (type == LITERT_UINT8) *high = UINT8_MAX;
    if (type == LITERT_INT16) *low = INT16_MIN, *high = INT16_MAX;
    if (type == LITERT_INT32) *low = INT32_MIN, *high = INT32_MAX;
    if (type == LITERT_INT64) *low = -0x1p62, *high = 0x1p62; /* exact in a double */
}

static bool is_integer(int type) {
    double low, high;
    limits(type, &low, &high);
    return high > 0;
}

void model_range(const Tensor *input, double *low, double *high) {
    int type = input->element_type;
    bool real = type == LITERT_FLOAT32 || type == LITERT_FLOAT16, byte = type == LITERT_INT8 || type == LITERT_UINT8;
    *low = real ? -1 : 0, *high = real ? 1 : 0;
    if (!byte && !(input->scale > 0 && is_integer(type))) return;
    limits(type, low, high);
    double scale = input->scale > 0 ? input->scale : 1;
    *low = (*low - (double)input->zero_point) * scale;
    *high = (*high - (double)input->zero_point) * scale;
}

/* round(x / scale) + zero_point in float32 and clipped, as numpy does it on the host. */
static double quantized(const Tensor *tensor, const float *value, const int64_t *integer) {
    double low, high, number = value ? *value : (double)*integer;
    limits(tensor->element_type, &low, &high);
    if (value && tensor->scale > 0) number = (double)nearbyintf(*value / tensor->scale) + (double)tensor->zero_point;
    return isnan(number) ? 0 : fmin(fmax(number, low), high);
}

static void *locked(const Model *model, const Tensor *tensor, int mode) {
    void *address;
    check(LiteRtLockTensorBuffer(tensor->buffer, &address, mode), model, "locking memory");
    return address;
}

#define FOR_ALL(type, body) \
    do { type *bytes = address; for (size_t i = 0; i < tensor->count; ++i) body; } while (0)
#define REAL (values ? values[i] : (float)integers[i])
#define INTEGER quantized(tensor, values ? &values[i] : NULL, integers ? &integers[i] : NULL)

void model_set(const Model *model, const Tensor *tensor, const float *values, const int64_t *integers) {
    void *address = locked(model, tensor, LITERT_WRITE);
    switch (tensor->element_type) {
    case LITERT_FLOAT32: FOR_ALL(float, bytes[i] = REAL); break;
    case LITERT_FLOAT16: FOR_ALL(__fp16, bytes[i] = (__fp16)REAL); break;
    case LITERT_BOOL: FOR_ALL(uint8_t, bytes[i] = REAL != 0); break;
    case LITERT_INT8: FOR_ALL(int8_t, bytes[i] = (int8_t)INTEGER); break;
    case LITERT_UINT8: FOR_ALL(uint8_t, bytes[i] = (uint8_t)INTEGER); break;
    case LITERT_INT16: FOR_ALL(int16_t, bytes[i] = (int16_t)INTEGER); break;
    case LITERT_INT32: FOR_ALL(int32_t, bytes[i] = (int32_t)INTEGER); break;
    case LITERT_INT64: FOR_ALL(int64_t, bytes[i] = (int64_t)INTEGER); break;
    default: fail("artifact", "%s: inputs of element type %d are unknown here", model->name, tensor->element_type);
    }
    check(LiteRtUnlockTensorBuffer(tensor->buffer), model, "unlocking memory");
}

static float dequantized(const Tensor *tensor, double number) {
    return tensor->scale > 0 ? ((float)number - (float)tensor->zero_point) * tensor->scale : (float)number;
}

void model_get(const Model *model, const Tensor *tensor, float *values) {
    void *address = locked(model, tensor, LITERT_READ);
    switch (tensor->element_type) {
    case LITERT_FLOAT32: memcpy(values, address, tensor->count * sizeof *values); break;
    case LITERT_FLOAT16: FOR_ALL(__fp16, values[i] = (float)bytes[i]); break;
    case LITERT_BOOL: FOR_ALL(uint8_t, values[i] = bytes[i] != 0); break;
    case LITERT_INT8: FOR_ALL(int8_t, values[i] = dequantized(tensor, bytes[i])); break;
    case LITERT_UINT8: FOR_ALL(uint8_t, values[i] = dequantized(tensor, bytes[i])); break;
    case LITERT_INT16: FOR_ALL(int16_t, values[i] = dequantized(tensor, bytes[i])); break;
    case LITERT_INT32: FOR_ALL(int32_t, values[i] = dequantized(tensor, bytes[i])); break;
    case LITERT_INT64: FOR_ALL(int64_t, values[i] = dequantized(tensor, (double)bytes[i])); break;
    default: fail("artifact", "%s: outputs of element type %d are unknown here", model->name, tensor->element_type);
    }
    check(LiteRtUnlockTensorBuffer(tensor->buffer), model, "unlocking memory");
}
