/* SPDX-License-Identifier: Apache-2.0 */
/* Copies and fills as work, for streams and graph nodes alike. */
#ifndef RQ_GPUSIM_RT_COPY_H
#define RQ_GPUSIM_RT_COPY_H
#include "rt.h"

typedef struct rt_copy {
    void *dst;
    const void *src;
    size_t width, height, depth; /* bytes, rows, slices */
    size_t dst_pitch, src_pitch, dst_slice, src_slice;
    enum cudaMemcpyKind kind;
} rt_copy;
typedef struct rt_copy_work {
    rt_work base;
    rt_copy copy;
    bool dst_ranged, src_ranged; /* in memory that has an end, and can be freed */
    void *staged;                /* the bytes of a pageable source, read when the copy was called */
} rt_copy_work;
cudaError_t rt_copy_check(const char *call, const rt_copy *c);
rt_work *rt_copy_new(const rt_copy *c);
cudaError_t rt_copy_of_3d(const struct cudaMemcpy3DParms *p, rt_copy *c);

typedef struct rt_fill {
    void *dst;
    size_t pitch, width, height, depth; /* width in elements */
    unsigned value, element;            /* element: 1, 2 or 4 bytes */
} rt_fill;
typedef struct rt_fill_work {
    rt_work base;
    rt_fill fill;
} rt_fill_work;
cudaError_t rt_fill_check(const char *call, const rt_fill *f);
rt_work *rt_fill_new(const rt_fill *f);

#endif
