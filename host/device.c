/* SPDX-License-Identifier: Apache-2.0 */
/* Devices by name, and the CPU's row: OpenBLAS and the loops of the comp_*.c files. */
#include "device.h"

#include <limits.h>

#include "backend.h"

/* A program that is linked without backend_cuda.c has no such row. */
#pragma weak rq_device_cuda

static rq_status cpu_open(void **own, int index) {
    *own = NULL;
    if (index != 0) return rq_fail(RQ_ERR_ARG, "there is one CPU, not number %d", index);
    return rq_backend_init();
}

static void cpu_close(void *own) { (void)own; }

static rq_status cpu_gram_start(void *own, double *h, double *d, int64_t n) {
    (void)own;
    memset(h, 0, (size_t)(n * n) * sizeof *h);
    if (d) memset(d, 0, (size_t)(n * n) * sizeof *d);
    return RQ_OK;
}

static rq_status cpu_gram_add(void *own, double *h, double *d, const float *a, const float *b, int64_t n_tok,
                              int64_t n) {
    (void)own;
    rq_status status = rq_gram_add(h, a, n_tok, n);
    if (status == RQ_OK && d) status = rq_cross_add(d, b, a, n_tok, n);
    return status;
}

static rq_status cpu_gram_finish(void *own, double *h, double *d, int64_t n) {
    (void)own, (void)h, (void)d, (void)n;
    return RQ_OK;
}

static rq_status cpu_factor(void *own, rq_prep *p, const double *h, int64_t *bad) {
    (void)own;
    rq_status status = RQ_OK;
    double *u = NULL;
    RQ_TRY(RQ_NEW(u, p->n * p->n));
    RQ_TRY(rq_factor_upper(u, NULL, h, p->n, bad));
    RQ_TRY(RQ_NEW(p->u, p->n * p->n));
    for (int64_t i = 0; i < p->n * p->n; ++i) p->u[i] = (float)u[i];
done:
    free(u);
    return status;
}

static rq_status cpu_triangular_term(void *own, rq_prep *p, float *d) {
    (void)own;
    rq_status status = RQ_OK;
    int64_t n = p->n;
    float *du = NULL;
    RQ_TRY(RQ_NEW(du, n * n));
    RQ_TRY(RQ_NEW(p->t, n * n));
    rq_sgemm_du(du, d, p->u, n);
    for (int64_t b = 0; b < p->n_span; ++b) {
        /* Columns of a vector are finished together: nothing is owed among them. */
        const rq_span *s = &p->span[b];
        for (int64_t r = s->pos; r < s->pos + s->width; ++r)
            memset(du + r * n + s->pos, 0, (size_t)s->width * sizeof *du);
    }
    rq_sgemm_tu(p->t, du, p->u, n);
done:
    free(du);
    return status;
}

/* M = D (H + damping)^-1 = (D U^T) U in sweep order, carried back to natural order. */
static rq_status cpu_target_move(void *own, rq_prep *p, float *d) {
    (void)own;
    rq_status status = RQ_OK;
    int64_t n = p->n;
    float *du = NULL;
    RQ_TRY(RQ_NEW(du, n * n));
    RQ_TRY(RQ_NEW(p->m, n * n));
    rq_sgemm(RQ_N, RQ_T, n, n, n, 1, d, n, p->u, n, 0, du, n);
    rq_sgemm(RQ_N, RQ_N, n, n, n, 1, du, n, p->u, n, 0, d, n);
    for (int64_t r = 0; r < n; ++r) {
        for (int64_t c = 0; c < n; ++c) p->m[p->perm[r] * n + p->perm[c]] = d[r * n + c];
    }
done:
    free(du);
    return status;
}

static rq_status cpu_move(void *own, float *out, const float *w, int64_t n_out, const rq_prep *p, double factor) {
    (void)own;
    memcpy(out, w, (size_t)(n_out * p->n) * sizeof *out);
    rq_sgemm(RQ_N, RQ_N, n_out, p->n, p->n, (float)factor, w, p->n, p->m, p->n, 1, out, p->n);
    return RQ_OK;
}

static rq_status cpu_clip(void *own, const rq_sweep *s, const char *label) {
    (void)own, (void)label;
    return rq_clip_output(s);
}

static rq_status cpu_sweep(void *own, const rq_sweep *s, const char *label) {
    (void)own, (void)label;
    return rq_sweep_run(s);
}

static rq_status cpu_refine(void *own, const rq_refine *r, const rq_prep *p, const char *label) {
    (void)own, (void)p, (void)label;
    return rq_refine_grid(r);
}

static rq_status cpu_book_sweep(void *own, rq_book_task *t, const float *metric, float *at) {
    (void)own;
    return rq_block_sweep(t, metric, at);
}

static rq_status cpu_book_pass(void *own, const rq_book_refine *r, rq_book_pass pass) {
    (void)own;
    return rq_book_refine_pass(r, pass);
}

static rq_status cpu_book_ask(void *own, rq_book_system *s, rq_book_ask ask, double *out, const double *v,
                              double *loss) {
    (void)own;
    return rq_book_system_ask(s, ask, out, v, loss);
}

static rq_status cpu_book_columns(void *own, rq_book_columns *c, double *loss, bool terms) {
    (void)own;
    return rq_book_column_terms(c, loss, terms);
}

static void cpu_book_forget(void *own, rq_book_task *t) { (void)own, (void)t; }

static void cpu_forget(void *own, rq_prep *p) { (void)own, (void)p; }

const rq_device_ops rq_device_cpu = {.name = "cpu",
                                     .open = cpu_open,
                                     .close = cpu_close,
                                     .gram_start = cpu_gram_start,
                                     .gram_add = cpu_gram_add,
                                     .gram_finish = cpu_gram_finish,
                                     .factor = cpu_factor,
                                     .triangular_term = cpu_triangular_term,
                                     .target_move = cpu_target_move,
                                     .move = cpu_move,
                                     .clip = cpu_clip,
                                     .sweep = cpu_sweep,
                                     .refine = cpu_refine,
                                     .book_sweep = cpu_book_sweep,
                                     .book_pass = cpu_book_pass,
                                     .book_ask = cpu_book_ask,
                                     .book_columns = cpu_book_columns,
                                     .book_forget = cpu_book_forget,
                                     .forget = cpu_forget};

rq_status rq_device_find(const rq_device_ops **row, int *index, const char *name) {
    *index = 0;
    *row = &rq_device_cpu;
    if (strcmp(name, "cpu") == 0) return RQ_OK;
    size_t kind = strcspn(name, ":");
    char *end = NULL;
    long number = name[kind] ? strtol(name + kind + 1, &end, 10) : 0;
    if (kind != 4 || strncmp(name, "cuda", 4) != 0 || (end && (*end || end == name + kind + 1)) || number < 0 ||
        number > INT_MAX) {
        return rq_fail(RQ_ERR_ARG, "device '%s': it is cpu, cuda or cuda:N", name);
    }
    if (!&rq_device_cuda) {
        return rq_fail(RQ_ERR_DEVICE,
                       "device '%s': this program was built without the CUDA backend (cmake -DRQ_CUDA=ON)", name);
    }
    *row = &rq_device_cuda;
    *index = (int)number;
    return RQ_OK;
}

rq_status rq_device_check(const char *name) {
    const rq_device_ops *row;
    int index;
    return rq_device_find(&row, &index, name);
}

rq_status rq_device_open(rq_device **d, const char *name) { return rq_device_open_rank(d, name, NULL); }

rq_status rq_device_open_rank(rq_device **d, const char *name, const rq_ranks *ranks) {
    rq_status status = RQ_OK;
    const rq_device_ops *row;
    int index;
    *d = NULL;
    RQ_TRY(rq_device_find(&row, &index, name));
    const bool several = rq_n_ranks(ranks) > 1 && row->join;
    if (several) {
        if (strchr(name, ':'))
            RQ_FAIL(RQ_ERR_ARG, "--device %s with %d ranks: --device %s gives each of them one", name,
                    rq_n_ranks(ranks), row->name);
        index = -1 - ranks->local;
    }
    RQ_TRY(RQ_NEW_ZERO(*d, 1));
    (*d)->ops = row;
    RQ_TRY(row->open(&(*d)->own, index));
    if (several) {
        status = row->join((*d)->own, ranks);
        if (status != RQ_OK) row->close((*d)->own);
    }
done:
    if (status != RQ_OK) {
        free(*d);
        *d = NULL;
    }
    return status;
}

void rq_device_close(rq_device *d) {
    if (!d) return;
    d->ops->close(d->own);
    free(d);
}
