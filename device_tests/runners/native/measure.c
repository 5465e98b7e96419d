#include <stdint.h>
#include <stdlib.h>

#include "common.h"
#include "machine.h"
#include "run.h"

enum { PROFILED_RUNS = 10, MAX_OPS = 200 };

void open_model(Artifact *artifact, bool profiled) {
    artifact->model = model_open(artifact->path, artifact->path, asked.threads, profiled);
}

static double timed(const Artifact *artifact) {
    double start = seconds();
    model_invoke(artifact->model);
    return (seconds() - start) * 1e3;
}

static void append(double **times, size_t *count, double ms) {
    if ((*count & (*count - 1)) == 0) *times = realloc(*times, (*count ? 2 * *count : 1) * sizeof **times); /* full at each power of two */
    if (!*times) fail("memory", "out of memory");
    (*times)[(*count)++] = ms;
}

void prepare(Artifact *artifact) {
    const Model *model = artifact->model;
    uint64_t state = 1;
    if (!artifact->values) artifact->values = allocate(model->input_count, sizeof *artifact->values);
    for (size_t i = 0; i < model->input_count; ++i) {
        const Tensor *input = &model->inputs[i];
        double low, high;
        model_range(input, &low, &high);
        if (!artifact->values[i]) {
            artifact->values[i] = allocate(input->count, sizeof(float));
            for (size_t k = 0; k < input->count; ++k) {
                state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
                artifact->values[i][k] = (float)(low + (high - low) * (double)(state >> 11) * 0x1p-53);
            }
        }
        model_set(model, input, artifact->values[i], NULL);
    }
}

static void warm_up(Artifact *artifact) {
    prepare(artifact);
    artifact->first_ms = timed(artifact);
    double start = seconds();
    do append(&artifact->warmup_ms, &artifact->warmups, timed(artifact));
    while (seconds() - start < asked.warmup_s);
}

/* Put the order of `count` artifacts in loading `k`: each is first equally often, and follows each neighbour equally often. */
static void order_of(size_t k, size_t count, size_t *order) {
    for (size_t i = 0; i < count; ++i) order[k % 2 ? count - 1 - i : i] = (i + k / 2) % count;
}

/* Time each artifact once a round, in this order; return how many rounds there was time for, at least one. */
static int rounds(Artifact *artifacts, size_t count, const size_t *order, int most, double end) {
    int done = 0;
    do {
        for (size_t i = 0; i < count; ++i) {
            Artifact *artifact = &artifacts[order[i]];
            append(&artifact->latency_ms, &artifact->latencies, timed(artifact));
        }
        ++done;
    } while (done < most && seconds() <= end);
    return done;
}

void measure(FILE *told, double **done, size_t *loads, Artifact *artifacts, size_t count) {
    for (size_t i = 0; i < count; ++i) warm_up(&artifacts[i]);
    Snapshot *before = allocate(1, sizeof *before), *after = allocate(1, sizeof *after);
    size_t *order = allocate(count, sizeof *order);
    take_snapshot(before);
    double end = before->clock_s + asked.time_limit_s;
    for (int k = 0; k < asked.loads; ++k) {
        order_of((size_t)k, count, order);
        for (size_t i = 0; k && i < count; ++i) {
            Artifact *artifact = &artifacts[order[i]];
            model_close(artifact->model); /* first, so that memory holds one of each */
            open_model(artifact, false);
            prepare(artifact);
        }
        for (size_t i = 0; k && i < count; ++i)
            for (int warm = 0; warm < 2; ++warm) append(&artifacts[order[i]].warmup_ms, &artifacts[order[i]].warmups, timed(&artifacts[order[i]]));
        long long whole = asked.repetitions;
        int share = (int)(whole * (k + 1) / asked.loads - whole * k / asked.loads);
        append(done, loads, rounds(artifacts, count, order, share, end));
        if (seconds() > end) break;
    }
    take_snapshot(after);
    put_changes(told, before, after);
}

void profile(Artifact *artifact) {
    model_close(artifact->model);
    open_model(artifact, true);
    prepare(artifact);
    model_invoke(artifact->model);
    artifact->ops = allocate(MAX_OPS, sizeof *artifact->ops);
    artifact->op_count = model_profile(artifact->model, PROFILED_RUNS, artifact->ops, MAX_OPS);
}
