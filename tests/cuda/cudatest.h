/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA tests share: plain C and C++, nothing but the CUDA runtime, so that they build on a bare GPU machine.
 *
 * A test is one program. It makes its data with rq_rng, runs on the device, compares with a plain C loop (EXPECT...), records
 * its results (rq_record) and ends with `return rq_done(__FILE__);`. Exit status: 0 right, 1 wrong, 77 skipped.
 *
 * The same source is built for the simulator (RQ_TEST_SIM is defined) and for a real GPU. From the environment:
 *   RQ_RECORD  a file that gets the records; compare.py compares such files of two runs
 *   RQ_SMALL   set: small shapes only, for compute-sanitizer
 *   RQ_EXACT   set: buffers exactly as large as asked, neither guarded nor filled, so that compute-sanitizer sees what is
 *              out of bounds or uninitialised. (The simulator checks every access itself: its buffers always are so.) */
#ifndef RQ_CUDATEST_H
#define RQ_CUDATEST_H
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef RQ_TEST_DIRECT /* ptxtest.h in the simulator: no runtime library between */
#include "../gpusim/gpusim.h"
#else
#include <cuda_runtime_api.h>
#endif

/* ---- what is expected */
typedef struct rq_test_state {
    long checks, failures;
} rq_test_state;
static rq_test_state rq_test;

static inline bool rq_small(void) { return getenv("RQ_SMALL") != NULL; }

/* Counts a check; true when it failed and is to be printed (the first 20 are). */
static inline bool rq_failed(bool ok) {
    rq_test.checks++;
    if (ok) return false;
    return ++rq_test.failures <= 20;
}

#define RQ_WHERE() fprintf(stderr, "%s:%d: ", __FILE__, __LINE__)
#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (rq_failed(condition)) RQ_WHERE(), fprintf(stderr, "expected %s\n", #condition);                            \
    } while (0)
/* Integers of any type, as 64 bits. `at` says which element. */
#define EXPECT_EQ_AT(at, got, want)                                                                                    \
    do {                                                                                                               \
        long long got_ = (long long)(got), want_ = (long long)(want);                                                  \
        if (rq_failed(got_ == want_))                                                                                  \
            RQ_WHERE(), fprintf(stderr, "%s [%lld]: %lld (%#llx), expected %lld (%#llx)\n", #got, (long long)(at),     \
                                got_, (unsigned long long)got_, want_, (unsigned long long)want_);                     \
    } while (0)
#define EXPECT_EQ(got, want) EXPECT_EQ_AT(0, got, want)
/* Floating point: within bound, or both NaN, or the same infinity. */
#define EXPECT_NEAR_AT(at, got, want, bound)                                                                           \
    do {                                                                                                               \
        double got_ = (double)(got), want_ = (double)(want), bound_ = (double)(bound);                                 \
        bool same_ =                                                                                                   \
            (got_ != got_ && want_ != want_) || !(got_ < want_ || got_ > want_ || got_ != got_ || want_ != want_);     \
        if (rq_failed(same_ || fabs(got_ - want_) <= bound_))                                                          \
            RQ_WHERE(), fprintf(stderr, "%s [%lld]: %.9g, expected %.9g within %.3g\n", #got, (long long)(at), got_,   \
                                want_, bound_);                                                                        \
    } while (0)
#define EXPECT_NEAR(got, want, bound) EXPECT_NEAR_AT(0, got, want, bound)

#define RQ_DIE(...)                                                                                                    \
    do {                                                                                                               \
        RQ_WHERE();                                                                                                    \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fputc('\n', stderr);                                                                                           \
        exit(1);                                                                                                       \
    } while (0)
#define CHECK_CUDA(call)                                                                                               \
    do {                                                                                                               \
        cudaError_t e_ = (call);                                                                                       \
        if (e_ != cudaSuccess) RQ_DIE("%s: %s (%s)", #call, cudaGetErrorName(e_), cudaGetErrorString(e_));             \
    } while (0)

/* ---- data: splitmix64, the same everywhere */
typedef struct rq_rng {
    uint64_t state;
} rq_rng;
static inline uint64_t rq_rand_u64(rq_rng *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline uint32_t rq_rand_u32(rq_rng *r) { return (uint32_t)(rq_rand_u64(r) >> 32); }
/* [-1, 1), a multiple of 2^-23 */
static inline float rq_rand_float(rq_rng *r) { return (float)(int32_t)(rq_rand_u32(r) >> 8) * 0x1p-23f - 1.0f; }
static inline void rq_rand_bytes(rq_rng *r, void *to, size_t bytes) {
    uint8_t *p = (uint8_t *)to;
    for (size_t i = 0; i < bytes; ++i) p[i] = (uint8_t)(rq_rand_u64(r) >> 56);
}

/* ---- half and bfloat16 as bits, written out in plain C; nearest even */
static inline float rq_float_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t rq_bits_of_float(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float rq_half_value(uint16_t h) {
    int exponent = (h >> 10) & 31, fraction = h & 1023;
    float v;
    if (exponent == 31)
        v = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        v = ldexpf((float)fraction, -24);
    else
        v = ldexpf((float)(fraction + 1024), exponent - 25);
    return h & 0x8000 ? -v : v;
}
static inline uint16_t rq_half_bits(float v) {
    uint16_t sign = (uint16_t)(signbit(v) ? 0x8000 : 0);
    float a = fabsf(v);
    if (v != v) return 0x7fff;
    if (a >= 65520.0f) return (uint16_t)(sign | 0x7c00);
    int exponent = -14; /* of the last place: 2^(exponent - 10) */
    if (a >= 0x1p-14f) exponent = ilogbf(a);
    int units = (int)nearbyintf(ldexpf(a, 10 - exponent)); /* 0..2048; the sum below carries into the exponent */
    return (uint16_t)(sign | (units + (exponent + 14) * 1024));
}
static inline float rq_bf16_value(uint16_t b) { return rq_float_of_bits((uint32_t)b << 16); }
static inline uint16_t rq_bf16_bits(float v) {
    uint32_t u = rq_bits_of_float(v);
    if (v != v) return 0x7fff;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* ---- records: what a run computed, for a comparison with another run of the same program on another device.
 * One record, little-endian: "RQR1", u32 type (below), u32 bytes of the name, u32 zero, u64 count, f64 bound, the name, the
 * elements. Integers must be the same bits in both runs; floating point may differ by `bound` (absolute; 0: the same bits). */
enum rq_record_type {
    RQ_I8 = 1,
    RQ_U8,
    RQ_I16,
    RQ_U16,
    RQ_I32,
    RQ_U32,
    RQ_I64,
    RQ_U64,
    RQ_F16,
    RQ_BF16,
    RQ_F32,
    RQ_F64
};
static inline size_t rq_record_bytes(enum rq_record_type type) {
    static const uint8_t bytes[] = {0, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};
    return bytes[type];
}
static inline void rq_record(const char *name, enum rq_record_type type, const void *data, size_t n, double bound) {
    const char *path = getenv("RQ_RECORD");
    if (!path) return;
    FILE *f = fopen(path, "ab");
    if (!f) RQ_DIE("RQ_RECORD: cannot write %s", path);
    uint32_t head[3] = {(uint32_t)type, (uint32_t)strlen(name), 0};
    uint64_t count = n;
    size_t bytes = n * rq_record_bytes(type);
    bool ok = fwrite("RQR1", 4, 1, f) == 1 && fwrite(head, sizeof head, 1, f) == 1 && fwrite(&count, 8, 1, f) == 1 &&
              fwrite(&bound, 8, 1, f) == 1 && fwrite(name, 1, head[1], f) == head[1] &&
              fwrite(data, 1, bytes, f) == bytes;
    if (fclose(f) != 0 || !ok) RQ_DIE("RQ_RECORD: cannot write %s", path);
}

/* ---- device memory. RQ_TEST_DIRECT: the simulator's own; otherwise the runtime's, each call waiting for its end. */
#ifdef RQ_TEST_DIRECT
static inline void *rq_raw_alloc(size_t bytes) {
    void *p = gs_mem_alloc(bytes);
    if (!p) RQ_DIE("no device memory for %zu bytes", bytes);
    return p;
}
static inline void rq_raw_free(void *p) { gs_mem_free(p); }
static inline void rq_raw_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static inline void rq_raw_fill(void *to, int byte, size_t bytes) { memset(to, byte, bytes); }
#else
static inline void *rq_raw_alloc(size_t bytes) {
    void *p = NULL;
    CHECK_CUDA(cudaMalloc(&p, bytes));
    return p;
}
static inline void rq_raw_free(void *p) { CHECK_CUDA(cudaFree(p)); }
static inline void rq_raw_copy(void *to, const void *from, size_t bytes) {
    CHECK_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
static inline void rq_raw_fill(void *to, int byte, size_t bytes) { CHECK_CUDA(cudaMemset(to, byte, bytes)); }
/* Ends the program with 77 where there is no device, or none of this compute capability (90: Hopper). */
static inline void rq_need_device(int capability) {
    int n = 0, major = 0, minor = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n == 0) {
        printf("skip: no CUDA device here (%s)\n", e == cudaSuccess ? "none found" : cudaGetErrorString(e));
        exit(77);
    }
    CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    CHECK_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    if (major * 10 + minor < capability) {
        printf("skip: this needs compute capability %d.%d, the device has %d.%d\n", capability / 10, capability % 10,
               major, minor);
        exit(77);
    }
}
#endif

/* Buffers on the device: filled with RQ_POISON, between two guards whose bytes must still be there when the buffer is read or
 * freed. A kernel that leaves elements out, or writes beside its buffer, is seen on a real GPU too. */
enum { RQ_POISON = 0xcb, RQ_GUARD_BYTE = 0x5a, RQ_GUARD = 256, RQ_MAX_BUFFERS = 256 };
typedef struct rq_buffer {
    uint8_t *start; /* what the test got; NULL: a free slot */
    size_t bytes;
    size_t guard; /* bytes before; as many after the rounded-up size */
} rq_buffer;
static rq_buffer rq_buffers[RQ_MAX_BUFFERS];

static inline size_t rq_rounded(size_t bytes) { return (bytes + RQ_GUARD - 1) / RQ_GUARD * RQ_GUARD; }
static inline void *rq_device_buffer(size_t bytes) {
#ifdef RQ_TEST_SIM
    size_t guard = 0;
#else
    size_t guard = getenv("RQ_EXACT") ? 0 : RQ_GUARD;
#endif
    rq_buffer *b = rq_buffers;
    while (b < rq_buffers + RQ_MAX_BUFFERS && b->start) ++b;
    if (b == rq_buffers + RQ_MAX_BUFFERS) RQ_DIE("more than %d buffers", RQ_MAX_BUFFERS);
    b->bytes = bytes;
    b->guard = guard;
    if (guard == 0) {
        b->start = (uint8_t *)rq_raw_alloc(bytes);
        return b->start;
    }
    /* The bytes past an odd size belong to the guard. */
    size_t body = rq_rounded(bytes);
    uint8_t *all = (uint8_t *)rq_raw_alloc(body + 2 * guard);
    rq_raw_fill(all, RQ_GUARD_BYTE, body + 2 * guard);
    b->start = all + guard;
    rq_raw_fill(b->start, RQ_POISON, bytes);
    return b->start;
}
static inline rq_buffer *rq_find_buffer(const void *device) {
    for (int i = 0; i < RQ_MAX_BUFFERS; ++i)
        if (rq_buffers[i].start == device && device) return &rq_buffers[i];
    RQ_DIE("%p is not the start of a buffer", device);
}
static inline void rq_check_guard(const rq_buffer *b, ptrdiff_t from, size_t bytes) {
    uint8_t seen[2 * RQ_GUARD];
    rq_raw_copy(seen, b->start + from, bytes);
    for (size_t i = 0; i < bytes; ++i)
        if (seen[i] != RQ_GUARD_BYTE) {
            if (rq_failed(false))
                fprintf(stderr, "a buffer of %zu bytes: byte %lld, outside it, was overwritten\n", b->bytes,
                        (long long)from + (long long)i);
            return;
        }
    rq_failed(true);
}
static inline void rq_check_guards(const rq_buffer *b) {
    if (b->guard == 0) return;
    rq_check_guard(b, -(ptrdiff_t)b->guard, b->guard);
    rq_check_guard(b, (ptrdiff_t)b->bytes, rq_rounded(b->bytes) - b->bytes + b->guard);
}
/* A buffer with these bytes: an input. */
static inline void *rq_device_copy(const void *host, size_t bytes) {
    void *p = rq_device_buffer(bytes);
    rq_raw_copy(p, host, bytes);
    return p;
}
/* Reads the whole buffer back: `bytes` must be its size. */
static inline void rq_device_read(void *host, const void *device, size_t bytes) {
    rq_buffer *b = rq_find_buffer(device);
    if (b->bytes != bytes) RQ_DIE("a buffer of %zu bytes read as %zu", b->bytes, bytes);
    rq_raw_copy(host, device, bytes);
    rq_check_guards(b);
}
static inline void rq_device_free(void *device) {
    rq_buffer *b = rq_find_buffer(device);
    rq_check_guards(b);
    rq_raw_free(b->start - b->guard);
    b->start = NULL;
}
/* Frees every buffer that is left. */
static inline void rq_device_free_all(void) {
    for (int i = 0; i < RQ_MAX_BUFFERS; ++i)
        if (rq_buffers[i].start) rq_device_free(rq_buffers[i].start);
}

static inline void *rq_host_alloc(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) RQ_DIE("no memory for %zu bytes", bytes);
    return p;
}

/* The last call of a test: says what was checked; the exit status. A test that checked nothing is wrong. */
static inline int rq_done(const char *file) {
    rq_device_free_all();
    const char *name = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
    printf("%s: %ld checks, %ld failed\n", name, rq_test.checks, rq_test.failures);
    return rq_test.failures != 0 || rq_test.checks == 0;
}
#endif
