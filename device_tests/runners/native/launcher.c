/* The one file that is pushed: it lays the runner, LiteRT and the C library they were built with beside the request, then becomes the runner.

   Linked statically, so it needs nothing of the device's own: Android has another C library and no loader for this one. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER "native-runner"

typedef struct {
    const char *name, *start, *end;
} Part;

extern const Part parts[]; /* made by build.py; the last one has no name */

static void lay(const Part *part) {
    int file = open(part->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    if (file < 0) goto failed;
    for (const char *at = part->start; at < part->end;) {
        ssize_t wrote = write(file, at, (size_t)(part->end - at));
        if (wrote < 0) goto failed;
        at += wrote;
    }
    if (close(file) == 0) return;
failed:
    fprintf(stderr, "cannot unpack %s: %s\n", part->name, strerror(errno));
    exit(3);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fputs("usage: native-runner request.json\n", stderr);
        return 2;
    }
    char *request = realpath(argv[1], NULL), *folder = request ? strdup(request) : NULL;
    if (!folder || chdir(dirname(folder)) || mkdir(FOLDER, 0700) || chdir(FOLDER)) {
        fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
        return 3;
    }
    for (const Part *part = parts; part->name; ++part) lay(part);
    char *start[] = {"./ld-linux-aarch64.so.1", "--library-path", ".", "./runner", request, NULL};
    char *library_path = realpath(".", NULL);
    if (library_path) start[2] = library_path;
    execv(start[0], start);
    fprintf(stderr, "cannot start %s: %s\n", start[0], strerror(errno));
    return 126;
}
