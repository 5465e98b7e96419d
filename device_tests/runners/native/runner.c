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
#include "run.h"
#include "sha256.h"

#define NAME "edgecompress-native 2 (generic-linux-arm64)"
enum { SCHEMA = 1, ERROR_EXIT = 10, MAX_ARTIFACTS = 64, MAX_REPETITIONS = 1000000 };

Request asked;

/* --- what common.h promises --- */

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

/* --- how it fails --- */

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
        open_model(artifact, false);
        artifact->load_ms = (seconds() - start) * 1e3;
    }
    return artifacts;
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
    fprintf(file, ",\"warmup_count\":%zu,\"latency_count\":%zu,\"profile\":[", artifact->warmup_count, artifact->latency_count);
    for (size_t i = 0; i < artifact->op_count; ++i) {
        fputs(i ? ",{\"name\":" : "{\"name\":", file);
        put_text(file, artifact->ops[i].name);
        fputs(",\"calls\":", file);
        put_number(file, artifact->ops[i].calls);
        fputs(",\"ms\":", file);
        put_number(file, artifact->ops[i].ms);
        fputc('}', file);
    }
    fputs("],\"notes\":[\"CPU only: this runner has no delegates of phone vendors\"", file);
    if (asked.profile && !artifact->op_count) fputs(",\"no times per op: LiteRT did not tell them\"", file);
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
    double *done = NULL, peak = 0;
    FILE *told = open_memstream(&told_text, &told_size);
    if (!told) fail("memory", "out of memory");
    if (strcmp(asked.mode, "infer") != 0) {
        measure(told, &done, &loads, artifacts, count);
        peak = peak_rss_bytes(); /* the profiler takes more than a model does */
        for (size_t i = 0; asked.profile && i < count; ++i) profile(&artifacts[i]);
    } else if (count == 1) {
        infer(&artifacts[0], outputs_sha256);
        peak = peak_rss_bytes();
    } else {
        fail("request", "mode infer takes one artifact");
    }
    fclose(told);
    FILE *file = open_memstream(&text, &size);
    if (!file) fail("memory", "out of memory");
    fprintf(file, "{\"schema\":%d,\"nonce\":", SCHEMA);
    put_text(file, asked.nonce);
    fprintf(file, ",\"runner\":\"%s\",\"threads\":%d,\"started_at\":\"%s\",\"machine\":", NAME, asked.threads, started_at);
    put_machine(file);
    fputs(",\"cpu_mask\":", file);
    put_text(file, asked.mask);
    fprintf(file, ",\"peak_rss_bytes\":%.0f,\"results\":[", peak);
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
