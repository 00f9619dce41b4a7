/* SPDX-License-Identifier: Apache-2.0 */
/* The linear layers of models that people run, with what shares an input stacked as engines do (q, k and v; gate and up), and
 * --shapes. Sizes from the models' public configurations. C and C++.
 *
 * Diffusion models have tokens that are not for the user to choose: one for each place of the image at the layer's resolution, 77 of the text, one of
 * the time. sd15: the UNet of Stable Diffusion 1.5 at 512 x 512 pixels, 64 x 64 places at the top; its middle has the layers of 1280 columns
 * with 64 tokens. sdxl: that of SDXL at 1024 x 1024, whose 128 x 128 places at the top have no attention. dit-xl: DiT-XL/2 at 512 x 512, patches of 2.
 * Of cross attention, q has the shape of o, and k and v are stacked (kv); ff_in makes both halves of GEGLU. Images of a batch multiply the tokens. */
#ifndef BENCH_SHAPES_H
#define BENCH_SHAPES_H

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { BENCH_PRESET_SHAPES = 20, BENCH_MAX_SHAPES = 64 };

typedef struct bench_shape {
    const char *layer; /* NULL: the list ends before */
    int64_t n_out, n_in;
    int n_tok; /* 0: any */
} bench_shape;

typedef struct bench_preset {
    const char *name;
    int n_layer;                            /* blocks of the model; 0: no model, shapes of interest */
    bench_shape shape[BENCH_PRESET_SHAPES]; /* of one block */
} bench_preset;

static const bench_preset bench_presets[] = {
    {"smollm2-135m", 30, {{"qkv", 960, 576, 0}, {"o", 576, 576, 0}, {"gate_up", 3072, 576, 0}, {"down", 576, 1536, 0}}},
    {"llama3-8b",
     32,
     {{"qkv", 6144, 4096, 0}, {"o", 4096, 4096, 0}, {"gate_up", 28672, 4096, 0}, {"down", 4096, 14336, 0}}},
    {"llama3-70b",
     80,
     {{"qkv", 10240, 8192, 0}, {"o", 8192, 8192, 0}, {"gate_up", 57344, 8192, 0}, {"down", 8192, 28672, 0}}},
    {"qwen2.5-7b",
     28,
     {{"qkv", 4608, 3584, 0}, {"o", 3584, 3584, 0}, {"gate_up", 37888, 3584, 0}, {"down", 3584, 18944, 0}}},
    {"qwen2.5-32b",
     64,
     {{"qkv", 7168, 5120, 0}, {"o", 5120, 5120, 0}, {"gate_up", 55296, 5120, 0}, {"down", 5120, 27648, 0}}},
    {"qwen2.5-72b",
     80,
     {{"qkv", 10240, 8192, 0}, {"o", 8192, 8192, 0}, {"gate_up", 59136, 8192, 0}, {"down", 8192, 29568, 0}}},
    /* What no tile divides: ragged rows, ragged columns, both, a single row, and long rows with few outputs. */
    {"tails",
     0,
     {{"rows", 4099, 4096, 0},
      {"cols", 4096, 4104, 0},
      {"both", 1000, 1000, 0},
      {"one", 1, 4096, 0},
      {"long", 24, 29568, 0}}},
    /* Large enough that launches and edges cost nothing. */
    {"ideal", 0, {{"large", 73728, 18432, 0}}},
    {"sd15",
     0,
     {{"qkv_64x64", 960, 320, 4096},
      {"o_64x64", 320, 320, 4096},
      {"kv_64x64", 640, 768, 77},
      {"ff_in_64x64", 2560, 320, 4096},
      {"ff_out_64x64", 320, 1280, 4096},
      {"qkv_32x32", 1920, 640, 1024},
      {"o_32x32", 640, 640, 1024},
      {"kv_32x32", 1280, 768, 77},
      {"ff_in_32x32", 5120, 640, 1024},
      {"ff_out_32x32", 640, 2560, 1024},
      {"qkv_16x16", 3840, 1280, 256},
      {"o_16x16", 1280, 1280, 256},
      {"kv_16x16", 2560, 768, 77},
      {"ff_in_16x16", 10240, 1280, 256},
      {"ff_out_16x16", 1280, 5120, 256},
      {"time_1", 1280, 320, 1},
      {"time_2", 1280, 1280, 1}}},
    {"sdxl",
     0,
     {{"qkv_64x64", 1920, 640, 4096},
      {"o_64x64", 640, 640, 4096},
      {"kv_64x64", 1280, 2048, 77},
      {"ff_in_64x64", 5120, 640, 4096},
      {"ff_out_64x64", 640, 2560, 4096},
      {"qkv_32x32", 3840, 1280, 1024},
      {"o_32x32", 1280, 1280, 1024},
      {"kv_32x32", 2560, 2048, 77},
      {"ff_in_32x32", 10240, 1280, 1024},
      {"ff_out_32x32", 1280, 5120, 1024},
      {"time_1", 1280, 320, 1},
      {"time_2", 1280, 1280, 1},
      {"add_1", 1280, 2816, 1}}},
    {"dit-xl",
     0,
     {{"qkv", 3456, 1152, 1024},
      {"o", 1152, 1152, 1024},
      {"fc1", 4608, 1152, 1024},
      {"fc2", 1152, 4608, 1024},
      {"adaln", 6912, 1152, 1}}},
};
enum { BENCH_N_PRESETS = sizeof bench_presets / sizeof *bench_presets };

typedef struct bench_shapes {
    int n;
    struct {
        char model[24]; /* "-" for NxK */
        int n_layer;
        bench_shape shape;
    } at[BENCH_MAX_SHAPES];
} bench_shapes;

/* Names are compared without case and '-': Llama-3-8B is llama3-8b. */
static inline bool bench_same_name(const char *a, const char *b, size_t n_b) {
    const char *end = b + n_b;
    for (;; ++a, ++b) {
        while (*a == '-') ++a;
        while (b < end && *b == '-') ++b;
        if (!*a || b == end) return !*a && b == end;
        if (tolower((unsigned char)*a) != tolower((unsigned char)*b)) return false;
    }
}

static inline bool bench_add_shape(bench_shapes *s, const char *model, int n_layer, bench_shape shape) {
    if (s->n == BENCH_MAX_SHAPES) return false;
    snprintf(s->at[s->n].model, sizeof s->at[s->n].model, "%s", model);
    s->at[s->n].n_layer = n_layer;
    s->at[s->n++].shape = shape;
    return true;
}

/* A preset cut over `parts` devices: outputs of qkv and gate_up, inputs of o and down. */
static inline bool bench_add_preset(bench_shapes *s, const bench_preset *p, int parts) {
    char model[24];
    if (parts > 1)
        snprintf(model, sizeof model, "%s/tp%d", p->name, parts);
    else
        snprintf(model, sizeof model, "%s", p->name);
    for (int i = 0; i < BENCH_PRESET_SHAPES && p->shape[i].layer; ++i) {
        bench_shape b = p->shape[i];
        bool by_inputs = !strcmp(b.layer, "o") || !strcmp(b.layer, "down");
        if ((by_inputs ? b.n_in : b.n_out) % parts) return false;
        *(by_inputs ? &b.n_in : &b.n_out) /= parts;
        if (!bench_add_shape(s, model, p->n_layer, b)) return false;
    }
    return true;
}

static inline bool bench_add_one(bench_shapes *s, const char *text, size_t n) {
    const char *cut = (const char *)memchr(text, '/', n);
    size_t n_name = cut ? (size_t)(cut - text) : n;
    int parts = 1, used = 0;
    for (int k = 0; k < BENCH_N_PRESETS; ++k) {
        if (!bench_same_name(bench_presets[k].name, text, n_name)) continue;
        if (cut && (sscanf(cut, "/tp%d%n", &parts, &used) != 1 || used != (int)(n - n_name) || parts < 1 ||
                    !bench_presets[k].n_layer)) {
            return false;
        }
        return bench_add_preset(s, &bench_presets[k], parts);
    }
    long long n_out, n_in;
    if (sscanf(text, "%lldx%lld%n", &n_out, &n_in, &used) != 2 || used != (int)n || n_out < 1 || n_in < 1 ||
        n_out > 1 << 24 || n_in > 1 << 24) {
        return false;
    }
    bench_shape shape = {"-", n_out, n_in, 0};
    return bench_add_shape(s, "-", 0, shape);
}

/* Comma-separated presets, PRESET/tpN and NxK. On a malformed one a sentence to stderr, and false. */
static inline bool bench_add_shapes(bench_shapes *s, const char *text) {
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ",");
        if (!bench_add_one(s, p, n)) {
            fprintf(stderr, "no shape \"%.*s\", or too many (--list shows the presets)\n", (int)n, p);
            return false;
        }
        p += n;
        if (*p == ',') ++p;
    }
    return s->n > 0;
}

static inline void bench_list_shapes(void) {
    printf("shapes (PRESET/tp2: cut over two devices; NxK: outputs x inputs):\n");
    for (int p = 0; p < BENCH_N_PRESETS; ++p) {
        printf("  %-13s", bench_presets[p].name);
        if (bench_presets[p].n_layer) printf(" %d blocks:", bench_presets[p].n_layer);
        for (int s = 0; s < BENCH_PRESET_SHAPES && bench_presets[p].shape[s].layer; ++s) {
            const bench_shape *b = &bench_presets[p].shape[s];
            printf(" %s %lldx%lld", b->layer, (long long)b->n_out, (long long)b->n_in);
            if (b->n_tok) printf(" (%d tokens)", b->n_tok);
        }
        printf("\n");
    }
}

#endif
