/* SPDX-License-Identifier: Apache-2.0 */
/* Counting what backend_cuda*.c does, loop by loop. cuSOLVER's own launches are not known: a call counts as one, with n^3 / 3 operations. */
#include "device_plan.h"
#include "comp_book.h"

static void product(rq_work *w, int64_t m, int64_t n, int64_t k, bool adds) {
    w->flops += 2.0 * (double)m * (double)n * (double)k;
    w->bytes += 4.0 * ((double)m * (double)k + (double)k * (double)n + (adds ? 2 : 1) * (double)m * (double)n);
    ++w->launches;
}

static void kernel(rq_work *w, double bytes) {
    w->bytes += bytes;
    ++w->launches;
}

/* One panel after another of t tokens: the lower triangle of H, all of D. element: bytes of a number that is multiplied. */
static void plan_panels(rq_work *w, int64_t n, int64_t t, bool cross, int64_t panel, double element) {
    for (int64_t r0 = 0; r0 < n; r0 += panel) {
        const int64_t rows = rq_min_i64(panel, n - r0), cols = r0 + rows;
        product(w, rows, cols, t, false);
        kernel(w, 20.0 * (double)rows * ((double)r0 + ((double)rows + 1) / 2));
        w->bytes -= (4 - element) * (double)(t * (rows + cols));
        if (!cross) continue;
        product(w, rows, n, t, false);
        kernel(w, 20.0 * (double)rows * (double)n);
        w->bytes -= (4 - element) * (double)(t * (rows + n));
    }
}

static void plan_gram(rq_work *w, int64_t n, int64_t tokens, bool cross) {
    for (int64_t t0 = 0; t0 < tokens; t0 += RQ_CUDA_GRAM_CHUNK) {
        const int64_t t = rq_min_i64(RQ_CUDA_GRAM_CHUNK, tokens - t0);
        w->upload += 4.0 * (double)(t * n) * (cross ? 2 : 1);
        plan_panels(w, n, t, cross, RQ_CUDA_PANEL, 4);
    }
    kernel(w, 8.0 * (double)n * (double)n); /* the other triangle */
    w->download += 8.0 * (double)(n * n) * (cross ? 2 : 1);
}

void rq_device_plan_gram_bf16(rq_work *w, int64_t n, int64_t tokens, bool cross) {
    *w = (rq_work){0};
    for (int64_t t0 = 0; t0 < tokens; t0 += RQ_CUDA_GRAM_CHUNK) {
        const double rounded = 6.0 * (double)rq_min_i64(RQ_CUDA_GRAM_CHUNK, tokens - t0) * (double)n;
        for (int i = 0; i < (cross ? 2 : 1); ++i) kernel(w, rounded);
    }
    for (int64_t t0 = 0; t0 < tokens; t0 += RQ_CUDA_GRAM_TOKENS)
        plan_panels(w, n, rq_min_i64(RQ_CUDA_GRAM_TOKENS, tokens - t0), cross, RQ_CUDA_PANEL_BF16, 2);
}

/* A pass that multiplies by the matrix, chunks of 2,048 tokens where the one before left them. */
static void plan_forward(rq_work *w, int64_t n_out, int64_t n, int64_t tokens, int streams) {
    w->upload += 4.0 * (double)n_out * (double)n * streams;
    for (int64_t t0 = 0; t0 < tokens; t0 += RQ_CUDA_GRAM_CHUNK) {
        for (int s = 0; s < streams; ++s) product(w, rq_min_i64(RQ_CUDA_GRAM_CHUNK, tokens - t0), n_out, n, false);
    }
}

static void plan_factor(rq_work *w, int64_t n) {
    double nn = (double)n * (double)n;
    w->upload += 8 * nn + 4;
    kernel(w, 16 * nn); /* reversal */
    for (int i = 0; i < 2; ++i) {
        w->flops += nn * (double)n / 3;
        kernel(w, 8 * nn);
    }
    kernel(w, 8 * nn); /* half of it is read */
    w->download += 4 * nn + 2 * 4 + 4;
}

static void plan_terms(rq_work *w, int64_t n, bool needs_t, bool needs_m) {
    double nn = (double)n * (double)n;
    for (int term = 0; term < 2; ++term) {
        bool upper = term == 0;
        if (!(upper ? needs_t : needs_m)) continue;
        w->upload += 4 * nn + 4.0 * (double)n;
        w->download += 4 * nn;
        for (int64_t c0 = 0; c0 < n; c0 += RQ_CUDA_TILE) {
            int64_t c1 = rq_min_i64(n, c0 + RQ_CUDA_TILE), end = upper ? c1 : n;
            product(w, end, c1 - c0, n - c0, false);
            for (int64_t r0 = 0; r0 < end; r0 += RQ_CUDA_TILE)
                product(w, rq_min_i64(end, r0 + RQ_CUDA_TILE) - r0, c1 - c0, c1 - (upper ? r0 : 0), false);
        }
        kernel(w, upper ? 2 * nn : 8 * nn);
    }
}

/* Targets that M moves: upload, product, download. */
static void plan_move(rq_work *w, int64_t n_out, int64_t n) {
    double weights = 4.0 * (double)n_out * (double)n;
    w->upload += weights;
    product(w, n_out, n, n, true);
    w->download += weights;
}

/* The grids of whole rows: the search by squares, or one range. */
static void plan_find_rows(rq_work *w, int64_t n_out, int64_t n, int64_t n_group, const rq_quant_opt *o, bool search) {
    double weights = (double)n_out * (double)n;
    bool steps = rq_round_get(o->round)->find_row != NULL;
    int64_t n_factor = search ? rq_min_i64(o->clip_steps, 16) : 1;
    if (!steps || !o->group) {
        kernel(w, 4 * weights);
        w->upload += steps ? 4 * (double)(n_out * n_group) : 0;
        return;
    }
    w->upload += 8.0 * (double)n_factor;
    kernel(w, 4 * weights);                    /* largest weights */
    kernel(w, 4 * weights * (double)n_factor); /* all scales, the best, and what is found with it */
    kernel(w, 8.0 * (double)(n_out * n_group * n_factor));
    kernel(w, 4 * weights);
}

/* --clip output */
static void plan_clip(rq_work *w, int64_t n_out, int64_t n, int64_t n_group, const rq_quant_opt *o) {
    double weights = (double)n_out * (double)n, scales = (double)(n_out * n_group);
    w->upload += 4 * weights + 5.0 * (double)n + 12.0 * o->clip_steps + 4.0 * (double)n * (double)n;
    kernel(w, 4 * weights);
    for (int k = -1; k < o->clip_steps; ++k) {
        if (k < 0)
            plan_find_rows(w, n_out, n, n_group, o, true);
        else
            kernel(w, 4 * weights);
        kernel(w, 8 * weights);
        product(w, n_out, n, n, false);
        kernel(w, 8 * weights);
        kernel(w, 16 * scales);
    }
    w->download += (rq_round_get(o->round)->find_row ? 12 : 8) * scales;
}

static void plan_sweep(rq_work *w, int64_t n_out, int64_t n, const rq_quant_opt *o, bool moves, bool has_t) {
    double weights = (double)n_out * (double)n;
    int64_t group = o->group ? o->group : n, n_group = rq_ceil_div(n, group), block = rq_min_i64(o->block, n);
    bool dynamic = rq_groups_in_sweep_order(o, n), steps = rq_round_get(o->round)->find_row != NULL,
         found = o->clip == RQ_CLIP_OUTPUT; /* grids were found before */
    double scales = (double)(n_out * n_group), of_scale = steps ? 12 : 8;
    if (found) plan_clip(w, n_out, n, n_group, o);
    w->upload += 4 * weights + 13.0 * (double)n + 4.0 * o->clip_steps + (found ? of_scale : 0) * scales;
    kernel(w, 8 * weights); /* to sweep order */
    if (!found && !dynamic) plan_find_rows(w, n_out, n, n_group, o, o->clip == RQ_CLIP_MSE);
    for (int64_t c0 = 0, c1; c0 < n; c0 = c1) {
        c1 = rq_min_i64(n, c0 + block);
        if (dynamic) c1 = rq_min_i64(c1, (c0 / group + 1) * group);
        int64_t width = c1 - c0;
        if (dynamic && c0 % group == 0) kernel(w, 4.0 * (double)(n_out * rq_min_i64(group, n - c0)));
        if (moves) w->own_flops += (double)(n_out * width) * (double)(width - 1) * (has_t ? 2 : 1);
        kernel(w, (double)(n_out * width) * (5 + (moves ? 4 : 0) + (has_t ? 4 : 0) + (o->alpha2 != 0 ? 4 : 0)));
        if (!moves || c1 == n) continue;
        product(w, n_out, n - c1, width, true);
        if (has_t) product(w, n_out, n - c1, width, true);
    }
    w->download += weights + of_scale * scales;
}

/* The normal equations of the scales' refit, ns a row. */
static void plan_normal(rq_work *w, int64_t n_out, int64_t n, int64_t span) {
    int64_t ns = rq_ceil_div(n, span), system = 8 * ns * ns;
    int64_t tile = rq_min_i64(n_out, rq_max_i64(1, RQ_CUDA_SYSTEM_BYTES / system));
    double weights = (double)n_out * (double)n;
    kernel(w, 5 * weights);
    kernel(w, 8 * weights);
    for (int64_t row0 = 0; row0 < n_out; row0 += tile) {
        int64_t rows = rq_min_i64(tile, n_out - row0);
        for (int64_t c0 = 0; c0 < n; c0 += span) {
            product(w, rows, n, rq_min_i64(span, n - c0), false);
            kernel(w, 8.0 * (double)(rows * n));
            w->own_flops += 2.0 * (double)(rows * n);
        }
    }
    w->own_flops += 2 * weights;
    w->download += 8.0 * (double)(n_out * ns) + (double)(n_out * system);
}

/* Steps and bases of two levels, group by group. */
static void plan_refit_levels(rq_work *w, int64_t n_out, int64_t n, int64_t group) {
    double weights = (double)n_out * (double)n;
    kernel(w, 12 * weights);
    product(w, n_out, n, n, false);
    kernel(w, 5 * weights);
    for (int64_t c0 = 0; c0 < n; c0 += group) {
        int64_t len = rq_min_i64(group, n - c0);
        product(w, n_out, len, len, false);
        kernel(w, 24.0 * (double)(n_out * len));
        product(w, n_out, n, len, true);
    }
}

static void plan_refine(rq_work *w, int64_t n_out, int64_t n, const rq_quant_opt *o) {
    double weights = (double)n_out * (double)n;
    int64_t group = o->group ? o->group : n, ng = rq_ceil_div(n, group);
    bool steps = rq_round_get(o->round)->find_row != NULL, levels = steps && o->group;
    double scales = (double)(n_out * ng);
    w->upload += 5 * weights + 4.0 * (double)n * (double)n + (steps ? 12 : 8) * scales;
    if (o->refit && levels) w->upload += 8.0 * (double)ng;
    if (o->refit) product(w, n_out, n, n, false);
    for (int round = 0; round <= o->refit; ++round) {
        kernel(w, 5 * weights);
        for (int i = 0; i < o->cd_sweeps; ++i) {
            kernel(w, 12 * weights);
            product(w, n_out, n, n, false);
            for (int64_t c0 = 0; c0 < n; c0 += RQ_CUDA_BLOCK) {
                int64_t width = rq_min_i64(RQ_CUDA_BLOCK, n - c0);
                w->own_flops += 2.0 * (double)(n_out * width) * (double)width;
                kernel(w, 17.0 * (double)(n_out * width));
                product(w, n_out, n, width, true);
            }
        }
        if (round == 0) continue;
        plan_normal(w, n_out, n, steps ? n : group);
        w->upload += 4 * scales;
        if (levels) plan_refit_levels(w, n_out, n, group);
    }
    w->download += weights + (levels && o->refit ? 8 * scales : 0);
}

/* ---- codebooks. What depends on the data is taken at its most: all iterations of k-means and steps of conjugate gradients;
 * of searches one a vector, and no outlier columns. ---- */

typedef struct book_plan {
    double n_out, n, n_vec, cells, weights, codes,
        scales; /* as numbers of things; cells: of a metric for each vector */
    int64_t rows, cols, d, n_book, vec_per_book, n_line, n_block, per_block, n_group, group, k[2];
    int n_stage;
    bool out, moves, has_t; /* out: vectors down the outputs */
} book_plan;

static book_plan book_plan_of(int64_t n_out, int64_t n, const rq_quant_opt *o, bool moves, bool has_t) {
    book_plan b = {.rows = n_out,
                   .cols = n,
                   .d = o->vec_len,
                   .k = {o->codes, o->codes2},
                   .out = o->vec_out,
                   .moves = moves,
                   .has_t = has_t};
    int64_t width = b.out ? 1 : b.d, n_vec = rq_ceil_div(n, width);
    b.n_line = b.out ? rq_ceil_div(n_out, b.d) : n_out;
    b.vec_per_book = o->book_cols > 0 ? o->book_cols / width : n_vec;
    b.n_stage = o->codes2 > 0 ? 2 : 1;
    b.n_book = rq_ceil_div(n_vec, b.vec_per_book);
    b.per_block = RQ_CUDA_BLOCK / width * width;
    b.n_block = rq_ceil_div(n, b.per_block);
    b.group = o->group ? rq_min_i64(o->group, n) : n;
    b.n_group = rq_ceil_div(n, b.group);
    b.n_out = (double)n_out;
    b.n = (double)n;
    b.n_vec = (double)n_vec;
    b.cells = b.out ? 0 : b.n_vec * (double)(b.d * b.d);
    b.weights = b.n_out * b.n;
    b.codes = (double)b.n_line * b.n_vec;
    b.scales = b.out ? 2 * b.n : (double)(n_out * b.n_group); /* and biases */
    return b;
}

static double entries(const book_plan *b) {
    return (double)(b->n_book * b->d) * (double)(b->k[0] + (b->n_stage > 1 ? b->k[1] : 0));
}

/* Lines that one thread block has of vectors down the outputs: rq_cuda_tile_lines. */
static int64_t tile_lines(const book_plan *b) { return b->d <= 4 ? 8 : b->d <= 8 ? 4 : 2; }

static double search_flops(const book_plan *b, int stages) {
    double d = (double)b->d, k = (double)b->k[0] + (stages > 1 ? (double)b->k[1] : 0);
    double square = b->out ? 2 * d / (double)tile_lines(b) : d * (d + 1);
    return b->codes * k * (square + 2 * d);
}

static void send_books(rq_work *w, const book_plan *b, int stages) {
    for (int i = 0; i < stages; ++i)
        w->upload += 4.0 * (double)(b->n_book * b->d) * (double)(rq_ceil_div(b->k[i], RQ_SEARCH_PAD) * RQ_SEARCH_PAD);
    w->upload += 4 * b->scales;
}

static void plan_kmeans(rq_work *w, const book_plan *b, const rq_quant_opt *o, int first, int last) {
    for (int64_t which = 0; which < b->n_book; ++which) {
        int64_t m = b->n_line * rq_min_i64(b->vec_per_book, (int64_t)b->n_vec - which * b->vec_per_book);
        if (o->kmeans_points > 0) m = rq_min_i64(m, o->kmeans_points);
        double points = (double)m, d = (double)b->d, lanes = (double)(rq_ceil_div(m, 32) * 32);
        for (int stage = first; stage < last; ++stage) {
            double k = (double)b->k[stage], table = (double)(rq_ceil_div(b->k[stage], 16) * 16) * (2 * d + 1);
            w->upload += 8 * points * d + 8 * lanes * d;
            for (int pass = 0; pass <= o->kmeans_iters; ++pass) {
                w->upload += 4 * table;
                w->own_flops += 4 * d * points * k;
                kernel(w, 8 * lanes * d + 2 * lanes);
                w->download += 2 * lanes;
                if (pass == o->kmeans_iters) continue; /* which codes are whose in the end */
                kernel(w, points * (8 * d + 2));
                kernel(w, 16 * k * d);
                w->download += 16 * k * d;
            }
        }
    }
}

static void plan_book_sweep(rq_work *w, const book_plan *b, const rq_quant_opt *o, int stages, bool keeps) {
    send_books(w, b, stages);
    w->upload += 4 * b->cells + 4 * b->weights;
    kernel(w, 8 * b->weights);
    w->own_flops += search_flops(b, stages);
    for (int64_t c0 = 0, c1; c0 < b->cols; c0 = c1) {
        c1 = rq_min_i64(b->cols, c0 + b->per_block);
        double width = (double)(c1 - c0);
        if (b->moves) w->own_flops += b->n_out * width * (width - 1) * (b->has_t ? 2 : 1);
        kernel(w, b->n_out * width * (4 + (b->moves ? 4 : 0) + (b->has_t ? 4 : 0) + (o->alpha2 != 0 ? 4 : 0)));
        if (!b->moves || c1 == b->cols) continue;
        product(w, b->rows, b->cols - c1, c1 - c0, true);
        if (b->has_t) product(w, b->rows, b->cols - c1, c1 - c0, true);
    }
    w->download += 6 * b->codes + (keeps ? 4 * b->weights : 0);
}

/* Everything as the host has it, its values, and their gradient. */
static void book_gradient(rq_work *w, const book_plan *b, bool sends) {
    if (sends) {
        send_books(w, b, b->n_stage);
        w->upload += 6 * b->codes;
    }
    kernel(w, 4 * b->weights + 6 * b->codes);
    kernel(w, 12 * b->weights);
    product(w, b->rows, b->cols, b->cols, false);
}

static void row_losses(rq_work *w, const book_plan *b) {
    kernel(w, 8 * b->weights);
    w->download += 8 * b->n_out;
}

static void plan_choose(rq_work *w, const book_plan *b) {
    book_gradient(w, b, true);
    row_losses(w, b);
    w->upload += 4 * b->cells;
    kernel(w, 8 * b->weights);
    w->own_flops += search_flops(b, b->n_stage);
    for (int64_t i = 0; i < b->n_block; ++i) kernel(w, 8 * b->weights / (double)b->n_block);
    kernel(w, 12 * b->weights);
    product(w, b->rows, b->cols, b->cols, false);
    row_losses(w, b);
    w->download += 6 * b->codes;
}

static void plan_descent(rq_work *w, const book_plan *b, int sweeps) {
    w->upload += 20 * b->n_vec + 8 * b->cells;
    for (int i = 0; i < sweeps; ++i) {
        book_gradient(w, b, i == 0);
        w->own_flops += search_flops(b, b->n_stage);
        for (int64_t c0 = 0, c1; c0 < b->cols; c0 = c1) {
            c1 = rq_min_i64(b->cols, c0 + b->per_block);
            double width = (double)(c1 - c0);
            w->own_flops += 2 * b->n_out * width * width;
            kernel(w, 12 * b->n_out * width);
            if (c1 < b->cols) product(w, b->rows, b->cols - c1, c1 - c0, true);
        }
    }
    w->download += 6 * b->codes;
}

static void book_sums(rq_work *w, const book_plan *b) {
    kernel(w, 4 * b->weights + 6 * b->codes);
    kernel(w, 8 * entries(b));
    w->own_flops += 2 * b->weights * b->n_stage;
    w->download += 8 * entries(b);
}

/* Scales of rows. */
static void plan_scales(rq_work *w, const book_plan *b) {
    book_gradient(w, b, true);
    kernel(w, 4 * b->weights + 6 * b->codes);
    for (int64_t c0 = 0; c0 < b->cols; c0 += b->group) {
        product(w, b->rows, b->cols, rq_min_i64(b->group, b->cols - c0), false);
        kernel(w, 8 * b->weights + 12 * b->n_out * (double)b->group);
    }
    w->download += 4 * b->scales;
}

/* Scales and biases of columns; that they change is taken for granted. */
static void plan_columns(rq_work *w, const book_plan *b) {
    for (int i = 0; i < 2; ++i) {
        book_gradient(w, b, true);
        row_losses(w, b);
    }
    kernel(w, 4 * b->weights + 6 * b->codes);
    kernel(w, 8 * b->weights);
    product(w, b->cols, b->cols, b->rows, false);
    w->download += 24 * b->n + 4 * b->n * b->n;
}

static void plan_book_refit(rq_work *w, const book_plan *b) {
    enum { STEPS = 8 }; /* N_STEPS of comp_refit_book.c */
    book_gradient(w, b, true);
    row_losses(w, b);
    book_sums(w, b);
    book_sums(w, b); /* the diagonal */
    for (int i = 0; i < STEPS; ++i) {
        w->upload += 8 * entries(b);
        kernel(w, 4 * b->weights + 6 * b->codes);
        product(w, b->rows, b->cols, b->cols, false);
        book_sums(w, b);
    }
    book_gradient(w, b, true); /* J of what is stored */
    row_losses(w, b);
    if (b->out)
        plan_columns(w, b);
    else
        plan_scales(w, b);
}

/* Those thread blocks: a short line has one of its own. */
static int64_t n_tiles(const book_plan *b) {
    int64_t full = b->rows / b->d;
    return rq_ceil_div(full, tile_lines(b)) + (b->n_line > full);
}

static rq_status plan_books(rq_device_work *w, const book_plan *b, const rq_quant_opt *o, bool refine) {
    bool passes = b->n_stage == 2 && o->stage_fit == RQ_STAGE_SWEEP;
    if (o->sign_steps > 0) return rq_fail(RQ_ERR_UNSUPPORTED, "--sign-steps has no place on a GPU");
    w->sweep.upload += 20 * b->n_vec + 5 * b->n + 4 * b->n_out; /* spans and order */
    if (b->out) w->sweep.upload += 4 * (double)(b->n_line + 1 + b->rows + b->cols) + 24 * (double)n_tiles(b);
    plan_kmeans(&w->sweep, b, o, 0, passes ? 1 : b->n_stage);
    if (passes) {
        plan_book_sweep(&w->sweep, b, o, 1, true);
        plan_kmeans(&w->sweep, b, o, 1, 2);
    }
    plan_book_sweep(&w->sweep, b, o, b->n_stage, false);
    if (!refine) return RQ_OK;
    w->refine.upload += 4 * b->n + 4 * b->weights + 4 * b->n * b->n; /* outlier columns, goal, H */
    plan_choose(&w->refine, b);
    for (int round = 0; round <= o->refit; ++round) {
        if (round > 0) plan_book_refit(&w->refine, b);
        if (o->cd_sweeps > 0) plan_descent(&w->refine, b, o->cd_sweeps);
    }
    if (o->refit > 0) plan_choose(&w->refine, b);
    return RQ_OK;
}

rq_status rq_device_plan(rq_device_work *w, int64_t n_out, int64_t n_in, int64_t tokens, const rq_quant_opt *o) {
    const rq_comp_row *row = rq_comp_get(o->comp);
    rq_status status = rq_quant_check(o, n_in);
    if (status != RQ_OK) return status;
    *w = (rq_device_work){0};
    bool book = rq_round_is_book(o->round), moves = row->propagates, cross = rq_quant_wants_cross(o),
         refine = moves && (book || o->cd_sweeps > 0 || o->refit > 0);
    bool needs_t = moves && (o->alpha != 0 || o->alpha2 != 0),
         needs_m = moves && (o->rho != 0 || (refine && o->alpha != 0));
    double nn = (double)n_in * (double)n_in, weights = (double)n_out * (double)n_in;
    if (rq_quant_wants_h(o)) plan_forward(&w->forward, n_out, n_in, tokens, cross ? 2 : 1);
    if (rq_quant_wants_h(o)) plan_gram(&w->gram, n_in, tokens, cross);
    if (moves) plan_factor(&w->factor, n_in);
    plan_terms(&w->terms, n_in, needs_t, needs_m);
    if (moves && o->rho != 0) plan_move(&w->sweep, n_out, n_in);
    if (refine && needs_m && o->alpha != 0) plan_move(&w->refine, n_out, n_in);
    if (book) {
        const book_plan b = book_plan_of(n_out, n_in, o, moves, needs_t);
        status = plan_books(w, &b, o, refine);
        if (status != RQ_OK) return status;
    } else {
        plan_sweep(&w->sweep, n_out, n_in, o, moves, needs_t);
        if (refine) plan_refine(&w->refine, n_out, n_in, o);
    }
    double chunk = (double)rq_min_i64(n_in, RQ_CUDA_PANEL) * (double)n_in * 4 +
                   (cross ? 4 : 2) * RQ_CUDA_GRAM_CHUNK * (double)n_in * 4;
    double in_gram = (cross ? 16 : 8) * nn + chunk, kept = moves ? 4 * nn : 0;
    double in_factor = kept + 8 * nn, in_terms = kept + (needs_t ? 4 * nn : 0) + (needs_m ? 4 * nn : 0) + 8 * nn;
    double in_sweep = kept + (needs_t ? 4 * nn : 0) + (needs_m ? 4 * nn : 0) + weights * (o->alpha2 != 0 ? 13 : 9);
    double in_refine = refine ? in_sweep - weights * (o->alpha2 != 0 ? 13 : 9) + 4 * nn +
                                    weights * (book       ? 17
                                               : o->refit ? 25
                                                          : 17) +
                                    (book && o->vec_out && o->refit ? 4 * nn : 0)
                              : 0;
    double most[] = {in_gram, in_refine, in_factor, needs_t || needs_m ? in_terms : 0, in_sweep};
    for (size_t i = 0; i < sizeof most / sizeof *most; ++i) w->memory = most[i] > w->memory ? most[i] : w->memory;
    return RQ_OK;
}

void rq_device_plan_forward(double *chunk, double *pass, const rq_forward_shape *s) {
    const double d = (double)s->d, ff = (double)s->ff, qd = (double)s->qd, kd = (double)s->kd, t = (double)s->chunk,
                 w = ff > d ? (ff > qd ? ff : qd) : (d > qd ? d : qd),
                 rows = s->bf16 ? RQ_CUDA_PANEL_BF16 : RQ_CUDA_PANEL, panel = w < rows ? w : rows;
    const double qkv = d * (qd + 2 * kd), mlp = 2 * d * ff,
                 matrices = (qkv > mlp ? qkv : mlp) * s->n_streams + (qd > ff ? qd : ff) * d; /* one more: measuring */
    *chunk = 4 * t *
                 (3 * (double)s->n_head + d + 3 * w + qd + 2 * kd + 2 * ff +
                  (s->n_streams * (s->ranks ? 2 : 1) + 2 * RQ_CUDA_SLOTS + (s->bf16 ? 0.5 : 0)) * w) +
             (s->bf16 ? 4.0 * RQ_CUDA_PIECE : 0);
    *pass = (s->bf16 ? 2 : 4) * matrices + 4 * panel * w + 8 * w * w * (s->cross ? 2 : 1) +
            (s->bf16 ? 2.0 * RQ_CUDA_GRAM_TOKENS * w * (s->cross ? 2 : 1) : 0);
}
