/* JSON, as much of it as a request and a reply need. */
#ifndef EDGECOMPRESS_JSON_H
#define EDGECOMPRESS_JSON_H

#include <stdio.h>

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonKind;

typedef struct Json {
    JsonKind kind;
    double number; /* of a bool: 0 or 1 */
    char *text;
    char *key; /* where it is a member of an object */
    struct Json *first, *next;
} Json;

/* Return the value that `text` holds, or NULL when it is not JSON. */
Json *json_parse(const char *text);

/* Return the member `key` of an object; NULL when it has none of this kind. */
const Json *json_member(const Json *object, const char *key, JsonKind kind);
const char *json_text(const Json *object, const char *key, const char *otherwise);
double json_number(const Json *object, const char *key, double otherwise);

void put_text(FILE *file, const char *text);
void put_number(FILE *file, double number); /* null when it is not finite */
void put_numbers(FILE *file, const double *numbers, size_t count);

#endif
