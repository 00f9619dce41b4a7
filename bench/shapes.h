/* SPDX-License-Identifier: Apache-2.0 */
/* The linear layers of models that people run, with what shares an input stacked as engines do (q, k and v; gate and up).
 * Sizes from the models' public configurations. */
#ifndef BENCH_SHAPES_H
#define BENCH_SHAPES_H

#include <stdint.h>

typedef struct bench_shape {
    const char *layer;
    int64_t n_out, n_in;
} bench_shape;

typedef struct bench_preset {
    const char *name;
    int n_layer;
    bench_shape shape[4]; /* one block of the model */
} bench_preset;

static const bench_preset bench_presets[] = {
    {"smollm2-135m", 30, {{"qkv", 960, 576}, {"o", 576, 576}, {"gate_up", 3072, 576}, {"down", 576, 1536}}},
    {"llama3-8b", 32, {{"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}}},
    {"llama3-70b", 80, {{"qkv", 10240, 8192}, {"o", 8192, 8192}, {"gate_up", 57344, 8192}, {"down", 8192, 28672}}},
    {"qwen2.5-7b", 28, {{"qkv", 4608, 3584}, {"o", 3584, 3584}, {"gate_up", 37888, 3584}, {"down", 3584, 18944}}},
    {"qwen2.5-32b", 64, {{"qkv", 7168, 5120}, {"o", 5120, 5120}, {"gate_up", 55296, 5120}, {"down", 5120, 27648}}},
    {"qwen2.5-72b", 80, {{"qkv", 10240, 8192}, {"o", 8192, 8192}, {"gate_up", 59136, 8192}, {"down", 8192, 29568}}},
};
enum { BENCH_N_PRESETS = sizeof bench_presets / sizeof *bench_presets };

#endif
