#include <errno.h>
#include <string.h>

#include "common.h"
#include "npz.h"
#include "run.h"
#include "sha256.h"

enum { MAX_VALUES = 1 << 28 }; /* 1 GiB of outputs, the most that is fetched */

void infer(const Artifact *artifact, char sha256[65]) {
    Model *model = artifact->model;
    Array *inputs = allocate(model->input_count, sizeof *inputs), *outputs = allocate(model->output_count, sizeof *outputs);
    size_t given = npz_read(asked.inputs, inputs, model->input_count), samples = inputs[0].shape[0];
    if (given != model->input_count) fail("inputs", "%zu inputs given, the artifact takes %zu", given, model->input_count);
    for (size_t i = 0; i < given; ++i) {
        const Tensor *tensor = &model->inputs[i];
        bool fits = inputs[i].rank == tensor->rank && tensor->rank && tensor->shape[0] == 1 && inputs[i].shape[0] == samples && samples;
        for (size_t axis = 1; fits && axis < tensor->rank; ++axis) fits = inputs[i].shape[axis] == tensor->shape[axis];
        if (!fits) fail("inputs", "input_%zu: its shape is not the artifact's with batch 1, or another number of samples", i);
    }
    for (size_t j = 0; j < model->output_count; ++j) {
        const Tensor *tensor = &model->outputs[j];
        outputs[j].rank = tensor->rank ? tensor->rank : 1;
        for (size_t axis = 1; axis < tensor->rank; ++axis) outputs[j].shape[axis] = tensor->shape[axis];
        outputs[j].shape[0] = samples;
        if (tensor->rank && tensor->shape[0] != 1) fail("inputs", "output_%zu has no batch of 1; its samples cannot be told apart", j);
        if (tensor->count > MAX_VALUES / samples) fail("memory", "the outputs of %zu samples are too many at once", samples);
        outputs[j].values = allocate(samples * tensor->count, sizeof(float));
    }
    for (size_t k = 0; k < samples; ++k) {
        for (size_t i = 0; i < given; ++i) {
            const Tensor *tensor = &model->inputs[i];
            const Array *array = &inputs[i];
            size_t at = k * tensor->count;
            model_set(model, tensor, array->values ? array->values + at : NULL, array->integers ? array->integers + at : NULL);
        }
        model_invoke(model);
        for (size_t j = 0; j < model->output_count; ++j)
            model_get(model, &model->outputs[j], outputs[j].values + k * model->outputs[j].count);
    }
    npz_write(asked.outputs, outputs, model->output_count);
    if (!sha256_file(asked.outputs, sha256)) fail("internal", "%s: %s", asked.outputs, strerror(errno));
}
