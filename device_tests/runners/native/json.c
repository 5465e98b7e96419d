#include "json.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

enum { MAX_DEPTH = 32 };

static Json *value(const char **at, int depth);

static void skip_blanks(const char **at) { *at += strspn(*at, " \t\r\n"); }

static bool take(const char **at, char wanted) {
    skip_blanks(at);
    if (**at != wanted) return false;
    ++*at;
    return true;
}

static int hexadecimal(const char **at) {
    int code = 0;
    for (int i = 0; i < 4; ++i, ++*at) {
        const char *digits = "0123456789abcdef", *found = **at ? strchr(digits, **at | 0x20) : NULL;
        if (!found) return -1;
        code = code * 16 + (int)(found - digits);
    }
    return code;
}

static char *put_utf8(char *out, int code) {
    if (code < 0x80) {
        *out++ = (char)code;
        return out;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const int first[] = {0, 0xC0, 0xE0, 0xF0};
    *out++ = (char)(first[more] | code >> (6 * more));
    while (more--) *out++ = (char)(0x80 | (code >> (6 * more) & 0x3F));
    return out;
}

static int escaped(const char **at) {
    static const char names[] = "\"\\/bfnrt", codes[] = "\"\\/\b\f\n\r\t";
    char name = *(*at)++;
    if (name != 'u') {
        const char *found = name ? strchr(names, name) : NULL;
        return found ? codes[found - names] : -1;
    }
    int code = hexadecimal(at);
    if (code >= 0xD800 && code < 0xDC00 && (*at)[0] == '\\' && (*at)[1] == 'u') {
        *at += 2;
        int low = hexadecimal(at);
        return low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00) : -1;
    }
    return code > 0 ? code : -1; /* a zero would end the text early */
}

static char *string(const char **at) {
    if (!take(at, '"')) return NULL;
    char *text = allocate(strlen(*at) + 1, 1), *out = text; /* what is unescaped is never longer */
    while (**at != '"') {
        if ((unsigned char)**at < 0x20) return NULL;
        int code = (unsigned char)*(*at)++;
        if (code == '\\') {
            if ((code = escaped(at)) < 0) return NULL;
            out = put_utf8(out, code);
        } else {
            *out++ = (char)code;
        }
    }
    ++*at;
    return text;
}

static Json *made(JsonKind kind) {
    Json *json = allocate(1, sizeof *json);
    json->kind = kind;
    return json;
}

/* Read members up to `end`; those of an object have keys. */
static Json *members(const char **at, JsonKind kind, char end, int depth) {
    Json *json = made(kind), **last = &json->first;
    if (take(at, end)) return json;
    do {
        char *key = NULL;
        if (kind == JSON_OBJECT && (!(key = string(at)) || !take(at, ':'))) return NULL;
        if (!(*last = value(at, depth + 1))) return NULL;
        (*last)->key = key;
        last = &(*last)->next;
    } while (take(at, ','));
    return take(at, end) ? json : NULL;
}

static Json *word(const char **at) {
    static const struct { const char *text; JsonKind kind; double number; } words[] = {
        {"null", JSON_NULL, 0}, {"true", JSON_BOOL, 1}, {"false", JSON_BOOL, 0}};
    for (size_t i = 0; i < sizeof words / sizeof *words; ++i) {
        size_t length = strlen(words[i].text);
        if (strncmp(*at, words[i].text, length) == 0) {
            *at += length;
            Json *json = made(words[i].kind);
            json->number = words[i].number;
            return json;
        }
    }
    return NULL;
}

static Json *value(const char **at, int depth) {
    if (depth > MAX_DEPTH) return NULL;
    skip_blanks(at);
    if (**at == '"') {
        Json *json = made(JSON_STRING);
        return (json->text = string(at)) ? json : NULL;
    }
    if (take(at, '{')) return members(at, JSON_OBJECT, '}', depth);
    if (take(at, '[')) return members(at, JSON_ARRAY, ']', depth);
    if (!**at || !strchr("-0123456789", **at)) return word(at);
    char *end;
    Json *json = made(JSON_NUMBER);
    json->number = strtod(*at, &end);
    if (end == *at || !isfinite(json->number)) return NULL;
    *at = end;
    return json;
}

Json *json_parse(const char *text) {
    Json *json = value(&text, 0);
    skip_blanks(&text);
    return *text ? NULL : json;
}

const Json *json_member(const Json *object, const char *key, JsonKind kind) {
    const Json *found = object && object->kind == JSON_OBJECT ? object->first : NULL;
    while (found && strcmp(found->key, key) != 0) found = found->next;
    return found && found->kind == kind ? found : NULL;
}

const char *json_text(const Json *object, const char *key, const char *otherwise) {
    const Json *found = json_member(object, key, JSON_STRING);
    return found ? found->text : otherwise;
}

double json_number(const Json *object, const char *key, double otherwise) {
    const Json *found = json_member(object, key, JSON_NUMBER);
    return found ? found->number : otherwise;
}

void put_text(FILE *file, const char *text) {
    fputc('"', file);
    for (; *text; ++text) {
        if (*text == '"' || *text == '\\') fputc('\\', file);
        if ((unsigned char)*text < 0x20) fprintf(file, "\\u%04x", (unsigned char)*text);
        else fputc(*text, file);
    }
    fputc('"', file);
}

void put_number(FILE *file, double number) {
    if (isfinite(number)) fprintf(file, "%.9g", number);
    else fputs("null", file);
}

void put_numbers(FILE *file, const double *numbers, size_t count) {
    fputc('[', file);
    for (size_t i = 0; i < count; ++i) {
        if (i) fputc(',', file);
        put_number(file, numbers[i]);
    }
    fputc(']', file);
}
