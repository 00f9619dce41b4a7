/* SPDX-License-Identifier: Apache-2.0 */
/* rq_hadamard_apply of act_hadamard.c without its last product, for act_quantize_body.h: the same sums, W columns at a time. Butterflies
 * are pairs of one addition and one subtraction whichever way they are grouped: inside of vectors first, then two stages a pass. */

typedef struct core_signs {
    float of[RQ_ACT_MAX_CORE]
            [RQ_ACT_MAX_CORE]; /* +-1: a multiply-add with it rounds as the addition or subtraction does */
} core_signs;

INLINE void fill_signs(core_signs *s, const rq_hadamard *h) {
    for (int r = 0; h && h->core > 1 && r < h->core; ++r) {
        for (int c = 0; c < h->core; ++c) s->of[r][c] = h->row[r] >> c & 1 ? -1.0f : 1.0f;
    }
}

/* The stages 1, 2, ... below W and below width, of all n values. A group of 2 half values never leaves a vector. */
INLINE void stages_in_vectors(float *x, int64_t n, int width) {
    for (int64_t j = 0; j < n; j += W) {
        V v = v_load(x + j, n - j);
        if (width > 1) v = v_butterfly(v, 1);
        if (width > 2) v = v_butterfly(v, 2);
        if (width > 4) v = v_butterfly(v, 4);
        if (W > 8 && width > 8) v = v_butterfly(v, 8);
        v_store(x + j, v, n - j);
    }
}

/* Stage half, a multiple of W, and the next one, where there is one below width. */
INLINE void two_stages(float *x, int64_t n, int half) {
    for (int64_t at = 0; at < n; at += 4 * half) {
        for (float *k = x + at; k < x + at + half; k += W) {
            const V a = v_load(k, W), b = v_load(k + half, W), c = v_load(k + 2 * half, W), d = v_load(k + 3 * half, W);
            const V e = v_add(a, b), f = v_sub(a, b), g = v_add(c, d), h = v_sub(c, d);
            v_store(k, v_add(e, g), W);
            v_store(k + half, v_add(f, h), W);
            v_store(k + 2 * half, v_sub(e, g), W);
            v_store(k + 3 * half, v_sub(f, h), W);
        }
    }
}
INLINE void one_stage(float *x, int64_t n, int half) {
    for (int64_t at = 0; at < n; at += 2 * half) {
        for (float *k = x + at; k < x + at + half; k += W) {
            const V a = v_load(k, W), b = v_load(k + half, W);
            v_store(k, v_add(a, b), W);
            v_store(k + half, v_sub(a, b), W);
        }
    }
}

/* The core, on columns i .. i + 2 W of v[core][width]; four rows at a time (orders above 1 are multiples of 4), so that 8 sums are on
 * their way. n: how many of the columns there are. */
INLINE void core_columns(float *v, int64_t width, int64_t n, int core, const core_signs *s) {
    V in[RQ_ACT_MAX_CORE][2];
    for (int c = 0; c < core; ++c) {
        in[c][0] = v_load(v + c * width, n);
        in[c][1] = n > W ? v_load(v + c * width + W, n - W) : v_set(0.0f);
    }
    for (int r = 0; r < core; r += 4) {
        V sum[4][2];
        UNROLL for (int k = 0; k < 4; ++k) {
            sum[k][0] = v_mul(v_set(s->of[r + k][0]), in[0][0]);
            sum[k][1] = v_mul(v_set(s->of[r + k][0]), in[0][1]);
        }
        for (int c = 1; c < core; ++c) {
            UNROLL for (int k = 0; k < 4; ++k) {
                const V sign = v_set(s->of[r + k][c]);
                sum[k][0] = v_fma(sign, in[c][0], sum[k][0]);
                sum[k][1] = v_fma(sign, in[c][1], sum[k][1]);
            }
        }
        UNROLL for (int k = 0; k < 4; ++k) {
            v_store(v + (r + k) * width, sum[k][0], n);
            if (n > W) v_store(v + (r + k) * width + W, sum[k][1], n - W);
        }
    }
}

INLINE void hadamard_row(float *x, int64_t n, const rq_hadamard *h, const core_signs *s) {
    const int width = h->size / h->core;
    int half = W;
    stages_in_vectors(x, n, width);
    for (; 2 * half < width; half *= 4) two_stages(x, n, half);
    if (half < width) one_stage(x, n, half);
    for (float *v = x; h->core > 1 && v < x + n; v += h->size) {
        for (int i = 0; i < width; i += 2 * W) core_columns(v + i, width, width - i, h->core, s);
    }
}
