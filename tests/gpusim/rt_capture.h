/* SPDX-License-Identifier: Apache-2.0 */
/* Stream capture, as the queue and the other calls see it. */
#ifndef RQ_GPUSIM_RT_CAPTURE_H
#define RQ_GPUSIM_RT_CAPTURE_H
#include "rt.h"
#include "rt_event.h"

/* Would work on this stream, which captures nothing itself, disturb a capture in progress? */
bool rt_capture_forbids(const rt_stream *s);
/* Adds the work to the graph of the stream's capture (or says why not), and takes over the reference. */
cudaError_t rt_capture_work(rt_stream *s, rt_work *w);
/* A call that is not allowed while something is captured (memory management, synchronising): the error, and the end of
 * those captures. */
cudaError_t rt_capture_unsafe(void);
/* Waiting for a stream that captures: the same, for its capture. */
cudaError_t rt_capture_waits(rt_stream *s);
/* Waiting for the device: for whatever captures on it, of any thread and mode. */
cudaError_t rt_capture_device_waits(int device);
/* Events inside a capture, and their use from outside of it. */
cudaError_t rt_capture_record(rt_stream *s, rt_event *e);
cudaError_t rt_capture_wait(rt_stream *s, rt_event *e);
cudaError_t rt_capture_event_used(rt_event *e);
void rt_capture_forget(rt_event *e);

#endif
