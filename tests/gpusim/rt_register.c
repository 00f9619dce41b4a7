/* SPDX-License-Identifier: Apache-2.0 */
/* What nvcc's host code calls before main: fat binaries, kernels and variables make themselves known. Nothing is loaded
 * until it is used, as with the real library's lazy loading. Also the two halves of <<<>>>. */
#include <stdlib.h>
#include <string.h>

#include "rt.h"

/* Declared by nvcc in each file that it compiles, in no header for C. */
void **__cudaRegisterFatBinary(void *fatbin);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
char __cudaInitModule(void **handle);
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int thread_limit,
                            uint3 *tid, uint3 *bid, dim3 *block, dim3 *grid, int *warp_size);
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t size, int constant,
                       int global);
void __cudaRegisterManagedVar(void **handle, void **host, char *device, const char *name, int ext, size_t size,
                              int constant, int global);
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream);
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream);
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function);

static rt_map kernels_by_address, vars_by_address;
static rt_code *all_code;

rt_code *rt_code_new(void) {
    rt_code *c = rt_calloc(1, sizeof *c);
    snprintf(c->name, sizeof c->name, "module");
    c->next = all_code;
    all_code = c;
    return c;
}

void **__cudaRegisterFatBinary(void *fatbin) {
    rt_enter_always();
    rt_code *c = rt_code_of_fatbin(fatbin);
    rt_leave(cudaSuccess);
    return (void **)c;
}

void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }

/* At exit. Work may still be queued, so the code stays. */
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }

rt_kernel *rt_code_kernel(rt_code *c, const char *name, const void *host) {
    for (rt_kernel *k = c->kernels; k; k = k->next) {
        if (k->host == host && !strcmp(k->name, name)) return k;
    }
    rt_kernel *k = rt_calloc(1, sizeof *k);
    k->code = c;
    k->name = strdup(name);
    k->host = host;
    k->carveout = -1;
    for (int d = 0; d < RT_MAX_DEVICES; ++d) k->max_dynamic[d] = -1;
    k->next = c->kernels;
    c->kernels = k;
    if (host) rt_map_put(&kernels_by_address, host, k);
    rt_map_put(&kernels_by_address, k, k);
    return k;
}

rt_kernel *rt_kernel_find(const void *function) { return rt_map_get(&kernels_by_address, function); }

void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int thread_limit,
                            uint3 *tid, uint3 *bid, dim3 *block, dim3 *grid, int *warp_size) {
    (void)device, (void)thread_limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp_size;
    rt_enter_always();
    rt_code_kernel((rt_code *)handle, name, host);
    rt_leave(cudaSuccess);
}

static rt_var *add_var(void **handle, const void *host, const char *name, size_t size) {
    rt_code *c = (rt_code *)handle;
    rt_var *v = rt_calloc(1, sizeof *v);
    v->code = c;
    v->name = name;
    v->size = size;
    v->next = c->vars;
    c->vars = v;
    rt_map_put(&vars_by_address, host, v);
    return v;
}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t size, int constant,
                       int global) {
    (void)device, (void)ext, (void)constant, (void)global;
    rt_enter_always();
    add_var(handle, host, name, size);
    rt_leave(cudaSuccess);
}

void __cudaRegisterManagedVar(void **handle, void **host, char *device, const char *name, int ext, size_t size,
                              int constant, int global) {
    (void)device, (void)ext, (void)constant, (void)global;
    rt_enter_always();
    rt_var *v = add_var(handle, host, name, size);
    v->managed = host;
    v->code->managed = true;
    rt_leave(cudaSuccess);
}

/* nvcc calls it when the host first touches a managed variable of the module. */
char __cudaInitModule(void **handle) {
    rt_enter_always();
    gs_module *m;
    cudaError_t e = rt_code_module((rt_code *)handle, 0, &m);
    rt_leave(e);
    return e == cudaSuccess;
}

/* ---- loading */

static void load_failed(rt_code *c, const char *why) {
    gs_find_host("module", "%s cannot be loaded: %s", c->name, why);
}

/* Variables become memory that copies may touch, and the host learns where managed ones are. */
static cudaError_t place_vars(rt_code *c, gs_module *m, int device) {
    for (rt_var *v = c->vars; v; v = v->next) {
        size_t bytes;
        void *p = gs_module_symbol(m, v->name, &bytes);
        if (!p) continue; /* unused: nvcc leaves it out of the PTX */
        rt_range *r = rt_range_add(p, bytes, v->managed ? RT_MANAGED : RT_DEVICE, device);
        r->symbol = true;
        if (v->managed) *v->managed = p;
    }
    return cudaSuccess;
}

cudaError_t rt_code_module(rt_code *c, int device, gs_module **m) {
    if (c->managed) device = 0;
    if (!c->tried[device]) {
        c->tried[device] = true;
        if (!c->ptx) {
            load_failed(c, c->why);
            return c->why_error;
        }
        c->module[device] = gs_load(c->ptx, c->name);
        if (!c->module[device]) {
            load_failed(c, gs_error());
        } else {
            place_vars(c, c->module[device], device);
        }
    }
    *m = c->module[device];
    if (*m) return cudaSuccess;
    return c->ptx ? cudaErrorInvalidPtx : c->why_error;
}

cudaError_t rt_kernel_load(rt_kernel *k, int device, gs_kernel **out, gs_kernel_info *info) {
    if (!k->on[device]) {
        gs_module *m;
        if (!k->code) return cudaErrorInvalidDeviceFunction;
        cudaError_t e = rt_code_module(k->code, device, &m);
        if (e != cudaSuccess) return e;
        k->on[device] = gs_module_kernel(m, k->name);
        if (!k->on[device]) return cudaErrorInvalidDeviceFunction;
    }
    *out = k->on[device];
    if (info) gs_kernel_describe(*out, info);
    return cudaSuccess;
}

/* A variable that was asked for by name alone. */
static void remember_var(rt_code *c, const char *name, size_t size) {
    for (rt_var *v = c->vars; v; v = v->next) {
        if (!strcmp(v->name, name)) return;
    }
    rt_var *v = rt_calloc(1, sizeof *v);
    v->code = c;
    v->name = strdup(name);
    v->size = size;
    v->next = c->vars;
    c->vars = v;
}

cudaError_t rt_code_global(rt_code *c, const char *name, int device, void **address, size_t *bytes) {
    gs_module *m;
    cudaError_t e = rt_code_module(c, device, &m);
    if (e != cudaSuccess) return e;
    size_t n = 0;
    void *p = gs_module_symbol(m, name, &n);
    if (!p) return cudaErrorInvalidSymbol;
    if (rt_mem_kind(p) == RT_PAGEABLE) {
        rt_range_add(p, n, RT_DEVICE, device)->symbol = true;
        remember_var(c, name, n);
    }
    if (address) *address = p;
    if (bytes) *bytes = n;
    return cudaSuccess;
}

cudaError_t rt_symbol(const void *symbol, void **address, size_t *bytes) {
    rt_var *v = rt_map_get(&vars_by_address, symbol);
    if (!v) return cudaErrorInvalidSymbol;
    return rt_code_global(v->code, v->name, rt_self.device, address, bytes);
}

static void unload_from(rt_code *c, int device) {
    c->tried[device] = false;
    if (!c->module[device]) return;
    for (rt_var *v = c->vars; v; v = v->next) {
        size_t bytes;
        const void *p = gs_module_symbol(c->module[device], v->name, &bytes);
        if (p) rt_range_remove(p, false);
    }
    for (rt_kernel *k = c->kernels; k; k = k->next) {
        k->on[device] = NULL;
        k->max_dynamic[device] = -1;
    }
    gs_unload(c->module[device]);
    c->module[device] = NULL;
}

void rt_code_reset(int device) {
    for (rt_code *c = all_code; c; c = c->next) unload_from(c, device);
}

/* Graphs may still hold its kernels, so those stay, without code. */
void rt_code_unload(rt_code *c) {
    for (int d = 0; d < RT_MAX_DEVICES; ++d) unload_from(c, d);
    for (rt_kernel *k = c->kernels; k; k = k->next) {
        k->code = NULL;
        rt_map_put(&kernels_by_address, k, NULL);
    }
    free(c->ptx);
    c->ptx = NULL;
    c->why = "its library was unloaded";
    c->why_error = cudaErrorInvalidDeviceFunction;
}

/* ---- <<<>>> */

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    enum { DEEPEST = sizeof rt_self.configuration / sizeof rt_self.configuration[0] };
    if (rt_self.n_configuration == DEEPEST) return 1;
    rt_self.configuration[rt_self.n_configuration++] = (struct rt_configuration){grid, block, shared, stream};
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    if (!rt_self.n_configuration) return cudaErrorMissingConfiguration;
    const struct rt_configuration *top = &rt_self.configuration[--rt_self.n_configuration];
    *grid = top->grid;
    *block = top->block;
    *shared = top->shared;
    memcpy(stream, &top->stream, sizeof top->stream);
    return cudaSuccess;
}

static cudaError_t get_kernel(cudaKernel_t *kernel, const void *function) {
    rt_kernel *k = rt_kernel_find(function);
    if (!k) return cudaErrorInvalidDeviceFunction;
    *kernel = k;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    RT_CALL_ALWAYS(get_kernel(kernel, function));
}
cudaError_t cudaGetKernel(cudaKernel_t *kernel, const void *function) { RT_CALL(get_kernel(kernel, function)); }

static cudaError_t get_function(cudaFunction_t *function, const void *symbol) {
    rt_kernel *k = rt_kernel_find(symbol);
    if (!k) return cudaErrorInvalidDeviceFunction;
    *function = (cudaFunction_t)k;
    return cudaSuccess;
}

cudaError_t cudaGetFuncBySymbol(cudaFunction_t *function, const void *symbol) {
    RT_CALL(get_function(function, symbol));
}
