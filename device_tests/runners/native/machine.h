/* What the runner tells about the machine it runs on. What the system does not tell is "", NAN or left out; nothing here fails. */
#ifndef EDGECOMPRESS_MACHINE_H
#define EDGECOMPRESS_MACHINE_H

#include <stddef.h>
#include <stdio.h>

enum { MAX_PROCESSORS = 1024 };

/* What may change during a measurement, with the clocks that tell who used the processors meanwhile. */
typedef struct {
    double load_average, temperature_c, busy_s, own_s, clock_s;
    char governor[40];
    size_t processors;
    double frequencies_mhz[MAX_PROCESSORS], limits_khz[MAX_PROCESSORS];
    int firmware; /* a Raspberry Pi's throttling bits; -1 where there are none */
} Snapshot;

double seconds(void);
void take_snapshot(Snapshot *snapshot);

/* Write the part of a reply that two snapshots give, with a comma before it. */
void put_changes(FILE *file, const Snapshot *before, const Snapshot *after);

/* Write the value of `machine`. */
void put_machine(FILE *file);

/* Return the peak resident set of this process since it became this program; 0 when the system does not tell. */
double peak_rss_bytes(void);

/* Run on the processors of a hexadecimal mask only; return why not, NULL when it is so. */
const char *pin(const char *mask);

#endif
