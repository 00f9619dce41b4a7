/* SPDX-License-Identifier: Apache-2.0 */
/* Adam (Kingma and Ba, arXiv:1412.6980) with bias correction. There are tens of steps rather than thousands, so the
 * second moment forgets quickly. */
#include <math.h>

#include "tune.h"

static const double BETA_MEAN = 0.9, BETA_SQUARE = 0.95;
static const double EPSILON = 1e-12;   /* gradients by relative changes of single scales are about 1e-6 */
static const double FINAL_RATE = 0.05; /* of the full one, at the last step */

rq_status rq_adam_new(rq_adam *a, const rq_tuner *t) {
    rq_status status = RQ_OK;
    *a = (rq_adam){.end = {t->n_scale, t->first_entry, t->n_param}};
    RQ_TRY(RQ_NEW_ZERO(a->mean, t->n_param));
    RQ_TRY(RQ_NEW_ZERO(a->square, t->n_param));
done:
    if (status != RQ_OK) rq_adam_free(a);
    return status;
}

void rq_adam_free(rq_adam *a) {
    free(a->mean);
    free(a->square);
    *a = (rq_adam){0};
}

void rq_adam_step(rq_adam *a, float *value, const float *unit, const float *grad, const double *rate) {
    ++a->step;
    double unbias_mean = 1.0 - pow(BETA_MEAN, (double)a->step), unbias_square = 1.0 - pow(BETA_SQUARE, (double)a->step);
    int class = 0;
    for (int64_t i = 0; i < a->end[RQ_TUNE_CLASSES - 1]; ++i) {
        while (i >= a->end[class]) ++class;
        double g = (double)grad[i];
        double mean = BETA_MEAN * (double)a->mean[i] + (1.0 - BETA_MEAN) * g;
        /* fp32 holds squares down to 1e-45: the moment is kept as a root, so that gradients of 1e-30 still count. */
        double square = BETA_SQUARE * (double)a->square[i] * (double)a->square[i] + (1.0 - BETA_SQUARE) * g * g;
        a->mean[i] = (float)mean;
        a->square[i] = (float)sqrt(square);
        value[i] -=
            (float)(rate[class] * (double)unit[i] * (mean / unbias_mean) / (sqrt(square / unbias_square) + EPSILON));
    }
}

double rq_adam_schedule(int64_t step, int64_t n_steps, double warmup_frac) {
    double warmup = fmax(1.0, floor(warmup_frac * (double)n_steps + 0.5)), at = (double)step;
    if (at < warmup) return (at + 1.0) / warmup;
    double done = (at - warmup) / fmax(1.0, (double)n_steps - warmup);
    return FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + cos(3.14159265358979323846 * done));
}
