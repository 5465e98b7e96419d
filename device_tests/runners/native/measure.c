#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "machine.h"
#include "run.h"

enum { PROFILED_RUNS = 10, MAX_OPS = 200, MAX_WARMUPS = 100, MAX_ROUNDS = 10000, MAX_TIMES = 400000 };
static const double SLOW_MS = 10000; /* an inference of this length spends little of it on what a runtime does once: the first is its warm-up */

/* A sample of a stream of rounds, in their order and spread evenly over it: all of them, or one of each `stride` neighbours at random. */
typedef struct {
    size_t most, width, kept, count, stride, picked;
    uint64_t state;
    double *times; /* `kept` rounds of `width` times */
} Sample;

static size_t draw(Sample *sample, size_t below) {
    sample->state = sample->state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
    return (size_t)(sample->state >> 33) % below;
}

static Sample new_sample(size_t most, size_t width) {
    most = most < 2 ? 2 : most - most % 2;
    return (Sample){.most = most, .width = width, .stride = 1, .state = 1, .times = allocate(most * width, sizeof(double))};
}

static void add_round(Sample *sample, const double *times) {
    size_t place = sample->count++ % sample->stride, bytes = sample->width * sizeof(double);
    if (place == 0) {
        if (sample->kept == sample->most) {
            sample->kept /= 2;
            for (size_t i = 0; i < sample->kept; ++i)
                memmove(sample->times + i * sample->width, sample->times + (2 * i + draw(sample, 2)) * sample->width, bytes);
            sample->stride *= 2;
        }
        sample->picked = draw(sample, sample->stride);
    }
    if (place == sample->picked) memcpy(sample->times + sample->kept++ * sample->width, times, bytes);
}

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

static void warm_up(Artifact *artifact, Sample *warm) {
    prepare(artifact);
    double start = seconds(), ms;
    artifact->first_ms = timed(artifact);
    while (artifact->first_ms < SLOW_MS && (!warm->count || seconds() - start < asked.warmup_s)) {
        ms = timed(artifact);
        add_round(warm, &ms);
    }
}

/* Put the order of `count` artifacts in loading `k`: each is first equally often, and follows each neighbour equally often. */
static void order_of(size_t k, size_t count, size_t *order) {
    for (size_t i = 0; i < count; ++i) order[k % 2 ? count - 1 - i : i] = (i + k / 2) % count;
}

/* Time each artifact once a round, in this order, for as many rounds as there is time for, at least one; give each round to `sample`. */
static void rounds(Artifact *artifacts, size_t count, const size_t *order, int most, double end, Sample *sample) {
    double *times = allocate(count, sizeof *times);
    do {
        for (size_t i = 0; i < count; ++i) times[order[i]] = timed(&artifacts[order[i]]);
        add_round(sample, times);
    } while (sample->count < (size_t)most && seconds() <= end);
    free(times);
}

void measure(FILE *told, double **done, size_t *loads, Artifact *artifacts, size_t count) {
    Sample *warm = allocate(count, sizeof *warm);
    for (size_t i = 0; i < count; ++i) {
        warm[i] = new_sample(MAX_WARMUPS, 1);
        warm_up(&artifacts[i], &warm[i]);
    }
    Snapshot *before = allocate(1, sizeof *before), *after = allocate(1, sizeof *after);
    size_t *order = allocate(count, sizeof *order);
    take_snapshot(before);
    double end = before->clock_s + asked.time_limit_s, ms;
    for (int k = 0; k < asked.loads; ++k) {
        order_of((size_t)k, count, order);
        for (size_t i = 0; k && i < count; ++i) {
            Artifact *artifact = &artifacts[order[i]];
            model_close(artifact->model); /* first, so that memory holds one of each */
            open_model(artifact, false);
            prepare(artifact);
        }
        for (size_t i = 0; k && i < count; ++i)
            for (int again = 0; again < 2 && artifacts[order[i]].first_ms < SLOW_MS; ++again) {
                ms = timed(&artifacts[order[i]]);
                add_round(&warm[order[i]], &ms);
            }
        long long whole = asked.repetitions;
        int share = (int)(whole * (k + 1) / asked.loads - whole * k / asked.loads);
        Sample sample = new_sample((MAX_ROUNDS < MAX_TIMES / count ? MAX_ROUNDS : MAX_TIMES / count) / (size_t)asked.loads, count);
        rounds(artifacts, count, order, share, end, &sample);
        for (size_t i = 0; i < count; ++i) {
            for (size_t kept = 0; kept < sample.kept; ++kept)
                append(&artifacts[i].latency_ms, &artifacts[i].latencies, sample.times[kept * count + i]);
            artifacts[i].latency_count += sample.count;
        }
        append(done, loads, (double)sample.kept);
        free(sample.times);
        if (seconds() > end) break;
    }
    take_snapshot(after);
    put_changes(told, before, after);
    for (size_t i = 0; i < count; ++i) {
        artifacts[i].warmup_ms = warm[i].times;
        artifacts[i].warmups = warm[i].kept;
        artifacts[i].warmup_count = warm[i].count;
    }
}

void profile(Artifact *artifact) {
    model_close(artifact->model);
    open_model(artifact, true);
    prepare(artifact);
    model_invoke(artifact->model);
    artifact->ops = allocate(MAX_OPS, sizeof *artifact->ops);
    int runs = artifact->first_ms > SLOW_MS / PROFILED_RUNS ? 1 : PROFILED_RUNS;
    artifact->op_count = model_profile(artifact->model, runs, artifact->ops, MAX_OPS);
}
