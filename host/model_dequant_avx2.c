/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 + F16C twins of the decoders in model_dequant.c: the same multiplications and additions in the same order, so the
 * same bits (a NaN may carry another payload). No FMA: the definition rounds the product. */
#include "model_blocks.h"
#include "model_parse.h"

#if defined(__x86_64__)
#include <immintrin.h>

static void store8(float *dst, __m128i bytes, __m256 d) { /* 8 signed bytes times d */
    _mm256_storeu_ps(dst, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), d));
}

static void store16(float *dst, __m128i bytes, __m256 d) {
    store8(dst, bytes, d);
    store8(dst + 8, _mm_srli_si128(bytes, 8), d);
}

static void store8_plus(float *dst, __m128i bytes, __m256 d, __m256 m) { /* bytes times d, plus m */
    _mm256_storeu_ps(dst, _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), d), m));
}

static void store16_plus(float *dst, __m128i bytes, __m256 d, __m256 m) {
    store8_plus(dst, bytes, d, m);
    store8_plus(dst + 8, _mm_srli_si128(bytes, 8), d, m);
}

static __m128i load16(const void *p) { return _mm_loadu_si128(p); }

static __m128i low_nibbles(__m128i v) { return _mm_and_si128(v, _mm_set1_epi8(15)); }

static __m128i high_nibbles(__m128i v) { return low_nibbles(_mm_srli_epi16(v, 4)); }

static void dequant_f16(const uint8_t *src, int64_t n, float *dst) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(load16(src + i * 2)));
    for (; i < n; ++i) {
        rq_f16 h;
        memcpy(&h, src + i * 2, sizeof h);
        dst[i] = rq_f32_of_f16(h);
    }
}

static void dequant_bf16(const uint8_t *src, int64_t n, float *dst) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(src + i * 2)), 16);
        _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(bits));
    }
    for (; i < n; ++i) {
        rq_bf16 h;
        memcpy(&h, src + i * 2, sizeof h);
        dst[i] = rq_f32_of_bf16(h);
    }
}

static void dequant_q4_0(const uint8_t *src, int64_t n, float *dst) {
    const __m128i eight = _mm_set1_epi8(8);
    for (int64_t i = 0; i < n; ++i, dst += 32, src += sizeof(rq_block_q4_0)) {
        rq_f16 h;
        memcpy(&h, src, sizeof h);
        __m256 d = _mm256_set1_ps(rq_f32_of_f16(h));
        __m128i qs = load16(src + offsetof(rq_block_q4_0, qs));
        store16(dst, _mm_sub_epi8(low_nibbles(qs), eight), d);
        store16(dst + 16, _mm_sub_epi8(high_nibbles(qs), eight), d);
    }
}

static void dequant_q4_1(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i, dst += 32, src += sizeof(rq_block_q4_1)) {
        rq_f16 h[2];
        memcpy(h, src, sizeof h);
        __m256 d = _mm256_set1_ps(rq_f32_of_f16(h[0])), m = _mm256_set1_ps(rq_f32_of_f16(h[1]));
        __m128i qs = load16(src + offsetof(rq_block_q4_1, qs));
        store16_plus(dst, low_nibbles(qs), d, m);
        store16_plus(dst + 16, high_nibbles(qs), d, m);
    }
}

static void dequant_q8_0(const uint8_t *src, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; ++i, dst += 32, src += sizeof(rq_block_q8_0)) {
        rq_f16 h;
        memcpy(&h, src, sizeof h);
        __m256 d = _mm256_set1_ps(rq_f32_of_f16(h));
        const uint8_t *qs = src + offsetof(rq_block_q8_0, qs);
        store16(dst, load16(qs), d);
        store16(dst + 16, load16(qs + 16), d);
    }
}

static void dequant_q4_k(const uint8_t *src, int64_t n, float *dst) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int64_t i = 0; i < n; ++i, src += sizeof(rq_block_q4_k)) {
        rq_f16 h[2];
        memcpy(h, src, sizeof h);
        float d = rq_f32_of_f16(h[0]), dmin = rq_f32_of_f16(h[1]);
        for (int sub = 0; sub < 8; ++sub, dst += 32) {
            const uint8_t *q = src + offsetof(rq_block_q4_k, qs) + 32 * (sub / 2);
            int scale, minimum;
            rq_q4_k_scale(src + offsetof(rq_block_q4_k, scales), sub, &scale, &minimum);
            __m256 ds = _mm256_set1_ps(d * (float)scale);
            __m256 dm = _mm256_xor_ps(_mm256_set1_ps(dmin * (float)minimum), sign); /* x - m is x + (-m), bit for bit */
            __m128i q0 = load16(q), q1 = load16(q + 16);
            store16_plus(dst, sub & 1 ? high_nibbles(q0) : low_nibbles(q0), ds, dm);
            store16_plus(dst + 16, sub & 1 ? high_nibbles(q1) : low_nibbles(q1), ds, dm);
        }
    }
}

static void dequant_q6_k(const uint8_t *src, int64_t n, float *dst) {
    const __m128i three = _mm_set1_epi8(3), bias = _mm_set1_epi8(32);
    for (int64_t i = 0; i < n; ++i, src += sizeof(rq_block_q6_k)) {
        rq_f16 h;
        memcpy(&h, src + offsetof(rq_block_q6_k, d), sizeof h);
        float d = rq_f32_of_f16(h);
        const int8_t *scales = (const int8_t *)src + offsetof(rq_block_q6_k, scales);
        for (int sub = 0; sub < 16; ++sub, dst += 16) { /* values 16 sub ..: half, r, and which 16 of the 32 l */
            int half = sub >> 3, r = sub >> 1 & 3, part = sub & 1;
            __m128i ql = load16(src + offsetof(rq_block_q6_k, ql) + 64 * half + 32 * (r & 1) + 16 * part);
            __m128i qh = load16(src + offsetof(rq_block_q6_k, qh) + 32 * half + 16 * part);
            __m128i low = r >= 2 ? high_nibbles(ql) : low_nibbles(ql);
            __m128i high = _mm_and_si128(_mm_srl_epi16(qh, _mm_cvtsi32_si128(2 * r)), three);
            __m128i q = _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), bias);
            store16(dst, q, _mm256_set1_ps(d * (float)scales[sub]));
        }
    }
}

rq_dequant_fn rq_dequant_avx2(rq_dtype d) {
    switch (d) {
    case RQ_F16: return dequant_f16;
    case RQ_BF16: return dequant_bf16;
    case RQ_Q4_0: return dequant_q4_0;
    case RQ_Q4_1: return dequant_q4_1;
    case RQ_Q8_0: return dequant_q8_0;
    case RQ_Q4_K: return dequant_q4_k;
    case RQ_Q6_K: return dequant_q6_k;
    default: return NULL;
    }
}

#else
rq_dequant_fn rq_dequant_avx2(rq_dtype d) {
    (void)d;
    return NULL;
}
#endif
