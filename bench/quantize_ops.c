/* SPDX-License-Identifier: Apache-2.0 */
#include "quantize_ops.h"

const char *const timed_names[TIMED_STAGES] = {"gram", "factor", "terms", "sweep", "refine"};
double timed_seconds[TIMED_STAGES];

static const rq_device_ops *of;
static rq_device_ops row;
static void (*device_wait)(void);
static bool swept;

static double begin(void) {
    if (device_wait) device_wait();
    return rq_seconds();
}

static rq_status end(rq_status status, int stage, double started) {
    if (device_wait) device_wait();
    timed_seconds[stage] += rq_seconds() - started;
    return status;
}

static rq_status factor(void *own, rq_prep *p, const double *h, int64_t *bad) {
    double started = begin();
    return end(of->factor(own, p, h, bad), TIMED_FACTOR, started);
}

static rq_status triangular_term(void *own, rq_prep *p, float *d) {
    double started = begin();
    return end(of->triangular_term(own, p, d), TIMED_TERMS, started);
}

static rq_status target_move(void *own, rq_prep *p, float *d) {
    double started = begin();
    return end(of->target_move(own, p, d), TIMED_TERMS, started);
}

static rq_status move(void *own, float *out, const float *w, int64_t n_out, const rq_prep *p, double by) {
    double started = begin();
    return end(of->move(own, out, w, n_out, p, by), swept ? TIMED_REFINE : TIMED_SWEEP, started);
}

static rq_status sweep(void *own, const rq_sweep *s, const char *label) {
    double started = begin();
    swept = true;
    return end(of->sweep(own, s, label), TIMED_SWEEP, started);
}

static rq_status refine(void *own, const rq_refine *r, const rq_prep *p, const char *label) {
    double started = begin();
    return end(of->refine(own, r, p, label), TIMED_REFINE, started);
}

rq_device timed_device(const rq_device *device, void (*wait)(void)) {
    of = rq_device_row(device);
    device_wait = wait;
    row = *of;
    row.factor = factor;
    row.triangular_term = triangular_term;
    row.target_move = target_move;
    row.move = move;
    row.sweep = sweep;
    row.refine = refine;
    return (rq_device){&row, rq_device_own(device)};
}

void timed_begin(void) {
    memset(timed_seconds, 0, sizeof timed_seconds);
    swept = false;
}
