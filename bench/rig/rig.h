// What the load generator and the mock upstream share: one clock, growable bytes, and dying loudly.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// Nanoseconds of CLOCK_MONOTONIC, which both programs read, so that one can subtract the other's stamps.
static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

typedef struct {
    char *data;
    size_t size, capacity;
} Bytes;

static inline void bytes_reserve(Bytes *b, size_t more) {
    if (b->size + more + 1 <= b->capacity) return;
    b->capacity = (b->size + more + 1) * 2;
    b->data = realloc(b->data, b->capacity);
    if (!b->data) die("out of memory");
}

static inline void bytes_append(Bytes *b, const char *data, size_t size) {
    bytes_reserve(b, size);
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static inline void bytes_drop_front(Bytes *b, size_t size) {
    memmove(b->data, b->data + size, b->size - size);
    b->size -= size;
}
