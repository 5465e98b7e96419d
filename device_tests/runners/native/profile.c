#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "model.h"

static int slowest_first(const void *a, const void *b) {
    double left = ((const Op *)a)->ms, right = ((const Op *)b)->ms;
    return (left < right) - (left > right);
}

static size_t count_event(const LiteRtProfilerEvent *event, int runs, Op *ops, size_t count, size_t most) {
    size_t i = 0;
    while (i < count && strncmp(ops[i].name, event->name, sizeof ops->name - 1) != 0) ++i;
    if (i == most) return count;
    if (i == count) snprintf(ops[i].name, sizeof ops->name, "%s", event->name);
    ops[i].calls += 1.0 / runs;
    ops[i].ms += (double)event->elapsed_us / 1e3 / runs;
    return i == count ? count + 1 : count;
}

size_t model_profile(Model *model, int runs, Op *ops, size_t most) {
    LiteRtProfiler profiler = NULL;
    size_t count = 0;
    if (LiteRtCompiledModelGetProfiler(model->compiled, &profiler) || !profiler) return 0;
    for (int run = 0; run < runs; ++run) { /* one at a time: it keeps a limited number of events */
        int events = 0;
        if (LiteRtResetProfiler(profiler) || LiteRtStartProfiler(profiler)) return 0;
        model_invoke(model);
        if (LiteRtStopProfiler(profiler) || LiteRtGetNumProfilerEvents(profiler, &events) || events <= 0) return 0;
        LiteRtProfilerEvent *event = allocate((size_t)events, sizeof *event);
        if (LiteRtGetProfilerEvents(profiler, events, event)) return 0;
        for (int i = 0; i < events; ++i)
            if (event[i].name && (event[i].kind == LITERT_OP || event[i].kind == LITERT_DELEGATED_OP))
                count = count_event(&event[i], runs, ops, count, most);
        free(event);
    }
    qsort(ops, count, sizeof *ops, slowest_first);
    return count;
}
