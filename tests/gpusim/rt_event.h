/* SPDX-License-Identifier: Apache-2.0 */
/* Events. */
#ifndef RQ_GPUSIM_RT_EVENT_H
#define RQ_GPUSIM_RT_EVENT_H
#include "rt.h"

struct CUevent_st {
    uint32_t magic;
    int refs, device;
    unsigned flags;
    bool destroyed, recorded;
    rt_dep at;                  /* where it was last recorded */
    int64_t ns;                 /* when that was reached */
    struct rt_capture *capture; /* last recorded in this capture, and what was before it there */
    struct CUgraphNode_st **capture_leaf;
    size_t n_leaf;
    struct CUevent_st *next_captured;
};
typedef struct CUevent_st rt_event;
typedef struct rt_event_work { /* RT_WORK_RECORD and RT_WORK_WAIT */
    rt_work base;
    rt_event *event;
} rt_event_work;

cudaError_t rt_event_of(cudaEvent_t handle, rt_event **e);
void rt_event_drop(rt_event *e);
rt_work *rt_record_new(rt_event *e);
rt_work *rt_wait_new(rt_event *e);

#endif
