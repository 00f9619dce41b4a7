/* SPDX-License-Identifier: Apache-2.0 */
/* A device whose operations do what another's do and keep the time (C and C++). */
#ifndef BENCH_QUANTIZE_OPS_H
#define BENCH_QUANTIZE_OPS_H

#include "device.h"
#include "device_plan.h"

enum { TIMED_GRAM, TIMED_FACTOR, TIMED_TERMS, TIMED_SWEEP, TIMED_REFINE, TIMED_STAGES };
extern const char *const timed_names[TIMED_STAGES];

/* Seconds of the stages of rq_device_work. A moved target belongs to the sweep, and after it to the refinement. The Gram stage is its caller's to time, as
 * a whole: chunks follow one another without waiting. */
extern double timed_seconds[TIMED_STAGES];

/* device: kept, as what comes back; NULL is the CPU. wait: until a device has done what it was given; NULL: nothing to wait for. */
rq_device timed_device(const rq_device *device, void (*wait)(void));
void timed_begin(void);

/* The counts of a matrix in the order of the stages. */
static inline const rq_work *timed_work(const rq_device_work *w, int stage) {
    const rq_work *all[] = {&w->gram, &w->factor, &w->terms, &w->sweep, &w->refine};
    return all[stage];
}

#endif
