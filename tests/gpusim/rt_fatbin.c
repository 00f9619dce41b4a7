/* SPDX-License-Identifier: Apache-2.0 */
/* Finds the PTX in the fat binary that nvcc embeds. Layout (fatbinary_section.h for the wrapper; the rest as nvcc 13 writes
 * it, all little-endian):
 *
 *   image   u32 magic 0xBA55ED50, u16 version, u16 header bytes, u64 bytes of all entries
 *   entry   u16 kind (1 PTX, 2 machine code), u16 version, u32 header bytes, u64 payload bytes, u32 bytes compressed to,
 *           u32 ..., u16 minor, u16 major, u32 architecture (90), u32 name offset, u32 name bytes, u64 flags, u64 ...,
 *           u64 bytes when decompressed; then the payload
 *
 * Of several PTX entries the one for the highest architecture up to sm_90 is taken, sm_90a before sm_90. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "rt.h"

enum {
    WRAPPER_MAGIC = 0x466243B1,
    WRAPPER_LINKED = 2, /* of relocatable device code */
    KIND_PTX = 1,
    FLAG_LZ4 = 0x2000,
    FLAG_ZSTD = 0x8000,
    BEST_ARCH = 90
};
static const uint32_t IMAGE_MAGIC = 0xBA55ED50u;

typedef struct wrapper {
    uint32_t magic, version;
    const uint8_t *data;
    const void *more;
} wrapper;

typedef struct image_head {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
} image_head;

typedef struct entry_head {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes, unknown;
    uint16_t minor, major;
    uint32_t arch, name_offset, name_bytes;
    uint64_t flags, unknown2, full_bytes;
} entry_head;

static rt_code *refuse(rt_code *c, cudaError_t e, const char *why) {
    c->why = why;
    c->why_error = e;
    return c;
}

static char *copy_text(const char *text, size_t n) {
    char *copy = rt_calloc(n + 1, 1);
    memcpy(copy, text, n);
    return copy;
}

/* Better than what we have? 90a counts as 90.5. The 'a' is in the text: the entry's own mark for it is not documented. */
static int rank_of(const entry_head *e, const char *text, size_t n) {
    if (e->arch > BEST_ARCH) return -1;
    char target[32] = "";
    const char *at = memmem(text, n, ".target", 7);
    if (at && (size_t)(text + n - at) > sizeof target) {
        at += 7;
        while (isspace((unsigned char)*at)) at++;
        size_t k = 0;
        while (k + 1 < sizeof target && (isalnum((unsigned char)at[k]) || at[k] == '_')) k++;
        memcpy(target, at, k);
    }
    size_t len = strlen(target);
    bool specific = len && target[len - 1] == 'a';
    if (specific && e->arch != BEST_ARCH) return -1; /* runs on that architecture alone */
    return (int)e->arch * 2 + specific;
}

static rt_code *from_image(const uint8_t *data) {
    rt_code *c = rt_code_new();
    image_head head;
    memcpy(&head, data, sizeof head);
    const uint8_t *at = data + head.header_bytes, *end = at + head.bytes;
    int best = -1, n_ptx = 0, n_compressed = 0;
    const char *text = NULL;
    size_t text_bytes = 0;
    while (at + sizeof(entry_head) <= end) {
        entry_head e;
        memcpy(&e, at, sizeof e);
        if (e.header_bytes < sizeof e || e.bytes > (uint64_t)(end - at) - e.header_bytes) {
            return refuse(c, cudaErrorInvalidKernelImage, "the fat binary is damaged");
        }
        const char *payload = (const char *)at + e.header_bytes;
        at += e.header_bytes + e.bytes;
        if (e.kind != KIND_PTX) continue;
        n_ptx++;
        if (e.compressed_bytes || e.flags & (FLAG_LZ4 | FLAG_ZSTD)) {
            n_compressed++;
            continue;
        }
        size_t n = strnlen(payload, (size_t)e.bytes);
        int rank = rank_of(&e, payload, n);
        if (rank <= best) continue;
        best = rank;
        text = payload;
        text_bytes = n;
        if (e.name_bytes && e.name_offset + e.name_bytes <= e.header_bytes) {
            int len = (int)strnlen(payload - e.header_bytes + e.name_offset, e.name_bytes);
            snprintf(c->name, sizeof c->name, "%.*s", len, payload - e.header_bytes + e.name_offset);
        }
    }
    if (text) {
        c->ptx = copy_text(text, text_bytes);
        return c;
    }
    if (n_compressed) {
        return refuse(c, cudaErrorInvalidKernelImage,
                      "the PTX in the fat binary is compressed: compile with nvcc --no-compress (simcc does)");
    }
    if (n_ptx) {
        return refuse(c, cudaErrorNoKernelImageForDevice,
                      "the fat binary has PTX for devices above sm_90 only: compile with -gencode "
                      "arch=compute_90a,code=compute_90a");
    }
    return refuse(
        c, cudaErrorNoKernelImageForDevice,
        "the fat binary has machine code but no PTX: compile with -gencode arch=compute_90a,code=compute_90a");
}

rt_code *rt_code_of_fatbin(const void *fatbin) {
    wrapper w;
    memcpy(&w, fatbin, sizeof w);
    if (w.magic != WRAPPER_MAGIC) {
        return refuse(rt_code_new(), cudaErrorInvalidKernelImage, "this is no fat binary: its magic number is wrong");
    }
    if (w.version == WRAPPER_LINKED) {
        return refuse(
            rt_code_new(), cudaErrorInvalidKernelImage,
            "relocatable device code (nvcc -rdc=true, -dc) is not simulated: keep the device code of a kernel in "
            "one file and compile without it");
    }
    uint32_t magic;
    memcpy(&magic, w.data, sizeof magic);
    if (magic != IMAGE_MAGIC) return refuse(rt_code_new(), cudaErrorInvalidKernelImage, "the fat binary is damaged");
    return from_image(w.data);
}

rt_code *rt_code_of_image(const void *image) {
    const char *text = image;
    uint32_t magic = 0;
    size_t n = strnlen(text, sizeof magic);
    memcpy(&magic, text, n);
    if (magic == WRAPPER_MAGIC) return rt_code_of_fatbin(image);
    if (magic == IMAGE_MAGIC) return from_image(image);
    rt_code *c = rt_code_new();
    if (n == 4 && !memcmp(text, "\177ELF", 4)) {
        return refuse(c, cudaErrorNoKernelImageForDevice, "machine code (a cubin) cannot be simulated: load the PTX");
    }
    c->ptx = copy_text(text, strlen(text));
    if (!strstr(c->ptx, ".version")) {
        free(c->ptx);
        c->ptx = NULL;
        return refuse(c, cudaErrorInvalidPtx, "the image is neither PTX nor a fat binary");
    }
    return c;
}
