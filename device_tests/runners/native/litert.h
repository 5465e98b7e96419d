/* The part of the LiteRT C API that libLiteRt.so of ai-edge-litert 2.3.0 exports and this runner calls; the wheel has no headers.

   Only opaque handles, three structs whose layout LiteRT promises to keep, and one, of the profiler, that is as 2.3.0 has it. Statuses are 0
   when all is well. */
#ifndef EDGECOMPRESS_LITERT_H
#define EDGECOMPRESS_LITERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct LiteRtEnvironmentT *LiteRtEnvironment;
typedef struct LiteRtModelT *LiteRtModel;
typedef struct LiteRtSignatureT *LiteRtSignature;
typedef struct LiteRtTensorT *LiteRtTensor;
typedef struct LiteRtOptionsT *LiteRtOptions;
typedef struct LiteRtOpaqueOptionsT *LiteRtOpaqueOptions;
typedef struct LiteRtCompiledModelT *LiteRtCompiledModel;
typedef struct LiteRtTensorBufferT *LiteRtTensorBuffer;
typedef struct LiteRtTensorBufferRequirementsT *LiteRtTensorBufferRequirements;
typedef struct LiteRtProfilerT *LiteRtProfiler;

enum { LITERT_CPU = 1 };
enum { LITERT_READ = 0, LITERT_WRITE = 1 };
enum { LITERT_PER_TENSOR = 1 };
enum { LITERT_MAX_RANK = 8 };
enum {
    LITERT_FLOAT32 = 1, LITERT_INT32 = 2, LITERT_UINT8 = 3, LITERT_INT64 = 4, LITERT_BOOL = 6, LITERT_INT16 = 7, LITERT_INT8 = 9,
    LITERT_FLOAT16 = 10
};

typedef struct {
    unsigned rank : 7;
    unsigned has_strides : 1;
    int32_t dimensions[LITERT_MAX_RANK];
    uint32_t strides[LITERT_MAX_RANK];
} LiteRtLayout;

typedef struct {
    int element_type;
    LiteRtLayout layout;
} LiteRtRankedTensorType;

typedef struct {
    float scale;
    int64_t zero_point;
} LiteRtQuantizationPerTensor;

enum { LITERT_OP = 2, LITERT_DELEGATED_OP = 8 }; /* kinds of event: an op that ran here, or one of XNNPACK's in its place */

typedef struct {
    const char *name;
    int kind;
    uint64_t start_us, elapsed_us;
    int64_t memory[6]; /* before and after */
    uint64_t details[2];
    int source;
} LiteRtProfilerEvent;

_Static_assert(sizeof(LiteRtProfilerEvent) == 104, "seen in what 2.3.0 writes");
_Static_assert(sizeof(LiteRtRankedTensorType) == 72, "LiteRT's own header says so");

int LiteRtCreateEnvironment(int count, const void *options, LiteRtEnvironment *environment);

int LiteRtCreateModelFromBuffer(LiteRtEnvironment environment, const void *bytes, size_t size, LiteRtModel *model); /* keeps no copy */
void LiteRtDestroyModel(LiteRtModel model);
int LiteRtGetNumModelSignatures(LiteRtModel model, size_t *count);
int LiteRtGetModelSignature(LiteRtModel model, size_t index, LiteRtSignature *signature);
int LiteRtGetNumSignatureInputs(LiteRtSignature signature, size_t *count);
int LiteRtGetNumSignatureOutputs(LiteRtSignature signature, size_t *count);
int LiteRtGetSignatureInputName(LiteRtSignature signature, size_t index, const char **name);
int LiteRtGetSignatureOutputName(LiteRtSignature signature, size_t index, const char **name);
int LiteRtGetSignatureInputTensorByIndex(LiteRtSignature signature, size_t index, LiteRtTensor *tensor);
int LiteRtGetSignatureOutputTensorByIndex(LiteRtSignature signature, size_t index, LiteRtTensor *tensor);
int LiteRtGetRankedTensorType(LiteRtTensor tensor, LiteRtRankedTensorType *type);
int LiteRtGetQuantizationTypeId(LiteRtTensor tensor, int *kind);
int LiteRtGetPerTensorQuantization(LiteRtTensor tensor, LiteRtQuantizationPerTensor *quantization);

int LiteRtCreateOptions(LiteRtOptions *options);
void LiteRtDestroyOptions(LiteRtOptions options);
int LiteRtSetOptionsHardwareAccelerators(LiteRtOptions options, int accelerators);
int LiteRtCreateOpaqueOptions(const char *name, void *payload, void (*release)(void *), LiteRtOpaqueOptions *options);
int LiteRtAddOpaqueOptions(LiteRtOptions options, LiteRtOpaqueOptions opaque); /* takes what it is given */

int LiteRtCreateCompiledModel(LiteRtEnvironment environment, LiteRtModel model, LiteRtOptions options, LiteRtCompiledModel *compiled);
void LiteRtDestroyCompiledModel(LiteRtCompiledModel compiled);
int LiteRtCompiledModelGetProfiler(LiteRtCompiledModel compiled, LiteRtProfiler *profiler); /* NULL unless it was asked for */
int LiteRtGetCompiledModelInputTensorLayout(LiteRtCompiledModel compiled, size_t signature, size_t index, LiteRtLayout *layout);
int LiteRtGetCompiledModelOutputTensorLayouts(
    LiteRtCompiledModel compiled, size_t signature, size_t count, LiteRtLayout *layouts, bool update);
int LiteRtGetCompiledModelInputBufferRequirements(
    LiteRtCompiledModel compiled, size_t signature, size_t index, LiteRtTensorBufferRequirements *requirements);
int LiteRtGetCompiledModelOutputBufferRequirements(
    LiteRtCompiledModel compiled, size_t signature, size_t index, LiteRtTensorBufferRequirements *requirements);
int LiteRtRunCompiledModel(
    LiteRtCompiledModel compiled, size_t signature, size_t inputs, LiteRtTensorBuffer *input, size_t outputs, LiteRtTensorBuffer *output);

int LiteRtResetProfiler(LiteRtProfiler profiler);
int LiteRtStartProfiler(LiteRtProfiler profiler);
int LiteRtStopProfiler(LiteRtProfiler profiler);
int LiteRtGetNumProfilerEvents(LiteRtProfiler profiler, int *count);
int LiteRtGetProfilerEvents(LiteRtProfiler profiler, int count, LiteRtProfilerEvent *events);

int LiteRtCreateManagedTensorBufferFromRequirements(
    LiteRtEnvironment environment, const LiteRtRankedTensorType *type, LiteRtTensorBufferRequirements requirements,
    LiteRtTensorBuffer *buffer);
int LiteRtGetTensorBufferPackedSize(LiteRtTensorBuffer buffer, size_t *bytes);
int LiteRtLockTensorBuffer(LiteRtTensorBuffer buffer, void **address, int mode);
int LiteRtUnlockTensorBuffer(LiteRtTensorBuffer buffer);
void LiteRtDestroyTensorBuffer(LiteRtTensorBuffer buffer);

#endif
