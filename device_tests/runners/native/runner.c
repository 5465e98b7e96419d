/* Run TFLite files on a device without Python: `runner request.json`. The protocol is described in ../README.md.

   Paths in a request are relative to the request's folder. The reply is written as a temporary file and renamed, also when something fails,
   so a reader sees all of it or nothing. */
#include <errno.h>
#include <libgen.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "json.h"
#include "machine.h"
#include "model.h"
#include "npz.h"
#include "sha256.h"

#define NAME "edgecompress-native 1 (generic-linux-arm64)"
enum { SCHEMA = 1, ERROR_EXIT = 10, MAX_ARTIFACTS = 64, MAX_REPETITIONS = 1000000, MAX_SAMPLES_VALUES = 1 << 28 };

/* --- what is asked --- */

static struct {
    const char *nonce, *reply, *mode, *mask, *inputs, *outputs;
    int threads, repetitions, loads;
    double warmup_s, time_limit_s;
    bool profile;
    const Json *artifacts;
} asked = {.nonce = NULL};

typedef struct {
    const char *path;
    char sha256[65];
    Model *model;
    float **values; /* random inputs, one array for each */
    double load_ms, first_ms, *warmup_ms, *latency_ms;
    size_t warmups, latencies;
} Artifact;

void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) fail("memory", "out of memory");
    return memory;
}

char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    size_t room = 1 << 16, used = 0, got;
    char *bytes = allocate(room, 1);
    while ((got = fread(bytes + used, 1, room - 1 - used, file)) > 0) {
        used += got;
        if (used + 1 == room && !(bytes = realloc(bytes, room *= 2))) fail("memory", "out of memory");
    }
    bool bad = ferror(file);
    fclose(file);
    bytes[used] = 0;
    if (size) *size = used;
    return bad ? NULL : bytes;
}

/* --- how it ends --- */

static void publish(const char *text) {
    char temporary[4096];
    snprintf(temporary, sizeof temporary, "%s.tmp", asked.reply);
    FILE *file = fopen(temporary, "wb");
    bool good = file && fputs(text, file) >= 0;
    if ((file && fclose(file)) || !good || rename(temporary, asked.reply)) {
        fprintf(stderr, "%s: %s\n", asked.reply, strerror(errno));
        exit(3);
    }
}

void fail(const char *kind, const char *format, ...) {
    char message[500], *text = NULL;
    size_t size;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s\n", message);
    FILE *file = asked.reply ? open_memstream(&text, &size) : NULL;
    if (!file) exit(2);
    fputs("{\"nonce\":", file);
    if (asked.nonce) put_text(file, asked.nonce);
    else fputs("null", file);
    fputs(",\"error\":{\"kind\":", file);
    put_text(file, kind);
    fputs(",\"message\":", file);
    put_text(file, message);
    fputs("}}", file);
    fclose(file);
    publish(text);
    exit(ERROR_EXIT);
}

/* --- reading the request --- */

static int whole(const Json *request, const char *key, int otherwise, int most) {
    double number = json_number(request, key, otherwise);
    if (number != floor(number) || number < 1 || number > most) fail("request", "%s: not a whole number from 1 to %d", key, most);
    return (int)number;
}

static void understand(const Json *request) {
    asked.reply = json_text(request, "reply", NULL);
    asked.nonce = json_text(request, "nonce", NULL);
    asked.mode = json_text(request, "mode", "");
    asked.mask = json_text(request, "cpu_mask", "");
    asked.inputs = json_text(request, "inputs", "");
    asked.outputs = json_text(request, "outputs", "");
    asked.artifacts = json_member(request, "artifacts", JSON_ARRAY);
    const Json *profile = json_member(request, "profile", JSON_BOOL);
    asked.profile = profile && profile->number;
    if (!asked.reply || !asked.nonce || !asked.artifacts || !asked.artifacts->first) fail("request", "reply, nonce or artifacts are missing");
    bool known = strcmp(asked.mode, "measure") == 0 || strcmp(asked.mode, "infer") == 0;
    if (json_number(request, "schema", 0) != SCHEMA || !known) fail("request", "this is %s: schema %d, modes measure, infer", NAME, SCHEMA);
    asked.threads = whole(request, "threads", 0, MAX_PROCESSORS);
    asked.repetitions = whole(request, "repetitions", 50, MAX_REPETITIONS);
    asked.loads = whole(request, "loads", 1, MAX_REPETITIONS);
    asked.warmup_s = json_number(request, "warmup_s", 0.5);
    asked.time_limit_s = json_number(request, "time_limit_s", 150);
    if (asked.loads > asked.repetitions) asked.loads = asked.repetitions;
}

static void open_model(Artifact *artifact) { artifact->model = model_open(artifact->path, artifact->path, asked.threads); }

static Artifact *load(size_t *count) {
    *count = 0;
    for (const Json *json = asked.artifacts->first; json; json = json->next) ++*count;
    if (*count > MAX_ARTIFACTS) fail("request", "more than %d artifacts", MAX_ARTIFACTS);
    Artifact *artifacts = allocate(*count, sizeof *artifacts), *artifact = artifacts;
    for (const Json *json = asked.artifacts->first; json; json = json->next, ++artifact) {
        const char *format = json_text(json, "format", ""), *expected = json_text(json, "sha256", "");
        if (!(artifact->path = json_text(json, "path", NULL))) fail("request", "an artifact has no path");
        if (!sha256_file(artifact->path, artifact->sha256)) fail("request", "%s: %s", artifact->path, strerror(errno));
        if (strcmp(artifact->sha256, expected) != 0)
            fail("hash", "%s: SHA-256 is %s, expected %.64s; it was damaged on the way", artifact->path, artifact->sha256, expected);
        if (strcmp(format, "tflite") != 0) fail("request", "unknown format '%.40s'; this runner knows tflite", format);
        double start = seconds();
        open_model(artifact);
        artifact->load_ms = (seconds() - start) * 1e3;
    }
    return artifacts;
}

/* --- measuring --- */

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

/* Set random inputs once, so that only the inference itself is timed; the same ones for each artifact with the same shapes. */
static void prepare(Artifact *artifact) {
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

/* Time every artifact in turn, A B A B, so that a disturbance meets all of them. The rounds are shared among `loads` loadings: where in
   memory a model lies makes it faster or slower for as long as it lies there, which no number of repetitions shows. */
static void measure(FILE *told, double **done, size_t *loads, Artifact *artifacts, size_t count) {
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
            open_model(artifact);
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

/* --- computing outputs --- */

static void infer(const Artifact *artifact, char sha256[65]) {
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
        if (tensor->count > MAX_SAMPLES_VALUES / samples) fail("memory", "the outputs of %zu samples are too many at once", samples);
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

/* --- the reply --- */

static void put_result(FILE *file, const Artifact *artifact, const double *done, size_t loads) {
    fprintf(file, "{\"sha256\":\"%s\",\"backend\":\"LiteRT %s CompiledModel\",\"load_ms\":", artifact->sha256, LITERT_VERSION);
    put_number(file, artifact->load_ms);
    fputs(",\"first_ms\":", file);
    put_number(file, artifact->first_ms);
    fputs(",\"warmup_ms\":", file);
    put_numbers(file, artifact->warmup_ms, artifact->warmups);
    fputs(",\"latency_ms\":", file);
    put_numbers(file, artifact->latency_ms, artifact->latencies);
    fputs(",\"rounds\":", file);
    put_numbers(file, done, loads);
    fputs(",\"notes\":[\"CPU only: this runner has no delegates of phone vendors\"", file);
    if (asked.profile) fputs(",\"no times per op: this runner does not tell them\"", file);
    fputs("]}", file);
}

static void answer(void) {
    char started_at[32], *mask_problem = NULL;
    time_t now = time(NULL);
    strftime(started_at, sizeof started_at, "%Y-%m-%dT%H:%M:%S+00:00", gmtime(&now));
    if (*asked.mask && (mask_problem = (char *)pin(asked.mask))) fail("request", "%s", mask_problem);
    size_t count, size, told_size, loads = 0;
    Artifact *artifacts = load(&count);
    char *text, *told_text, outputs_sha256[65] = "";
    double *done = NULL;
    FILE *told = open_memstream(&told_text, &told_size);
    if (!told) fail("memory", "out of memory");
    if (strcmp(asked.mode, "infer") != 0) measure(told, &done, &loads, artifacts, count);
    else if (count == 1) infer(&artifacts[0], outputs_sha256);
    else fail("request", "mode infer takes one artifact");
    fclose(told);
    FILE *file = open_memstream(&text, &size);
    if (!file) fail("memory", "out of memory");
    fprintf(file, "{\"schema\":%d,\"nonce\":", SCHEMA);
    put_text(file, asked.nonce);
    fprintf(file, ",\"runner\":\"%s\",\"threads\":%d,\"started_at\":\"%s\",\"machine\":", NAME, asked.threads, started_at);
    put_machine(file);
    fputs(",\"cpu_mask\":", file);
    put_text(file, asked.mask);
    fprintf(file, ",\"peak_rss_bytes\":%.0f,\"results\":[", peak_rss_bytes());
    for (size_t i = 0; i < count; ++i) {
        if (i) fputc(',', file);
        put_result(file, &artifacts[i], done, loads);
    }
    fprintf(file, "],\"outputs_sha256\":\"%s\"%s}", outputs_sha256, told_text);
    fclose(file);
    publish(text);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fputs("usage: runner request.json\n", stderr);
        return 2;
    }
    char *text = read_file(argv[1], NULL);
    Json *request = text ? json_parse(text) : NULL;
    if (!request || chdir(dirname(strdup(argv[1])))) {
        fprintf(stderr, "%s: %s\n", argv[1], text ? "not a request" : strerror(errno));
        return 2;
    }
    understand(request);
    answer();
    return 0;
}
