/* One run: what was asked for, and what is done with each artifact. */
#ifndef EDGECOMPRESS_RUN_H
#define EDGECOMPRESS_RUN_H

#include <stdbool.h>
#include <stdio.h>

#include "json.h"
#include "model.h"

typedef struct {
    const char *nonce, *reply, *mode, *mask, *inputs, *outputs;
    int threads, repetitions, loads;
    double warmup_s, time_limit_s;
    bool profile;
    const Json *artifacts;
} Request;

extern Request asked;

typedef struct {
    const char *path;
    char sha256[65];
    Model *model;
    float **values; /* random inputs, one array for each */
    double load_ms, first_ms, *warmup_ms, *latency_ms;
    size_t warmups, latencies, warmup_count, latency_count, op_count; /* the counts are of all inferences, the times may be a sample */
    Op *ops;
} Artifact;

void open_model(Artifact *artifact, bool profiled);

/* Set random inputs once, so that only the inference itself is timed; the same ones for each artifact with the same shapes. */
void prepare(Artifact *artifact);

/* Time every artifact in turn, A B A B, so that a disturbance meets all of them; write to `told` what changed of the machine meanwhile.

   The rounds are shared among `asked.loads` loadings, `loads` of which there was time for, with the times of `done` rounds kept in each: where in
   memory a model lies makes it faster or slower for as long as it lies there, which no number of repetitions shows. */
void measure(FILE *told, double **done, size_t *loads, Artifact *artifacts, size_t count);

/* Time the ops apart from the rest, with models of its own: those that can be profiled may be slower. */
void profile(Artifact *artifact);

/* Run every sample of `asked.inputs` with batch 1, write `asked.outputs`, and tell its SHA-256. */
void infer(const Artifact *artifact, char sha256[65]);

#endif
