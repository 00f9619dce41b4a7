/* SPDX-License-Identifier: Apache-2.0 */
/* What bench_decode needs to know of the models of shapes.h beside their linear layers: heads and vocabulary, from their public configurations. C and C++. */
#ifndef BENCH_DECODE_MODELS_H
#define BENCH_DECODE_MODELS_H

#include "shapes.h"

typedef struct bench_heads {
    const char *name; /* of a preset */
    int64_t n_head, n_kv_head, head_dim, n_vocab;
} bench_heads;

static const bench_heads bench_model_heads[] = {
    {"smollm2-135m", 9, 3, 64, 49152},  {"llama3-8b", 32, 8, 128, 128256},   {"llama3-70b", 64, 8, 128, 128256},
    {"qwen2.5-7b", 28, 4, 128, 152064}, {"qwen2.5-32b", 40, 8, 128, 152064}, {"qwen2.5-72b", 64, 8, 128, 152064},
};
enum { BENCH_N_MODELS = sizeof bench_model_heads / sizeof *bench_model_heads };

typedef struct bench_decoder {
    const char *name;
    int64_t n_layer, d_model, d_ff, n_head, n_kv_head, head_dim, n_vocab;
} bench_decoder;

/* Of a name of n characters; false when there is none. "tiny" is for checks. */
static inline bool bench_find_decoder(bench_decoder *d, const char *name, size_t n) {
    static const bench_decoder tiny = {"tiny", 2, 256, 512, 4, 2, 64, 1000};
    *d = tiny;
    if (bench_same_name(tiny.name, name, n)) return true;
    for (int i = 0; i < BENCH_N_MODELS; ++i) {
        const bench_heads *h = &bench_model_heads[i];
        if (!bench_same_name(h->name, name, n)) continue;
        for (int k = 0; k < BENCH_N_PRESETS; ++k) {
            const bench_preset *p = &bench_presets[k];
            if (strcmp(p->name, h->name) != 0) continue;
            d->name = h->name, d->n_layer = p->n_layer, d->d_model = p->shape[0].n_in, d->d_ff = p->shape[3].n_in;
            d->n_head = h->n_head, d->n_kv_head = h->n_kv_head, d->head_dim = h->head_dim, d->n_vocab = h->n_vocab;
            return true;
        }
    }
    return false;
}

/* The four matrices of a block, stacked where they share an input. */
static inline void bench_block_shapes(bench_shape s[4], const bench_decoder *d) {
    const int64_t nq = d->n_head * d->head_dim, nkv = d->n_kv_head * d->head_dim;
    const bench_shape all[4] = {{"qkv", nq + 2 * nkv, d->d_model, 0},
                                {"o", d->d_model, nq, 0},
                                {"gate_up", 2 * d->d_ff, d->d_model, 0},
                                {"down", d->d_model, d->d_ff, 0}};
    for (int i = 0; i < 4; ++i) s[i] = all[i];
}
#endif
