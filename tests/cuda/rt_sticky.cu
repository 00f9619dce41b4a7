/* SPDX-License-Identifier: Apache-2.0 */
/* Faults of kernels: each has its error, every later call returns it, and cudaDeviceReset gives the device back. Every fault
 * is made in a process of its own, as a real device may not survive it within one. */
#include <sys/wait.h>
#include <unistd.h>

#include "cudatest.h"
#ifdef RQ_TEST_SIM
extern "C" {
#include "../gpusim/gpusim.h"
}
#endif

__global__ void write_far(int *p) { p[threadIdx.x + (size_t)(1 << 28)] = 1; }
__global__ void write_crooked(int *p) { *(int *)((char *)p + 2) = 1; }
__global__ void trap(int *p) {
    if (p) asm volatile("trap;");
}
__global__ void fine(int *p) { p[threadIdx.x] = 5; }

/* 0: as it should be. */
static int faulty(void (*kernel)(int *), cudaError_t want, cudaError_t also) {
    int *p = NULL, host[32];
    cudaStream_t s;
    CHECK_CUDA(cudaMalloc((void **)&p, sizeof host));
    CHECK_CUDA(cudaStreamCreate(&s));
    kernel<<<1, 32, 0, s>>>(p);
    cudaError_t launched = cudaGetLastError(), e = cudaStreamSynchronize(s);
    if (launched != cudaSuccess || (e != want && e != also)) {
        fprintf(stderr, "the launch: %s, the stream: %s, expected %s\n", cudaGetErrorName(launched),
                cudaGetErrorName(e), cudaGetErrorName(want));
        return 1;
    }
    int wrong = 0;
    void *q = NULL;
    wrong += cudaMalloc(&q, 16) != e;
    wrong += cudaMemcpy(host, p, sizeof host, cudaMemcpyDeviceToHost) != e;
    wrong += cudaDeviceSynchronize() != e;
    wrong += cudaGetLastError() != e;
    wrong += cudaGetLastError() != e; /* it stays */
    fine<<<1, 32>>>(p);
    wrong += cudaPeekAtLastError() != e;
    if (wrong) fprintf(stderr, "%d of 6 later calls do not return %s\n", wrong, cudaGetErrorName(e));
#ifdef RQ_TEST_SIM
    cudaDeviceReset();
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaMalloc((void **)&p, sizeof host));
    fine<<<1, 32>>>(p);
    CHECK_CUDA(cudaMemcpy(host, p, sizeof host, cudaMemcpyDeviceToHost));
    wrong += host[31] != 5;
    wrong += gs_findings() == 0; /* the report says where it was */
#endif
    return wrong;
}

/* A new process, so that nothing of CUDA has begun in it. */
static void expect_fault(void (*kernel)(int *), cudaError_t want, cudaError_t also) {
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) RQ_DIE("fork failed");
    if (child == 0) {
        int status = faulty(kernel, want, also);
        fflush(NULL);
        _exit(status != 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ_AT(want, status, 0);
}

/* Whether there is a device is asked in a child as well. */
static int skip_code(void) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        rq_need_device(80);
        fflush(NULL);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(void) {
    int skip = skip_code();
    if (skip) return skip;
    expect_fault(write_far, cudaErrorIllegalAddress, cudaErrorIllegalAddress);
    expect_fault(write_crooked, cudaErrorMisalignedAddress, cudaErrorMisalignedAddress);
    expect_fault(trap, cudaErrorLaunchFailure, cudaErrorIllegalInstruction); /* depends on the driver */
    return rq_done(__FILE__);
}
