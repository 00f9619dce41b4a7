/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in for libcudart (rt_*.c): what its files share. Streams are queues that run late and in order, device memory
 * is memory of gs_mem_alloc, and a kernel is PTX that gs_launch interprets.
 *
 * One lock guards everything here. An API function is rt_enter ... rt_leave around internal functions, which expect the lock
 * to be held and never call API functions. */
#ifndef RQ_GPUSIM_RT_H
#define RQ_GPUSIM_RT_H
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include "gpusim.h"

enum { RT_MAX_DEVICES = 16 };

/* What simulated devices are like (as an H100): limits that launches are held to. */
enum {
    RT_SM_COUNT = 132,
    RT_SM_THREADS = 2048,
    RT_SM_BLOCKS = 32,
    RT_SM_SHARED = 233472,        /* 228 KiB */
    RT_BLOCK_SHARED = 49152,      /* without opting in */
    RT_BLOCK_SHARED_MAX = 232448, /* 227 KiB */
    RT_BLOCK_RESERVED = 1024,     /* shared memory of each block that the system takes */
    RT_BLOCK_THREADS = 1024,
    RT_CLUSTER_PORTABLE = 8,
    RT_CLUSTER_MAX = 16
};

/* ---- pointer -> pointer */
typedef struct rt_map {
    const void **key;
    void **value;
    size_t n, cap; /* cap: 0 or a power of two */
} rt_map;
void *rt_map_get(const rt_map *m, const void *key); /* NULL: absent */
void rt_map_put(rt_map *m, const void *key, void *value);

void *rt_calloc(size_t n, size_t bytes); /* never NULL: ends the process when there is no memory */
/* Makes room for one more element of `bytes` in the array *p of n elements. */
void rt_grow(void *p, size_t n, size_t *cap, size_t bytes);

/* ---- a call of the API */
typedef struct rt_thread {
    int device, depth;
    cudaError_t last;
    bool in_callback; /* inside a host function of a stream, where CUDA calls are not permitted */
    enum cudaStreamCaptureMode capture_mode;
    struct CUstream_st *own[RT_MAX_DEVICES]; /* the per-thread default stream of each device */
    struct rt_configuration {                /* of each <<<>>> in progress: an argument may launch something itself */
        dim3 grid, block;
        size_t shared;
        cudaStream_t stream;
    } configuration[8];
    int n_configuration;
} rt_thread;
extern _Thread_local rt_thread rt_self;
extern bool rt_ending; /* the process is about to end */

cudaError_t rt_enter(void);        /* takes the lock; the sticky error of the current device, if it has one */
cudaError_t rt_enter_always(void); /* the same, but a poisoned device does not matter */
cudaError_t rt_leave(cudaError_t e);
void rt_unlock_all(int *depth); /* around user code: gives the lock up ... */
void rt_lock_again(int depth);  /* ... and takes it back */
bool rt_wait(double seconds);   /* until another thread has changed something; false: the time is over */
void rt_changed(void);          /* wakes them */
#define RT_CALL(expression)                                                                                            \
    do {                                                                                                               \
        cudaError_t e_ = rt_enter();                                                                                   \
        if (e_ == cudaSuccess) e_ = (expression);                                                                      \
        return rt_leave(e_);                                                                                           \
    } while (0)
#define RT_CALL_ALWAYS(expression)                                                                                     \
    do {                                                                                                               \
        cudaError_t e_ = rt_enter_always();                                                                            \
        if (e_ == cudaSuccess) e_ = (expression);                                                                      \
        return rt_leave(e_);                                                                                           \
    } while (0)

typedef struct rt_device {
    cudaError_t sticky;         /* after a fault: what every later call returns */
    struct CUstream_st *legacy; /* the default stream, made at first use */
    size_t used, total;         /* bytes of device memory */
    size_t limit[16];           /* cudaLimit */
    unsigned flags;
    uint32_t peers; /* bit d: access to device d is enabled */
    struct CUmemPoolHandle_st *pool;
} rt_device;
extern rt_device rt_devices[RT_MAX_DEVICES];
int rt_device_count(void); /* GPUSIM_DEVICES, 1 without it */
rt_device *rt_current(void);
void rt_poison(int device, cudaError_t e);
const char *rt_error_text(cudaError_t e);
const char *rt_error_name(cudaError_t e);

/* ---- code: an image of device code, loaded on each device that uses it */
typedef struct rt_code {
    char *ptx;       /* NULL: there is none to run */
    const char *why; /* then this says why */
    cudaError_t why_error;
    char name[64];
    gs_module *module[RT_MAX_DEVICES];
    bool tried[RT_MAX_DEVICES], managed; /* managed: has managed variables, so all devices share one instance */
    struct CUkern_st *kernels;           /* known so far */
    struct rt_var *vars;
    struct rt_code *next; /* of all code there is */
} rt_code;
rt_code *rt_code_new(void);
/* The PTX of a fat binary or of PTX text itself; never NULL. */
rt_code *rt_code_of_fatbin(const void *fatbin);
rt_code *rt_code_of_image(const void *image); /* PTX text, a fat binary, or its wrapper */
cudaError_t rt_code_module(rt_code *c, int device, gs_module **m);

struct CUkern_st { /* cudaKernel_t; a cudaFunction_t is the same thing under another type */
    rt_code *code;
    const char *name;
    const void *host; /* address of its stub, NULL when it came from a library */
    gs_kernel *on[RT_MAX_DEVICES];
    int max_dynamic[RT_MAX_DEVICES];
    int carveout;
    bool non_portable_cluster;
    int required_cluster[3];
    struct CUkern_st *next;
};
typedef struct CUkern_st rt_kernel;
rt_kernel *rt_code_kernel(rt_code *c, const char *name, const void *host); /* makes it known; does not load */
rt_kernel *rt_kernel_find(const void *function); /* stub, cudaKernel_t or cudaFunction_t; NULL: none of ours */
cudaError_t rt_func_set_attribute(rt_kernel *k, enum cudaFuncAttribute a, int value, int device);
cudaError_t rt_kernel_load(rt_kernel *k, int device, gs_kernel **out, gs_kernel_info *info);

typedef struct rt_var { /* a __device__, __constant__ or __managed__ variable */
    rt_code *code;
    const char *name;
    void **managed; /* the host's pointer to it */
    size_t size;
    struct rt_var *next;
} rt_var;
cudaError_t rt_symbol(const void *symbol, void **address, size_t *bytes); /* on the current device */
void rt_code_reset(int device);                                           /* unloads everything from it */
void rt_code_unload(rt_code *c);                                          /* from all devices, for good */
cudaError_t rt_code_global(rt_code *c, const char *name, int device, void **address, size_t *bytes);

/* ---- memory */
typedef enum rt_mem { RT_PAGEABLE, RT_PINNED, RT_DEVICE, RT_MANAGED, RT_FREED } rt_mem;
typedef struct rt_range {
    uintptr_t start;
    size_t size;
    rt_mem kind;
    int device;
    unsigned flags;
    bool registered; /* pinned by cudaHostRegister: not ours to free */
    bool symbol;     /* a variable of a module */
} rt_range;
rt_range *rt_range_find(const void *p); /* holding the address, freed ones too; NULL: pageable */
rt_range *rt_range_add(void *p, size_t size, rt_mem kind, int device);
void rt_range_remove(const void *p, bool leave_trace);
rt_mem rt_mem_kind(const void *p);
/* Can the device touch [p, p + n)? Otherwise a finding (past the end, freed) and an error. */
cudaError_t rt_check_device(const char *call, const void *p, size_t n);
cudaError_t rt_device_alloc(void **p, size_t bytes, rt_mem kind);
cudaError_t rt_device_free(void *p);
void rt_memory_reset(int device);
extern bool rt_device_memory_used; /* something was ever allocated: leaks are worth a look at exit */

/* ---- work: what a stream or a graph node does */
typedef enum rt_work_kind {
    RT_WORK_KERNEL,
    RT_WORK_COPY,
    RT_WORK_SET,
    RT_WORK_HOST,
    RT_WORK_CALL,
    RT_WORK_RECORD,
    RT_WORK_WAIT,
    RT_WORK_FREE,
    RT_WORK_GRAPH,
    RT_WORK_EMPTY
} rt_work_kind;
typedef struct rt_work rt_work;
struct rt_work {
    rt_work_kind kind;
    int refs;
    cudaError_t (*run)(rt_work *w, struct CUstream_st *s); /* an error is a fault of the device: sticky */
    bool (*ready)(rt_work *w);                             /* NULL: always */
    void (*drop)(rt_work *w);                              /* frees what it owns, NULL: nothing */
};
/* A zeroed work of `bytes` (its struct starts with an rt_work) with one reference. */
void *rt_work_new(rt_work_kind kind, size_t bytes, cudaError_t (*run)(rt_work *, struct CUstream_st *));
rt_work *rt_work_keep(rt_work *w);
void rt_work_drop(rt_work *w);

/* ---- streams */
typedef struct rt_dep { /* done when the stream has done its operation of this number */
    struct CUstream_st *stream;
    uint64_t ticket;
} rt_dep;
typedef struct rt_op {
    struct rt_op *next;
    uint64_t ticket;
    rt_work *work;
    rt_dep *dep;
    size_t n_dep;
    bool running;
} rt_op;
struct CUstream_st {
    uint32_t magic;
    bool destroyed, legacy;
    int device, priority;
    unsigned flags;
    unsigned long long id;
    uint64_t issued, done;
    rt_op *head, *tail;
    struct rt_capture *capture;
    struct CUgraphNode_st **leaf; /* while capturing: what the next node depends on */
    size_t n_leaf, cap_leaf;
    cudaStreamAttrValue attribute[16];
    struct CUstream_st *next; /* of all streams, in the order of creation */
};
typedef struct CUstream_st rt_stream;
extern rt_stream *rt_streams;
rt_stream *rt_stream_new(int device, unsigned flags, int priority);
cudaError_t rt_stream_of(cudaStream_t handle, rt_stream **s); /* the default streams too */
/* Queues the work (or adds it to the graph that the stream captures) and takes over the caller's reference to it. */
cudaError_t rt_submit(rt_stream *s, rt_work *w);
cudaError_t rt_submit_after(rt_stream *s, rt_work *w, const rt_dep *dep, size_t n_dep);
cudaError_t rt_run_to(rt_stream *s, uint64_t ticket); /* runs what is needed for it, and no more */
cudaError_t rt_run_device(int device);
void rt_run_one(rt_stream *s);                             /* one step, for queries */
cudaError_t rt_wait_ready(rt_work *w, const rt_stream *s); /* for work that runs as a part of other work */
cudaError_t rt_sync_stream(rt_stream *s);
void rt_run_everything(void);

#endif
