/* SPDX-License-Identifier: Apache-2.0 */
/* Stream capture: not yet possible (cudaStreamBeginCapture is missing), so nothing is ever captured. */
#include "rt_capture.h"

bool rt_capture_forbids(const rt_stream *s) { return s->capture; }
cudaError_t rt_capture_work(rt_stream *s, rt_work *w) {
    (void)s;
    rt_work_drop(w);
    return cudaErrorNotSupported;
}
cudaError_t rt_capture_unsafe(void) { return cudaSuccess; }
cudaError_t rt_capture_waits(rt_stream *s) { return s->capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess; }
cudaError_t rt_capture_record(rt_stream *s, rt_event *e) {
    (void)s, (void)e;
    return cudaErrorNotSupported;
}
cudaError_t rt_capture_wait(rt_stream *s, rt_event *e) {
    (void)s, (void)e;
    return cudaErrorNotSupported;
}
cudaError_t rt_capture_event_used(rt_event *e) {
    (void)e;
    return cudaErrorCapturedEvent;
}
void rt_capture_forget(rt_event *e) { (void)e; }
