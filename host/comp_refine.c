/* SPDX-License-Identifier: Apache-2.0 */
/* Refinement of grid codes after the sweep: coordinate descent over codes (QuantEase, arXiv:2309.01885), least-squares refit of
 * the scales, and in two levels of format w4a8 a search of steps and bases, all on tr((Q - W*) H (Q - W*)^T) with H damped. Rows are
 * independent; a task is a tile of rows.
 *
 * With G = (Q - W*) H, the best value of column j given all others is q_j - G_j / H_jj; on a grid the nearest code to it is the
 * exact minimum along that coordinate, so no step raises the loss. G is kept up to date inside a block of columns and by one
 * product per block outside, and computed afresh for each sweep. */
#include <math.h>

#include "backend.h"
#include "comp_sweep.h"
#include "simd.h"

enum { LANES = 32, TILE = 96, BLOCK = 128 };

typedef struct refine_shared {
    uint8_t *codes;
    float *scale;
    float *zero, *step; /* step: NULL but for rounders with find_row() */
    const float *target, *hd;
    int64_t n_out, n, group, n_group;
    int64_t span; /* columns that share a scale: a group, or with steps the row */
    const rq_quant_opt *opt;
    _Atomic int failed;
} refine_shared;

typedef struct refine_scratch {
    float *q, *g, *e;                /* [TILE][n] */
    float *hu;                       /* [TILE][group], with steps */
    float *delta;                    /* [TILE][BLOCK] */
    float *gt, *qt;                  /* [BLOCK][LANES] transposed block */
    double *normal, *rhs, *solution; /* [n_group][n_group], [n_group] */
} refine_scratch;

/* The grid of a column in LANES rows: scale * ((code - zero) * step - shift). The grid has step 1 and shift 0, which change no bit. */
typedef struct lane_grid {
    float scale[LANES], zero[LANES], step[LANES], inv_step[LANES], shift[LANES];
} lane_grid;

/* One column for LANES rows: new codes, their change, and the change's effect on G in the rest of the block. */
RQ_CLONES static void descend_column(float *restrict gt, float *restrict qt, float *restrict delta,
                                     float *restrict code, int64_t width, int64_t c, const float *restrict h_row,
                                     const lane_grid *restrict l, float top) {
    float inv_h = 1.0f / h_row[c];
    float *g = gt + c * LANES, *q = qt + c * LANES;
    for (int r = 0; r < LANES; ++r) {
        float best = rintf(((q[r] - g[r] * inv_h) / l->scale[r] + l->shift[r]) * l->inv_step[r]) + l->zero[r];
        best = best < 0.0f ? 0.0f : best;
        best = best > top ? top : best;
        float now = l->scale[r] * ((best - l->zero[r]) * l->step[r] - l->shift[r]);
        code[r] = best;
        delta[r] = now - q[r];
        q[r] = now;
    }
    for (int64_t k = 0; k < width; ++k) {
        float h = h_row[k];
        float *restrict dst = gt + k * LANES;
        for (int r = 0; r < LANES; ++r) dst[r] += delta[r] * h;
    }
}

/* What code (row, j) stands for, before the scale. */
static float level(const refine_shared *s, int64_t row, int64_t j) {
    int64_t k = row * s->n_group + j / s->group;
    float code = (float)s->codes[row * s->n + j];
    return s->step ? code * s->step[k] - s->zero[k] : code - s->zero[k];
}

static void dequantize(const refine_shared *s, refine_scratch *b, int64_t row0, int64_t n_rows) {
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t j = 0; j < s->n; ++j) {
            int64_t k = (row0 + r) * s->n_group + j / s->group;
            b->q[r * s->n + j] = s->scale[k] * level(s, row0 + r, j);
        }
    }
}

static void residual_gradient(const refine_shared *s, refine_scratch *b, int64_t row0, int64_t n_rows) {
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t j = 0; j < s->n; ++j) b->e[r * s->n + j] = b->q[r * s->n + j] - s->target[(row0 + r) * s->n + j];
    }
    rq_sgemm_tile(RQ_N, RQ_N, n_rows, s->n, s->n, 1, b->e, s->n, s->hd, s->n, 0, b->g, s->n);
}

static void descend_block(const refine_shared *s, refine_scratch *b, int64_t row0, int64_t tile_row, int64_t lanes,
                          int64_t c0, int64_t width) {
    float delta[LANES], code[LANES];
    lane_grid l;
    for (int64_t c = 0; c < width; ++c) {
        for (int64_t r = 0; r < LANES; ++r) {
            bool used = r < lanes;
            b->gt[c * LANES + r] = used ? b->g[(tile_row + r) * s->n + c0 + c] : 0;
            b->qt[c * LANES + r] = used ? b->q[(tile_row + r) * s->n + c0 + c] : 0;
        }
    }
    float top = (float)((1 << s->opt->bits) - 1);
    for (int64_t c = 0; c < width; ++c) {
        for (int64_t r = 0; r < LANES; ++r) {
            int64_t k = (row0 + (r < lanes ? r : 0)) * s->n_group + (c0 + c) / s->group;
            l.scale[r] = s->scale[k];
            l.zero[r] = s->step ? 0 : s->zero[k];
            l.shift[r] = s->step ? s->zero[k] : 0;
            l.step[r] = s->step ? s->step[k] : 1;
            l.inv_step[r] = 1.0f / l.step[r];
        }
        descend_column(b->gt, b->qt, delta, code, width, c, s->hd + (c0 + c) * s->n + c0, &l, top);
        for (int64_t r = 0; r < lanes; ++r) {
            b->delta[(tile_row + r) * width + c] = delta[r];
            if (delta[r] != 0) {
                float now = b->qt[c * LANES + r];
                b->q[(tile_row + r) * s->n + c0 + c] = now;
                s->codes[(row0 + r) * s->n + c0 + c] = (uint8_t)(int)code[r];
            }
        }
    }
}

static void sweep_codes(const refine_shared *s, refine_scratch *b, int64_t row0, int64_t n_rows) {
    residual_gradient(s, b, row0, n_rows);
    for (int64_t c0 = 0; c0 < s->n; c0 += BLOCK) {
        int64_t width = rq_min_i64(BLOCK, s->n - c0);
        for (int64_t r = 0; r < n_rows; r += LANES)
            descend_block(s, b, row0 + r, r, rq_min_i64(LANES, n_rows - r), c0, width);
        rq_sgemm_tile(RQ_N, RQ_N, n_rows, s->n, width, 1, b->delta, width, s->hd + c0 * s->n, s->n, 1, b->g, s->n);
    }
}

/* Solve the symmetric system a s = rhs in place by Cholesky; false when it is singular. */
static bool solve_spd(double *a, double *rhs, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t k = 0; k < j; ++k) {
            double sum = a[j * n + k];
            for (int64_t i = 0; i < k; ++i) sum -= a[j * n + i] * a[k * n + i];
            a[j * n + k] = sum / a[k * n + k];
        }
        double d = a[j * n + j], before = d;
        for (int64_t i = 0; i < j; ++i) d -= a[j * n + i] * a[j * n + i];
        if (!(d > 1e-9 * before) || !(before > 0)) return false;
        a[j * n + j] = sqrt(d);
    }
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t i = 0; i < j; ++i) rhs[j] -= a[j * n + i] * rhs[i];
        rhs[j] /= a[j * n + j];
    }
    for (int64_t j = n - 1; j >= 0; --j) {
        for (int64_t i = j + 1; i < n; ++i) rhs[j] -= a[i * n + j] * rhs[i];
        rhs[j] /= a[j * n + j];
    }
    return true;
}

static double quadratic(const double *normal, const double *rhs, const double *s, int64_t n) {
    double v = 0;
    for (int64_t g = 0; g < n; ++g) {
        double row = 0;
        for (int64_t h = 0; h < n; ++h) row += normal[g * n + h] * s[h];
        v += s[g] * (row - 2 * rhs[g]);
    }
    return v;
}

/* Scales of one row, codes fixed: the loss is quadratic in its n scales; normal[g][h] = c_g H c_h, rhs[g] = c_g H w*. Taken
 * only when every scale stays positive and within a factor of 4, and the loss after rounding to the stored type is lower. */
static void refit_row(const refine_shared *s, const refine_scratch *b, int64_t row) {
    int64_t n = rq_ceil_div(s->n, s->span);
    float *scale = s->scale + row * s->n_group;
    double *now = b->solution, *full = b->solution + n, *copy = b->normal + n * n;
    memcpy(copy, b->normal, (size_t)(n * n) * sizeof *copy);
    memcpy(full, b->rhs, (size_t)n * sizeof *full);
    for (int64_t g = 0; g < n; ++g) {
        now[g] = scale[g];
        if (!(copy[g * n + g] > 0)) { /* all codes of the group sit on the zero point: its scale is free, keep it */
            for (int64_t h = 0; h < n; ++h) copy[g * n + h] = copy[h * n + g] = 0;
            copy[g * n + g] = 1;
            full[g] = scale[g];
        }
    }
    if (!solve_spd(copy, full, n)) return;
    for (int64_t g = 0; g < n; ++g) {
        if (!(full[g] > 0.25 * now[g] && full[g] < 4 * now[g])) return;
        float v = (float)full[g];
        if (s->opt->scale_dtype == RQ_F16) v = rq_f32_of_f16(rq_f16_of_f32(v));
        if (!(v > 0) || !isfinite(v)) return;
        full[g] = v;
    }
    if (!(quadratic(b->normal, b->rhs, full, n) < quadratic(b->normal, b->rhs, now, n))) return;
    for (int64_t g = 0; g < s->n_group; ++g) scale[g] = (float)full[s->step ? 0 : g];
}

/* The same from what a tile's row has of them, untouched; scratch: [2 n + 2 n n]. */
static void refit_from(const refine_shared *s, double *scratch, const double *normal, double *rhs, int64_t row) {
    int64_t n = rq_ceil_div(s->n, s->span);
    refine_scratch one = {.solution = scratch, .normal = scratch + 2 * n, .rhs = rhs}; /* the system, then a copy */
    memcpy(one.normal, normal, (size_t)(n * n) * sizeof *normal);
    for (int64_t g = 0; g < n; ++g) {
        for (int64_t h = 0; h < g; ++h) { /* the two triangles differ by fp32 rounding */
            double mean = 0.5 * (one.normal[g * n + h] + one.normal[h * n + g]);
            one.normal[g * n + h] = one.normal[h * n + g] = mean;
        }
    }
    refit_row(s, &one, row);
}

static void refit_scales(const refine_shared *s, refine_scratch *b, int64_t row0, int64_t n_rows) {
    int64_t n = s->n, ng = rq_ceil_div(n, s->span);
    /* e = levels of the codes; g = W* H; then, group by group, q = c_g H. */
    rq_sgemm_tile(RQ_N, RQ_N, n_rows, n, n, 1, s->target + row0 * n, n, s->hd, n, 0, b->g, n);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t j = 0; j < n; ++j) b->e[r * n + j] = level(s, row0 + r, j);
    }
    double *normal = b->normal, *rhs = b->rhs; /* of all rows of the tile */
    for (int64_t g = 0; g < ng; ++g) {
        int64_t c0 = g * s->span, len = rq_min_i64(s->span, n - c0);
        rq_sgemm_tile(RQ_N, RQ_N, n_rows, n, len, 1, b->e + c0, n, s->hd + c0 * n, n, 0, b->q, n);
        for (int64_t r = 0; r < n_rows; ++r) {
            const float *e = b->e + r * n, *ch = b->q + r * n, *wh = b->g + r * n;
            double sum = 0;
            for (int64_t j = c0; j < c0 + len; ++j) sum += (double)e[j] * wh[j];
            rhs[r * ng + g] = sum;
            for (int64_t h = 0; h < ng; ++h) {
                int64_t k0 = h * s->span, k1 = rq_min_i64(k0 + s->span, n);
                float part = 0; /* at most `group` terms; summed in fp64 across groups */
                double whole = 0;
                for (int64_t j = k0; j < k1; ++j) {
                    part += e[j] * ch[j];
                    if ((j + 1) % s->group && j + 1 < k1) continue;
                    whole += (double)part;
                    part = 0;
                }
                normal[(r * ng + g) * ng + h] = whole;
            }
        }
    }
    for (int64_t r = 0; r < n_rows; ++r) refit_from(s, b->solution, normal + r * ng * ng, b->rhs + r * ng, row0 + r);
}

/* What step and base of one group of one row become, u its codes: the loss changes by 2 s (d gu + e g1) + s^2 (d^2 uu + 2 d e u1 + e^2 h11)
 * when the step grows by d and the base by e. */
typedef struct level_loss {
    double scale, g1, gu, uu, u1, h11;
} level_loss;

static bool best_move(const level_loss *l, float step, float base, float *d_best, float *e_best) {
    double best = 0;
    if (!(l->h11 > 0)) return false;
    for (int i = -2; i <= 2; ++i) {
        const float d = (float)i;
        if (step + d < 1 || step + d > RQ_W4A8_MAX_STEP) continue;
        float to = base + (float)rint(-(l->g1 / l->scale + (double)d * l->u1) / l->h11), most = 127 - 15 * (step + d);
        to = to < -128 ? -128 : to > most ? most : to;
        double e = (double)to - (double)base, dd = (double)d;
        double change = 2 * l->scale * (dd * l->gu + e * l->g1) +
                        l->scale * l->scale * (dd * dd * l->uu + 2 * dd * e * l->u1 + e * e * l->h11);
        if (change < best) {
            best = change;
            *d_best = d;
            *e_best = (float)e;
        }
    }
    return best < 0;
}

/* Steps and bases of two levels, codes and scales fixed: group by group the best of a few whole numbers, with G kept up to date. b->q and b->g
 * are those of the codes; b->e and b->hu are scratch. */
static void refit_levels(const refine_shared *s, refine_scratch *b, int64_t row0, int64_t n_rows) {
    int64_t n = s->n;
    for (int64_t c0 = 0; c0 < n; c0 += s->group) {
        int64_t len = rq_min_i64(s->group, n - c0);
        double h11 = 0;
        for (int64_t j = c0; j < c0 + len; ++j) {
            for (int64_t k = c0; k < c0 + len; ++k) h11 += (double)s->hd[j * n + k];
        }
        for (int64_t r = 0; r < n_rows; ++r) {
            for (int64_t j = 0; j < len; ++j) b->e[r * len + j] = (float)s->codes[(row0 + r) * n + c0 + j];
        }
        rq_sgemm_tile(RQ_N, RQ_N, n_rows, len, len, 1, b->e, len, s->hd + c0 * n + c0, n, 0, b->hu, len);
        for (int64_t r = 0; r < n_rows; ++r) {
            int64_t k = (row0 + r) * s->n_group + c0 / s->group;
            level_loss l = {.scale = (double)s->scale[k], .h11 = h11};
            float *u = b->e + r * len, *q = b->q + r * n + c0, d = 0, e = 0;
            for (int64_t j = 0; j < len; ++j) {
                double g = (double)b->g[r * n + c0 + j];
                l.g1 += g;
                l.gu += g * (double)u[j];
                l.uu += (double)u[j] * (double)b->hu[r * len + j];
                l.u1 += (double)b->hu[r * len + j];
            }
            bool moves = best_move(&l, s->step[k], -s->zero[k], &d, &e);
            s->step[k] += d;
            s->zero[k] -= e;
            for (int64_t j = 0; j < len; ++j) { /* from here on e holds what q changed by */
                float now = moves ? s->scale[k] * (u[j] * s->step[k] - s->zero[k]) : q[j];
                u[j] = now - q[j];
                q[j] = now;
            }
        }
        rq_sgemm_tile(RQ_N, RQ_N, n_rows, n, len, 1, b->e, len, s->hd + c0 * n, n, 1, b->g, n);
    }
}

static void refine_tile(void *arg, int64_t tile) {
    refine_shared *s = arg;
    int64_t row0 = tile * TILE, n_rows = rq_min_i64(TILE, s->n_out - row0), n = s->n, ng = s->n_group;
    refine_scratch b = {0};
    bool ok = RQ_NEW(b.q, TILE * n) == RQ_OK && RQ_NEW(b.g, TILE * n) == RQ_OK && RQ_NEW(b.e, TILE * n) == RQ_OK &&
              RQ_NEW(b.delta, TILE * BLOCK) == RQ_OK && RQ_NEW(b.gt, BLOCK * LANES) == RQ_OK &&
              RQ_NEW(b.qt, BLOCK * LANES) == RQ_OK && RQ_NEW(b.normal, TILE * ng * ng) == RQ_OK &&
              RQ_NEW(b.rhs, TILE * ng) == RQ_OK && RQ_NEW(b.solution, 2 * ng + 2 * ng * ng) == RQ_OK;
    bool levels = s->step && s->opt->group; /* with one level steps are 1, and zero points stay */
    if (!ok || (levels && RQ_NEW(b.hu, TILE * s->group) != RQ_OK)) {
        s->failed = 1;
        goto done;
    }
    for (int round = 0; round <= s->opt->refit; ++round) {
        if (round > 0) refit_scales(s, &b, row0, n_rows);
        dequantize(s, &b, row0, n_rows);
        if (round > 0 && levels) {
            residual_gradient(s, &b, row0, n_rows);
            refit_levels(s, &b, row0, n_rows);
        }
        for (int i = 0; i < s->opt->cd_sweeps; ++i) sweep_codes(s, &b, row0, n_rows);
    }
done:
    free(b.q);
    free(b.g);
    free(b.e);
    free(b.hu);
    free(b.delta);
    free(b.gt);
    free(b.qt);
    free(b.normal);
    free(b.rhs);
    free(b.solution);
}

static refine_shared shared_of(const rq_refine *r) {
    return (refine_shared){r->codes,
                           r->scale,
                           r->zero,
                           r->step,
                           r->target,
                           r->hd,
                           r->n_out,
                           r->n,
                           r->group,
                           rq_ceil_div(r->n, r->group),
                           r->step ? r->n : r->group,
                           r->opt,
                           0};
}

rq_status rq_refine_grid(const rq_refine *r) {
    refine_shared s = shared_of(r);
    rq_parallel_for(rq_ceil_div(r->n_out, TILE), refine_tile, &s);
    return s.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory in the refinement") : RQ_OK;
}

typedef struct refit_rows {
    refine_shared s;
    int64_t row0, n_rows;
    const double *normal;
    double *rhs;
} refit_rows;

static void refit_tile(void *arg, int64_t tile) {
    refit_rows *j = arg;
    int64_t n = rq_ceil_div(j->s.n, j->s.span), end = rq_min_i64(j->n_rows, (tile + 1) * TILE);
    double *scratch;
    if (RQ_NEW(scratch, 2 * n + 2 * n * n) != RQ_OK) {
        j->s.failed = 1;
        return;
    }
    for (int64_t i = tile * TILE; i < end; ++i)
        refit_from(&j->s, scratch, j->normal + i * n * n, j->rhs + i * n, j->row0 + i);
    free(scratch);
}

rq_status rq_refit_rows(const rq_refine *r, int64_t row0, int64_t n_rows, const double *normal, double *rhs) {
    refit_rows j = {shared_of(r), row0, n_rows, normal, rhs};
    rq_parallel_for(rq_ceil_div(n_rows, TILE), refit_tile, &j);
    return j.s.failed ? rq_fail(RQ_ERR_NOMEM, "out of memory in the refit of scales") : RQ_OK;
}
