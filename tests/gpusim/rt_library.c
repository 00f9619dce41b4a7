/* SPDX-License-Identifier: Apache-2.0 */
/* cudaLibrary*: code loaded at run time. Kernels are known by their names in the PTX. */
#include <stdlib.h>
#include <string.h>

#include "rt.h"
#include "rt_graph.h"

enum { LIBRARY_MAGIC = 0x4c494231 };
struct CUlib_st {
    uint32_t magic;
    rt_code *code; /* NULL once unloaded */
};

static cudaError_t load_code(cudaLibrary_t *library, rt_code *c) {
    gs_module *m;
    cudaError_t e = rt_code_module(c, rt_self.device, &m);
    if (e != cudaSuccess) return e;
    struct CUlib_st *l = rt_calloc(1, sizeof *l);
    l->magic = LIBRARY_MAGIC;
    l->code = c;
    *library = l;
    return cudaSuccess;
}

static cudaError_t load_data(cudaLibrary_t *library, const void *image) {
    if (!library || !image) return cudaErrorInvalidValue;
    return load_code(library, rt_code_of_image(image));
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *image, enum cudaJitOption *jit, void **jit_values,
                                unsigned n_jit, enum cudaLibraryOption *options, void **values, unsigned n) {
    (void)jit, (void)jit_values, (void)n_jit, (void)options, (void)values, (void)n; /* about compiling: nothing to do */
    RT_CALL(load_data(library, image));
}

/* The whole file with a nul after it; NULL when it cannot be read. */
static char *read_file(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *text = NULL;
    size_t n = 0, cap = 0;
    for (int c; (c = getc(f)) != EOF;) {
        rt_grow(&text, n, &cap, 1);
        text[n++] = (char)c;
    }
    fclose(f);
    rt_grow(&text, n, &cap, 1);
    text[n] = 0;
    return text;
}

static cudaError_t load_file(cudaLibrary_t *library, const char *path) {
    if (!library || !path) return cudaErrorInvalidValue;
    char *image = read_file(path);
    if (!image) return cudaErrorFileNotFound;
    rt_code *c = rt_code_of_image(image); /* copies the text */
    free(image);
    const char *base = strrchr(path, '/');
    snprintf(c->name, sizeof c->name, "%s", base ? base + 1 : path);
    return load_code(library, c);
}

cudaError_t cudaLibraryLoadFromFile(cudaLibrary_t *library, const char *path, enum cudaJitOption *jit,
                                    void **jit_values, unsigned n_jit, enum cudaLibraryOption *options, void **values,
                                    unsigned n) {
    (void)jit, (void)jit_values, (void)n_jit, (void)options, (void)values, (void)n;
    RT_CALL(load_file(library, path));
}

static bool is_library(cudaLibrary_t l) { return l && l->magic == LIBRARY_MAGIC && l->code; }

/* Waits for the devices first. Its kernels can be launched no more. */
static cudaError_t unload(cudaLibrary_t l) {
    if (!is_library(l)) return cudaErrorInvalidResourceHandle;
    rt_run_everything();
    rt_code_unload(l->code);
    l->code = NULL;
    rt_bury(l);
    return rt_current()->sticky;
}

cudaError_t cudaLibraryUnload(cudaLibrary_t l) { RT_CALL(unload(l)); }

static cudaError_t library_kernel(cudaKernel_t *kernel, cudaLibrary_t l, const char *name) {
    if (!kernel || !name) return cudaErrorInvalidValue;
    if (!is_library(l)) return cudaErrorInvalidResourceHandle;
    gs_module *m;
    cudaError_t e = rt_code_module(l->code, rt_self.device, &m);
    if (e != cudaSuccess) return e;
    if (!gs_module_kernel(m, name)) return cudaErrorSymbolNotFound;
    *kernel = rt_code_kernel(l->code, name, NULL);
    return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t l, const char *name) {
    RT_CALL(library_kernel(kernel, l, name));
}

static cudaError_t library_global(void **address, size_t *bytes, cudaLibrary_t l, const char *name) {
    if (!name || (!address && !bytes)) return cudaErrorInvalidValue;
    if (!is_library(l)) return cudaErrorInvalidResourceHandle;
    cudaError_t e = rt_code_global(l->code, name, rt_self.device, address, bytes);
    return e == cudaErrorInvalidSymbol ? cudaErrorSymbolNotFound : e;
}

cudaError_t cudaLibraryGetGlobal(void **address, size_t *bytes, cudaLibrary_t l, const char *name) {
    RT_CALL(library_global(address, bytes, l, name));
}
