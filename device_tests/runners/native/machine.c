#define _GNU_SOURCE
#include "machine.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "json.h"

#define CPU "/sys/devices/system/cpu/cpu%zu/cpufreq/"
#define PI_FIRMWARE "/sys/devices/platform/soc/soc:firmware/get_throttled"
enum { PI_THROTTLED_NOW = 0xF }; /* under-voltage, frequency capped, throttled, soft temperature limit */

double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Read the beginning of a small file without the blanks at its end; "" when it cannot be read. */
static char *read_line(char *text, size_t size, const char *path) {
    size_t length = 0;
    FILE *file = fopen(path, "r");
    if (file) {
        length = fread(text, 1, size - 1, file);
        fclose(file);
    }
    text[length] = 0;
    length = strlen(text); /* a device tree's texts end with a zero */
    while (length && isspace((unsigned char)text[length - 1])) text[--length] = 0;
    return text;
}

static double number_in(const char *path) {
    char text[64], *end;
    double number = strtod(read_line(text, sizeof text, path), &end);
    return end != text && !*end && isfinite(number) ? number : NAN;
}

static double of_processor(const char *format, size_t processor) {
    char path[128];
    snprintf(path, sizeof path, format, processor);
    return number_in(path);
}

/* Return the hottest thermal zone; zones are in millidegrees and some report nonsense. */
static double hottest(void) {
    double most = NAN;
    for (size_t zone = 0; zone < 256; ++zone) {
        double degrees = of_processor("/sys/class/thermal/thermal_zone%zu/temp", zone) / 1e3;
        if (degrees > 0 && degrees < 150) most = fmax(most, degrees); /* fmax passes over NAN */
    }
    return most;
}

/* Return the processor time that was not idle since the start, of all processors together. */
static double busy_seconds(void) {
    char text[512];
    double user, nice, system, irq, softirq, steal;
    read_line(text, sizeof text, "/proc/stat");
    if (sscanf(text, "cpu %lf %lf %lf %*f %*f %lf %lf %lf", &user, &nice, &system, &irq, &softirq, &steal) != 6) return NAN;
    return (user + nice + system + irq + softirq + steal) / (double)sysconf(_SC_CLK_TCK);
}

void take_snapshot(Snapshot *snapshot) {
    memset(snapshot, 0, sizeof *snapshot);
    double load[1];
    struct tms own;
    char text[64], *end;
    snapshot->load_average = getloadavg(load, 1) == 1 ? load[0] : NAN;
    snapshot->temperature_c = hottest();
    read_line(snapshot->governor, sizeof snapshot->governor, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    for (size_t i = 0, absent = 0; i < MAX_PROCESSORS && absent < 16; ++i) { /* numbers may have gaps */
        double khz = of_processor(CPU "scaling_cur_freq", i);
        absent = isfinite(khz) ? 0 : absent + 1;
        if (!isfinite(khz)) continue;
        snapshot->limits_khz[snapshot->processors] = of_processor(CPU "scaling_max_freq", i);
        snapshot->frequencies_mhz[snapshot->processors++] = khz / 1e3;
    }
    snapshot->firmware = (int)strtol(read_line(text, sizeof text, PI_FIRMWARE), &end, 16);
    if (end == text || *end) snapshot->firmware = -1;
    times(&own);
    snapshot->busy_s = busy_seconds();
    snapshot->own_s = (double)(own.tms_utime + own.tms_stime) / (double)sysconf(_SC_CLK_TCK);
    snapshot->clock_s = seconds();
}

/* Tell whether the firmware or the kernel slowed the processors down: "true", "false", or "null" where neither can tell. */
static const char *throttled(const Snapshot *before, const Snapshot *after) {
    bool known = before->firmware >= 0 || after->firmware >= 0;
    bool slowed = (before->firmware > 0 && before->firmware & PI_THROTTLED_NOW) || (after->firmware > 0 && after->firmware & PI_THROTTLED_NOW);
    for (size_t i = 0; i < before->processors && i < after->processors; ++i) {
        known = known || isfinite(after->limits_khz[i]);
        slowed = slowed || after->limits_khz[i] < before->limits_khz[i]; /* false with a NAN */
    }
    return !known ? "null" : slowed ? "true" : "false";
}

static void put_pair(FILE *file, const char *name, double before, double after) {
    fprintf(file, ",\"%s\":", name);
    put_numbers(file, (double[]){before, after}, 2);
}

void put_changes(FILE *file, const Snapshot *before, const Snapshot *after) {
    put_pair(file, "load_average", before->load_average, after->load_average);
    put_pair(file, "temperature_c", before->temperature_c, after->temperature_c);
    fputs(",\"frequencies_mhz\":[", file);
    put_numbers(file, before->frequencies_mhz, before->processors);
    fputc(',', file);
    put_numbers(file, after->frequencies_mhz, after->processors);
    fputs("],\"governors\":[", file);
    put_text(file, before->governor);
    fputc(',', file);
    put_text(file, after->governor);
    fprintf(file, "],\"throttled\":%s,\"busy_elsewhere\":", throttled(before, after));
    double others = (after->busy_s - before->busy_s) - (after->own_s - before->own_s);
    put_number(file, isnan(others) ? NAN : fmax(0, others) / fmax(after->clock_s - before->clock_s, 1e-3));
}

/* Return what stands behind a name in /proc/cpuinfo, up to the end of its line; "" without it. The last one counts, as for a Pi's model. */
static const char *cpuinfo(const char *text, const char *name, char *value, size_t size) {
    *value = 0;
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        size_t length = strlen(name), blanks = strncmp(line, name, length) ? 0 : strspn(line + length, " \t");
        if (strncmp(line, name, length) || line[length + blanks] != ':') continue;
        const char *start = line + length + blanks + 1;
        start += strspn(start, " \t");
        snprintf(value, size, "%.*s", (int)strcspn(start, "\n"), start);
    }
    return value;
}

void put_machine(FILE *file) {
    struct utsname system;
    char text[256], *info = read_file("/proc/cpuinfo", NULL), value[4096];
    if (!info) info = "";
    if (uname(&system)) memset(&system, 0, sizeof system);
    fputs("{\"abi\":", file);
    put_text(file, system.machine);
    snprintf(text, sizeof text, "%.60s-%.100s", system.sysname, system.release);
    fputs(",\"os\":", file);
    put_text(file, text);
    read_line(text, sizeof text, "/proc/device-tree/model");
    static const char *const names[] = {"model name", "Model", "Hardware"};
    for (size_t i = 0; !*text && i < sizeof names / sizeof *names; ++i) snprintf(text, sizeof text, "%s", cpuinfo(info, names[i], value, 256));
    fputs(",\"cpu\":", file);
    put_text(file, text);
    fputs(",\"governor\":", file);
    put_text(file, read_line(text, sizeof text, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
    fputs(",\"cpu_features\":[", file);
    char *rest = value;
    const char *comma = "";
    cpuinfo(info, "Features", value, sizeof value);
    for (char *feature; (feature = strtok_r(rest, " \t", &rest)); comma = ",") {
        fputs(comma, file);
        put_text(file, feature);
    }
    fputs("]}", file);
}

double peak_rss_bytes(void) {
    char value[64], *text = read_file("/proc/self/status", NULL);
    return text ? strtod(cpuinfo(text, "VmHWM", value, sizeof value), NULL) * 1024 : 0; /* getrusage would count the launcher too */
}

const char *pin(const char *mask) {
    static char why[160];
    cpu_set_t asked, got;
    CPU_ZERO(&asked);
    size_t digits = strlen(mask);
    for (size_t i = 0; i < digits; ++i) {
        if (!isxdigit((unsigned char)mask[i]) || digits > CPU_SETSIZE / 4) return "the CPU mask is not hexadecimal";
        long digit = strtol((char[]){mask[i], 0}, NULL, 16);
        for (size_t bit = 0; bit < 4; ++bit)
            if (digit >> bit & 1) CPU_SET(4 * (digits - 1 - i) + bit, &asked);
    }
    if (sched_setaffinity(0, sizeof asked, &asked)) {
        snprintf(why, sizeof why, "none of the processors of mask %.64s may be used here: %s", mask, strerror(errno));
        return why;
    }
    if (sched_getaffinity(0, sizeof got, &got) == 0 && CPU_EQUAL(&asked, &got)) return NULL;
    snprintf(why, sizeof why, "some processors of mask %.64s are not there or not allowed", mask);
    return why;
}
