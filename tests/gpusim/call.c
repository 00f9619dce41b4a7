/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that the CUDA runtime provides to device code: vprintf and __assertfail. Parameters lie in the frame of the caller
 * (parse_module.c); strings are in device memory. */
#include <ctype.h>

#include "core.h"

static uint64_t parameter(const gs_warp *w, const gs_ins *i, int k, int lane) {
    uint64_t v;
    memcpy(&v, w->local + (size_t)lane * w->block->kernel->local_bytes + (uint64_t)i->op[k].imm, 8);
    return v;
}
/* A string that the device points to; NULL when it does not end inside its allocation. */
static const char *text_at(gs_warp *w, uint64_t addr) {
    for (uint64_t n = 1; n < 65536; ++n) {
        if (!gs_mem_check(w->block->worker, addr, n)) return NULL;
        if (!((const char *)(uintptr_t)addr)[n - 1]) return (const char *)(uintptr_t)addr;
    }
    return NULL;
}
/* One conversion of printf with the next argument of the buffer, which is laid out as a C struct of promoted values. */
static int convert(gs_warp *w, const char **f, const uint8_t *args, size_t *at, size_t size, char *out, size_t room) {
    char spec[32];
    size_t n = 0;
    bool wide = false;
    const char *s = *f;
    spec[n++] = *s++;
    while (*s && strchr("-+ #0123456789.hlzjt", *s) && n + 4 < sizeof spec) {
        if (strchr("lzjt", *s))
            wide = true;
        else if (*s != 'h')
            spec[n++] = *s;
        ++s;
    }
    char c = *s ? *s++ : '%';
    *f = s;
    if (c == '%') return snprintf(out, room, "%%");
    bool real = strchr("aAeEfFgG", c), eight = real || wide || c == 's' || c == 'p';
    size_t bytes = eight ? 8 : 4;
    *at = (*at + bytes - 1) & ~(bytes - 1);
    if (*at + bytes > size) return snprintf(out, room, "(missing)");
    uint64_t v = 0;
    memcpy(&v, args + *at, bytes);
    *at += bytes;
    spec[n] = 0;
    if (real) {
        double x;
        memcpy(&x, &v, 8);
        spec[n++] = c;
        spec[n] = 0;
        return snprintf(out, room, spec, x);
    }
    if (c == 's') {
        const char *t = text_at(w, v);
        snprintf(spec + n, sizeof spec - n, "s");
        return snprintf(out, room, spec, t ? t : "(bad string)");
    }
    if (c == 'p') return snprintf(out, room, "0x%llx", (unsigned long long)v);
    if (c == 'c') return snprintf(out, room, "%c", (int)v);
    if (!strchr("diouxX", c)) return snprintf(out, room, "(%%%c?)", c);
    snprintf(spec + n, sizeof spec - n, "ll%c", c);
    if (c == 'd' || c == 'i') return snprintf(out, room, spec, eight ? (long long)v : (long long)(int32_t)v);
    return snprintf(out, room, spec, (unsigned long long)v);
}
static void device_printf(gs_warp *w, const gs_ins *i, uint32_t m) {
    for (; m; m &= m - 1) {
        int l = __builtin_ctz(m), printed = 0;
        const char *f = text_at(w, parameter(w, i, 0, l));
        uint64_t buffer = parameter(w, i, 1, l);
        const uint8_t *args = NULL;
        size_t size = 0, at = 0, n = 0;
        if ((buffer & GS_WINDOW_MASK) == GS_LOCAL_WINDOW) {
            uint64_t off = buffer & ~GS_WINDOW_MASK;
            size = off < w->block->kernel->local_bytes ? w->block->kernel->local_bytes - off : 0;
            args = w->local + (size_t)l * w->block->kernel->local_bytes + off;
        }
        char out[2048];
        if (!f) {
            gs_find(w, GS_FAULT_ADDRESS, "printf", l, -1, "the format is no string in device memory");
            continue;
        }
        while (*f && n + 1 < sizeof out) {
            if (*f != '%') {
                out[n++] = *f++;
                continue;
            }
            int k = convert(w, &f, args, &at, size, out + n, sizeof out - n);
            n += k < 0 ? 0 : (size_t)k < sizeof out - n ? (size_t)k : sizeof out - n - 1;
            printed++;
        }
        fwrite(out, 1, n, stdout);
        if (i->imm != ~0ull) memcpy(w->local + (size_t)l * w->block->kernel->local_bytes + i->imm, &printed, 4);
    }
}
/* __assertfail(message, file, line, function, size of a character) */
static void device_assert(gs_warp *w, const gs_ins *i, uint32_t m) {
    int l = __builtin_ctz(m);
    const char *message = text_at(w, parameter(w, i, 0, l)), *file = text_at(w, parameter(w, i, 1, l)),
               *function = text_at(w, parameter(w, i, 3, l));
    gs_stop(w, GS_FAULT_ASSERT, "assertion", l, "%s:%u: %s: assertion \"%s\" failed", file ? file : "?",
            (unsigned)parameter(w, i, 2, l), function ? function : "?", message ? message : "?");
}
gs_exec_fn gs_builtin_call(const char *name) {
    if (!strcmp(name, "vprintf")) return device_printf;
    if (!strcmp(name, "__assertfail")) return device_assert;
    return NULL;
}
