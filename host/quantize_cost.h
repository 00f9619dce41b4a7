/* SPDX-License-Identifier: Apache-2.0 */
/* What quantizing a model on given devices will take: the work that device_plan.c counts, over rates that bench_quantize measured (--rates) or that follow
 * from a data sheet. */
#ifndef RQ_QUANTIZE_COST_H
#define RQ_QUANTIZE_COST_H

#include "quantize.h"

/* "8xH100-80G", "1xcpu": how many, which, and the memory of each in bytes. */
typedef struct rq_device_list {
    int n;
    char name[32];
    double memory; /* 0: not known (the CPU's is the machine's) */
} rq_device_list;
/* RQ_ERR_ARG with a sentence. Without a memory, that of the table of nominal rates. */
rq_status rq_device_list_parse(rq_device_list *d, const char *text);

/* Operations (products, the factor, and those of our kernels) a second by stage; bytes a second; seconds. */
typedef struct rq_rates {
    bool measured;
    double forward, gram, factor, terms, sweep, refine;
    double forward_bf16, gram_bf16; /* the first two with job->bf16 */
    double host;                    /* entries of H and W that the CPU goes through around the device's operations */
    double bus, disk, net;          /* to the device; of the spill files; between ranks, per rank */
    double launch;                  /* one launch of the sweep and of the refinement */
} rq_rates;
/* From the object that bench_quantize --rates wrote; with path NULL shares of a data sheet's peaks (docs/devices.md has both), which only some names have. */
rq_status rq_rates_of(rq_rates *r, const rq_device_list *d, const char *path);

/* The plan of z, on these devices with a rank each; seconds follow from the rates. */
rq_status rq_quantize_cost(rq_cost *c, const rq_quantizer *z, const rq_rates *r, const rq_device_list *on);

#endif
