/* SPDX-License-Identifier: Apache-2.0 */
/* The compensator and rounder tables, default settings, and the checks on settings. */
#include <errno.h>
#include <limits.h>
#include <stddef.h>

#include "comp.h"

static const rq_comp_row comp_rows[RQ_N_COMPS] = {
#define RQ_COMP(id, text, propagates, cross, alpha, alpha2, rho) {text, propagates, cross, alpha, alpha2, rho},
#include "comp.def"
#undef RQ_COMP
};

static const rq_rounder *const rounders[RQ_N_ROUNDS] = {
#define RQ_ROUND(id, text, ops) &ops,
#include "round.def"
#undef RQ_ROUND
};

const rq_comp_row *rq_comp_get(rq_comp c) { return (unsigned)c < RQ_N_COMPS ? &comp_rows[c] : NULL; }

bool rq_comp_by_name(const char *name, rq_comp *c) {
    for (int i = 0; i < RQ_N_COMPS; ++i) {
        if (strcmp(name, comp_rows[i].name) == 0) {
            *c = (rq_comp)i;
            return true;
        }
    }
    return false;
}

const rq_rounder *rq_round_get(rq_round r) { return (unsigned)r < RQ_N_ROUNDS ? rounders[r] : NULL; }

const char *rq_round_name(rq_round r) { return (unsigned)r < RQ_N_ROUNDS ? rounders[r]->name : "?"; }

bool rq_round_by_name(const char *name, rq_round *r) {
    for (int i = 0; i < RQ_N_ROUNDS; ++i) {
        if (strcmp(name, rounders[i]->name) == 0) {
            *r = (rq_round)i;
            return true;
        }
    }
    return false;
}

void rq_quant_reference(rq_quant_opt *o, rq_comp comp) {
    const rq_comp_row *row = rq_comp_get(comp);
    *o =
        (rq_quant_opt){.struct_size = sizeof *o, .comp = comp, .round = RQ_ROUND_GRID, .damp_frac = 0.01, .block = 128};
    o->alpha = row->alpha;
    o->alpha2 = row->alpha2;
    o->rho = row->rho;
    o->bits = 3;
    o->group = 128;
    o->sym = true;
    o->act_order = row->propagates;
    o->clip = RQ_CLIP_MSE;
    o->clip_power = 2.4;
    o->clip_steps = 80;
    o->scale_dtype = RQ_F32;
}

void rq_quant_default(rq_quant_opt *o, rq_comp comp) {
    rq_quant_reference(o, comp);
    o->sym = false;
    o->static_groups = o->act_order;
    o->clip_weights = RQ_CLIP_HDIAG;
    o->clip_power = 2.0;
    o->clip_steps = 40;
    o->scale_dtype = RQ_F16;
    o->cd_sweeps = 3;
    o->refit = 2;
    if (!rq_comp_get(comp)->propagates) { /* round to nearest: no second-order step anywhere */
        o->cd_sweeps = 0;
        o->refit = 0;
    }
}

/* Clip search and refinement as on the grid; groups are found beforehand, row by row. */
static void default_w4a8(rq_quant_opt *o) {
    o->round = RQ_ROUND_W4A8;
    o->bits = 4;
    o->group = 128;
    o->static_groups = true;
    o->scale_dtype = RQ_F32;
}

bool rq_round_is_book(rq_round r) { return rq_round_get(r) && rq_round_get(r)->vec; }

/* The 2-bit setting of docs/methods.md ("Codebooks"); --vec-len 4 makes it the 3-bit one. */
void rq_quant_default_round(rq_quant_opt *o, rq_comp comp, rq_round round) {
    rq_quant_default(o, comp);
    if (round == RQ_ROUND_W4A8) default_w4a8(o);
    if (!rq_round_is_book(round)) return;
    bool propagates = rq_comp_get(comp)->propagates;
    o->round = round;
    o->act_order = false;
    o->group = 0;
    o->shrink = propagates ? 0.3 : 0;
    o->cd_sweeps = propagates ? 2 : 0;
    o->refit = propagates ? 2 : 0;
    if (comp == RQ_COMP_QEP) o->rho = 0.25;
    o->vec_len = round == RQ_ROUND_SSVQ ? 8 : 4;
    o->codes = 256;
    o->book_dtype = round == RQ_ROUND_SSVQ ? RQ_BOOK_U8 : RQ_BOOK_F16;
    o->share_books = true;
    o->outliers = 8;
    o->outlier_min = 8;
    o->assign = RQ_ASSIGN_MAHALANOBIS;
    o->sign_rate = 0.4;
    o->kmeans_iters = 12;
    o->kmeans_points = 1 << 16;
}

void rq_quant_vptq(rq_quant_opt *o, rq_comp comp) {
    rq_quant_default_round(o, comp, RQ_ROUND_VQ);
    o->rho = rq_comp_get(comp)->rho;
    o->shrink = 0;
    o->cd_sweeps = 0;
    o->refit = 0;
    o->act_order = rq_comp_get(comp)->propagates;
    o->vec_out = true;
    o->vec_len = 6;
    o->codes = 4096;
    o->col_norm = RQ_COL_RANGE;
    o->stage_fit = RQ_STAGE_SWEEP;
    o->book_order = RQ_BOOK_HDIAG;
    o->share_books = false;
    o->outliers = 0;
    o->kmeans_iters = 100;
    o->kmeans_points = 0;
}

bool rq_groups_in_sweep_order(const rq_quant_opt *o, int64_t n_in) {
    return rq_comp_get(o->comp)->propagates && !o->static_groups && o->group > 0 && o->group < n_in &&
           !rq_round_is_book(o->round);
}

static bool fraction(double v, double lo, double hi) { return v >= lo && v <= hi; } /* false for NaN */

static rq_status check_book(const rq_quant_opt *o) {
    const char *name = rq_round_name(o->round);
    if (o->clip == RQ_CLIP_OUTPUT) return rq_fail(RQ_ERR_ARG, "--clip output: %s has no range to clip", name);
    bool ssvq = o->round == RQ_ROUND_SSVQ;
    int most = ssvq ? 4096 : 65536;
    if (ssvq ? o->vec_len != 4 && o->vec_len != 8 : o->vec_len < 2 || o->vec_len > RQ_VQ_MAX_VEC)
        return rq_fail(RQ_ERR_ARG, "--vec-len %d: vectors of %s have %s weights", o->vec_len, name,
                       ssvq ? "4 or 8" : "2 to 16");
    if (o->codes < 16 || o->codes > most)
        return rq_fail(RQ_ERR_ARG, "--codes %d: codebooks of %s have 16 to %d entries", o->codes, name, most);
    if (o->codes2 != 0 && (ssvq || o->codes2 < 16 || o->codes2 > most))
        return rq_fail(RQ_ERR_ARG, "--codes2 %d: a second stage is for vq, with 16 to %d entries; 0 for none",
                       o->codes2, most);
    if (o->vec_out && (ssvq || o->group != 0))
        return rq_fail(RQ_ERR_ARG, "--vec-axis out is for vq, and its scales are of columns: --group %lld must be 0",
                       (long long)o->group);
    if (o->group % o->vec_len)
        return rq_fail(RQ_ERR_ARG, "--group %lld is not a multiple of --vec-len %d", (long long)o->group, o->vec_len);
    if (o->book_cols < 0 || (!o->vec_out && o->book_cols % o->vec_len))
        return rq_fail(RQ_ERR_ARG, "--book-cols %lld is not a multiple of --vec-len %d (0 means all columns)",
                       (long long)o->book_cols, o->vec_len);
    if (o->col_norm != RQ_COL_STD && !o->vec_out)
        return rq_fail(RQ_ERR_ARG,
                       "--col-norm range is for --vec-axis out: with vectors along inputs rows have scales");
    if (o->book_order == RQ_BOOK_HDIAG && !o->vec_out)
        return rq_fail(RQ_ERR_ARG,
                       "--book-order hdiag is for --vec-axis out: along inputs a codebook is of neighbours");
    if (o->book_dtype == RQ_BOOK_U8 && !ssvq) return rq_fail(RQ_ERR_ARG, "--book-dtype u8: codebooks of vq are f16");
    if (o->scale_dtype != RQ_F16) return rq_fail(RQ_ERR_ARG, "--scale-dtype f32: scales of %s are f16", name);
    if (o->outliers < 0 || o->outliers > RQ_SSVQ_MAX_OUTLIERS || !(o->outlier_min >= 0))
        return rq_fail(RQ_ERR_ARG, "--outliers %d must be in 0..%d and --outlier-min %g not negative", o->outliers,
                       RQ_SSVQ_MAX_OUTLIERS, o->outlier_min);
    if (o->sign_steps < 0 || o->sign_steps > 10000 || !fraction(o->sign_rate, 0, 100))
        return rq_fail(RQ_ERR_ARG, "--sign-steps %d must be in 0..10000 and --sign-rate %g in 0..100", o->sign_steps,
                       o->sign_rate);
    if (o->sign_steps > 0 && (!ssvq || !rq_comp_get(o->comp)->propagates))
        return rq_fail(RQ_ERR_ARG, "--sign-steps %d: %s has no signs to learn", o->sign_steps,
                       ssvq ? "rounding to the nearest code" : name);
    if (o->kmeans_iters < 0 || o->kmeans_iters > 10000 || o->kmeans_points < 0 || o->kmeans_seed < 0)
        return rq_fail(RQ_ERR_ARG, "--kmeans-iters %d, --kmeans-points %lld and --kmeans-seed %d: too small or large",
                       o->kmeans_iters, (long long)o->kmeans_points, o->kmeans_seed);
    return RQ_OK;
}

static rq_status check_w4a8(const rq_quant_opt *o, int64_t n_in) {
    if (o->bits != 4) return rq_fail(RQ_ERR_ARG, "--bits %d: codes of w4a8 have 4", o->bits);
    if (o->group % 32 || o->group > RQ_W4A8_MAX_GROUP)
        return rq_fail(RQ_ERR_ARG, "--group %lld: of w4a8 it is 0 or a multiple of 32 up to %d", (long long)o->group,
                       RQ_W4A8_MAX_GROUP);
    if (n_in > RQ_W4A8_MAX_COLS)
        return rq_fail(RQ_ERR_UNSUPPORTED, "w4a8 sums up to %d products in 32 bits; the matrix has %lld inputs",
                       RQ_W4A8_MAX_COLS, (long long)n_in);
    if (o->sym && o->group)
        return rq_fail(RQ_ERR_ARG, "--sym: w4a8 with --group %lld has a base for each group; --sym is for --group 0",
                       (long long)o->group);
    if (!o->static_groups && o->group)
        return rq_fail(RQ_ERR_ARG,
                       "--no-static-groups: the groups of a row share a scale in w4a8, and are found beforehand");
    if (o->clip != RQ_CLIP_NONE && o->clip_power != 2 && o->group)
        return rq_fail(RQ_ERR_ARG, "--clip-power %g: w4a8 with --group searches by squares", o->clip_power);
    if (o->scale_dtype != RQ_F32) return rq_fail(RQ_ERR_ARG, "--scale-dtype f16: scales of w4a8 are f32");
    return RQ_OK;
}

rq_status rq_quant_check(const rq_quant_opt *o, int64_t n_in) {
    if (o->struct_size != sizeof *o) return rq_fail(RQ_ERR_ARG, "rq_quant_opt was not set up by rq_quant_default");
    if (!rq_comp_get(o->comp) || (unsigned)o->round >= RQ_N_ROUNDS)
        return rq_fail(RQ_ERR_ARG, "unknown compensator or rounder");
    if (o->bits != 2 && o->bits != 3 && o->bits != 4 && o->bits != 8) {
        return rq_fail(RQ_ERR_ARG, "--bits %d: the grid has 2, 3, 4 or 8 bits", o->bits);
    }
    if (o->group < 0)
        return rq_fail(RQ_ERR_ARG, "--group %lld is negative (0 means the whole row)", (long long)o->group);
    if (n_in > 0 && o->group > n_in) {
        return rq_fail(RQ_ERR_ARG, "--group %lld is larger than the row of %lld inputs (0 means the whole row)",
                       (long long)o->group, (long long)n_in);
    }
    if (o->block < 1 || o->block > 4096)
        return rq_fail(RQ_ERR_ARG, "--block %lld is not in 1..4096", (long long)o->block);
    if (!fraction(o->damp_frac, 1e-8, 10)) return rq_fail(RQ_ERR_ARG, "--damp %g is not in 1e-8..10", o->damp_frac);
    if (!fraction(o->shrink, 0, 1)) return rq_fail(RQ_ERR_ARG, "--shrink %g is not in 0..1", o->shrink);
    if (!fraction(o->alpha, -4, 4) || !fraction(o->alpha2, -4, 4) || !fraction(o->rho, -4, 4)) {
        return rq_fail(RQ_ERR_ARG, "--alpha, --alpha2 and --rho must be in -4..4");
    }
    if (!fraction(o->clip_power, 0.5, 8) || o->clip_steps < 1 || o->clip_steps > 1000) {
        return rq_fail(RQ_ERR_ARG, "clip search: power %g must be in 0.5..8 and steps %d in 1..1000", o->clip_power,
                       o->clip_steps);
    }
    if (o->cd_sweeps < 0 || o->cd_sweeps > 100 || o->refit < 0 || o->refit > 100) {
        return rq_fail(RQ_ERR_ARG, "--cd-sweeps %d and --refit %d must be in 0..100", o->cd_sweeps, o->refit);
    }
    if (o->scale_dtype != RQ_F16 && o->scale_dtype != RQ_F32)
        return rq_fail(RQ_ERR_ARG, "scales are stored as f16 or f32");
    if (o->round == RQ_ROUND_GRID && o->clip == RQ_CLIP_OUTPUT && o->group && o->group != n_in && n_in > 0) {
        return rq_fail(RQ_ERR_ARG,
                       "--clip output: rows of %lld with groups of %lld have several ranges; --group 0 or w4a8",
                       (long long)n_in, (long long)o->group);
    }
    if (o->round == RQ_ROUND_W4A8) return check_w4a8(o, n_in);
    if (!rq_round_is_book(o->round)) return RQ_OK;
    if (o->book_order == RQ_BOOK_HDIAG && n_in > o->book_cols * RQ_VQ_MAX_BOOKS && o->book_cols > 0)
        return rq_fail(RQ_ERR_ARG, "--book-cols %lld makes more than %d codebooks of %lld columns; --book-order hdiag",
                       (long long)o->book_cols, RQ_VQ_MAX_BOOKS, (long long)n_in);
    return check_book(o);
}

/* ---- options by name: one table for flags, --config files, --override and reports ---- */

typedef struct setting {
    rq_quant_key key;
    size_t offset;
} setting;

#define AT(member) offsetof(rq_quant_opt, member)

static const setting settings[] = {
    {{"comp", 'e', NULL, "compensator (comp.def)"}, AT(comp)},
    {{"round", 'e', NULL, "rounder (round.def)"}, AT(round)},
    {{"bits", 'i', "B", "bits per code: 2, 3, 4 or 8"}, AT(bits)},
    {{"group", 'I', "G", "columns that share a scale; 0: the whole row"}, AT(group)},
    {{"sym", 'b', NULL, "symmetric grid (--asym: with zero points)"}, AT(sym)},
    {{"clip", 'e', "none|mse|output", "search the clip that loses least, in weights or (one range a row) in outputs"},
     AT(clip)},
    {{"clip-weights", 'e', "none|hdiag", "weigh the clip search by the Gram diagonal"}, AT(clip_weights)},
    {{"clip-power", 'd', "P", "error power of the clip search"}, AT(clip_power)},
    {{"clip-steps", 'i', "N", "steps of the clip search, from 1 down to 0.2"}, AT(clip_steps)},
    {{"act-order", 'b', NULL, "columns of large Gram diagonal first"}, AT(act_order)},
    {{"static-groups", 'b', NULL, "groups in natural order, found beforehand"}, AT(static_groups)},
    {{"damp", 'd', "F", "damping, a fraction of mean(diag H)"}, AT(damp_frac)},
    {{"shrink", 'd', "F", "shrink the off-diagonal of H by this fraction"}, AT(shrink)},
    {{"alpha", 'd', "F", "factor of GPTAQ's term"}, AT(alpha)},
    {{"alpha2", 'd', "F", "factor of ResComp's term"}, AT(alpha2)},
    {{"rho", 'd', "F", "how far the target moves to the exact one (qep)"}, AT(rho)},
    {{"update", 'e', "auto|org|allw", "what finished columns hand on (ResComp)"}, AT(update)},
    {{"block", 'I', "N", "columns per lazy update"}, AT(block)},
    {{"cd-sweeps", 'i', "N", "coordinate-descent sweeps after the sweep"}, AT(cd_sweeps)},
    {{"refit", 'i', "N", "rounds of scale refit, each with its sweeps"}, AT(refit)},
    {{"scale-dtype", 'e', "f16|f32", "how scales are stored"}, AT(scale_dtype)},
    {{"vec-len", 'i', "D", "ssvq, vq: weights that share a code"}, AT(vec_len)},
    {{"codes", 'i', "K", "ssvq, vq: entries of a codebook"}, AT(codes)},
    {{"codes2", 'i', "K", "vq: entries of the second stage's, 0 for one stage"}, AT(codes2)},
    {{"vec-axis", 'e', "in|out", "vq: vectors along the inputs, or down the outputs with column scales"}, AT(vec_out)},
    {{"col-norm", 'e', "std|range", "vq, vectors down the outputs: what columns are divided by at first"},
     AT(col_norm)},
    {{"stage-fit", 'e', "start|sweep", "vq: fit stage two on the start weights, or on what a sweep leaves"},
     AT(stage_fit)},
    {{"book-cols", 'I', "N", "ssvq, vq: columns that share a codebook; 0: all"}, AT(book_cols)},
    {{"book-order", 'e', "natural|hdiag",
      "vq, vectors down the outputs: columns that share one are neighbours, or alike in H"},
     AT(book_order)},
    {{"book-dtype", 'e', "f16|u8", "ssvq: how codebooks are stored"}, AT(book_dtype)},
    {{"share-books", 'b', NULL, "ssvq, vq: one codebook for matrices with the same input"}, AT(share_books)},
    {{"outliers", 'i', "N", "ssvq, vq: columns of largest Gram diagonal kept in 8 bits"}, AT(outliers)},
    {{"outlier-min", 'd', "F", "ssvq, vq: only those above F times the mean diagonal"}, AT(outlier_min)},
    {{"assign", 'e', "euclid|diag|mahalanobis", "ssvq, vq: the metric of the search"}, AT(assign)},
    {{"sign-steps", 'i', "N", "ssvq: gradient steps of sign learning after the refinement"}, AT(sign_steps)},
    {{"sign-rate", 'd', "F", "ssvq: their first rate"}, AT(sign_rate)},
    {{"kmeans-iters", 'i', "N", "ssvq, vq: iterations of the codebook's fit"}, AT(kmeans_iters)},
    {{"kmeans-points", 'I', "N", "ssvq, vq: vectors it is fitted on; 0: all"}, AT(kmeans_points)},
    {{"kmeans-seed", 'i', "N", "ssvq, vq: of the codebook's first entries"}, AT(kmeans_seed)},
};

static const char *comp_name_list(bool comps) {
    static char list[2][128]; /* filled once with the same bytes each time */
    char *out = list[comps];
    int n = comps ? RQ_N_COMPS : RQ_N_ROUNDS;
    if (!out[0]) {
        char text[128] = "";
        size_t used = 0;
        for (int i = 0; i < n; ++i) {
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", i ? "|" : "",
                                     comps ? comp_rows[i].name : rounders[i]->name);
        }
        memcpy(out, text, sizeof text);
    }
    return out;
}

const rq_quant_key *rq_quant_key_at(int i) {
    static _Thread_local rq_quant_key key;
    if (i < 0 || i >= (int)(sizeof settings / sizeof *settings)) return NULL;
    key = settings[i].key;
    if (settings[i].offset == AT(comp)) key.values = comp_name_list(true);
    if (settings[i].offset == AT(round)) key.values = comp_name_list(false);
    if (key.kind == 'I') key.kind = 'i';
    return &key;
}

/* The index of value in "a|b|c", or -1. */
static int choice(const char *values, const char *value) {
    size_t len = strlen(value);
    for (int i = 0; values; ++i) {
        const char *bar = strchr(values, '|');
        size_t n = bar ? (size_t)(bar - values) : strlen(values);
        if (n == len && memcmp(values, value, n) == 0) return i;
        values = bar ? bar + 1 : NULL;
    }
    return -1;
}

static rq_status set_choice(rq_quant_opt *o, size_t offset, const rq_quant_key *key, const char *value) {
    int i = choice(key->values, value);
    if (i < 0) return rq_fail(RQ_ERR_ARG, "--%s %s: it is one of %s", key->key, value, key->values);
    switch (offset) {
    case AT(comp): o->comp = (rq_comp)i; break;
    case AT(round): o->round = (rq_round)i; break;
    case AT(clip): o->clip = (rq_clip)i; break;
    case AT(clip_weights): o->clip_weights = (rq_clip_weights)i; break;
    case AT(update): o->update = (rq_update)i; break;
    case AT(vec_out): o->vec_out = i == 1; break;
    case AT(assign): o->assign = (rq_assign)i; break;
    case AT(col_norm): o->col_norm = (rq_col_norm)i; break;
    case AT(stage_fit): o->stage_fit = (rq_stage_fit)i; break;
    case AT(book_order): o->book_order = (rq_book_order)i; break;
    case AT(book_dtype): o->book_dtype = (rq_book_dtype)i; break;
    default: o->scale_dtype = i ? RQ_F32 : RQ_F16; break;
    }
    return RQ_OK;
}

rq_status rq_quant_set(rq_quant_opt *o, const char *key, const char *value) {
    for (int i = 0; i < (int)(sizeof settings / sizeof *settings); ++i) {
        const setting *s = &settings[i];
        if (strcmp(s->key.key, key) != 0) continue;
        void *at = (char *)o + s->offset;
        char *end;
        errno = 0;
        if (s->key.kind == 'e') return set_choice(o, s->offset, rq_quant_key_at(i), value);
        if (s->key.kind == 'b') {
            bool yes = strcmp(value, "true") == 0 || strcmp(value, "1") == 0;
            if (!yes && strcmp(value, "false") != 0 && strcmp(value, "0") != 0) {
                return rq_fail(RQ_ERR_ARG, "%s=%s: it is true or false", key, value);
            }
            *(bool *)at = yes;
            return RQ_OK;
        }
        if (s->key.kind == 'd') {
            double v = strtod(value, &end);
            if (end == value || *end || errno) return rq_fail(RQ_ERR_ARG, "--%s %s: not a number", key, value);
            *(double *)at = v;
            return RQ_OK;
        }
        long long v = strtoll(value, &end, 10);
        if (end == value || *end || errno || v < INT_MIN || v > INT_MAX) {
            return rq_fail(RQ_ERR_ARG, "--%s %s: not a whole number", key, value);
        }
        if (s->key.kind == 'I') {
            *(int64_t *)at = v;
        } else {
            *(int *)at = (int)v;
        }
        return RQ_OK;
    }
    return rq_fail(RQ_ERR_ARG, "'%s' is not a quantization option", key);
}

static rq_status set_comp(rq_quant_opt *o, const char *name) {
    rq_quant_opt own;
    rq_comp comp;
    if (!rq_comp_by_name(name, &comp)) return rq_fail(RQ_ERR_ARG, "no compensator '%s'", name);
    rq_quant_default_round(&own, comp, o->round);
    o->comp = comp;
    o->alpha = own.alpha;
    o->alpha2 = own.alpha2;
    o->rho = own.rho;
    return RQ_OK;
}

static rq_status set_round(rq_quant_opt *o, const char *name) {
    rq_round round;
    if (!rq_round_by_name(name, &round)) return rq_fail(RQ_ERR_ARG, "no rounder '%s'", name);
    if (round != o->round) rq_quant_default_round(o, o->comp, round);
    return RQ_OK;
}

rq_status rq_quant_set_all(rq_quant_opt *o, const char *text) {
    rq_status status = RQ_OK;
    for (int pass = 0; pass < 2; ++pass) { /* the rounder first: it brings settings that other options change */
        char *copy = strdup(text), *save = NULL;
        if (!copy) return rq_fail(RQ_ERR_NOMEM, "out of memory");
        for (char *item = strtok_r(copy, ",", &save); item && status == RQ_OK; item = strtok_r(NULL, ",", &save)) {
            char *equals = strchr(item, '=');
            if (!equals) {
                status = rq_fail(RQ_ERR_ARG, "'%s' is not key=value", item);
                break;
            }
            *equals = 0;
            bool is_round = strcmp(item, "round") == 0;
            if (is_round == (pass == 1)) continue;
            status = is_round                    ? set_round(o, equals + 1)
                     : strcmp(item, "comp") == 0 ? set_comp(o, equals + 1)
                                                 : rq_quant_set(o, item, equals + 1);
        }
        free(copy);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

void rq_quant_get(const rq_quant_opt *o, const char *key, char *text, size_t size) {
    static const char *const clips[] = {"none", "mse", "output"}, *const weights[] = {"none", "hdiag"},
                             *const updates[] = {"auto", "org", "allw"},
                             *const assigns[] = {"euclid", "diag", "mahalanobis"}, *const types[] = {"f16", "u8"},
                             *const norms[] = {"std", "range"}, *const fits[] = {"start", "sweep"},
                             *const orders[] = {"natural", "hdiag"};
    if (size) text[0] = 0;
    for (int i = 0; i < (int)(sizeof settings / sizeof *settings); ++i) {
        const setting *s = &settings[i];
        if (strcmp(s->key.key, key) != 0) continue;
        const void *at = (const char *)o + s->offset;
        switch (s->key.kind) {
        case 'b': snprintf(text, size, "%s", *(const bool *)at ? "true" : "false"); return;
        case 'd': snprintf(text, size, "%.12g", *(const double *)at); return;
        case 'i': snprintf(text, size, "%d", *(const int *)at); return;
        case 'I': snprintf(text, size, "%lld", (long long)*(const int64_t *)at); return;
        default: break;
        }
        const char *name = s->offset == AT(comp)           ? comp_rows[o->comp].name
                           : s->offset == AT(round)        ? rounders[o->round]->name
                           : s->offset == AT(clip)         ? clips[o->clip]
                           : s->offset == AT(clip_weights) ? weights[o->clip_weights]
                           : s->offset == AT(update)       ? updates[o->update]
                           : s->offset == AT(vec_out)      ? (o->vec_out ? "out" : "in")
                           : s->offset == AT(assign)       ? assigns[o->assign]
                           : s->offset == AT(col_norm)     ? norms[o->col_norm]
                           : s->offset == AT(stage_fit)    ? fits[o->stage_fit]
                           : s->offset == AT(book_order)   ? orders[o->book_order]
                           : s->offset == AT(book_dtype)   ? types[o->book_dtype]
                           : o->scale_dtype == RQ_F32      ? "f32"
                                                           : "f16";
        snprintf(text, size, "%s", name);
        return;
    }
}

bool rq_quant_same(const rq_quant_opt *a, const rq_quant_opt *b) {
    char x[64], y[64];
    for (int i = 0; i < (int)(sizeof settings / sizeof *settings); ++i) {
        rq_quant_get(a, settings[i].key.key, x, sizeof x);
        rq_quant_get(b, settings[i].key.key, y, sizeof y);
        if (strcmp(x, y) != 0) return false;
    }
    return true;
}
