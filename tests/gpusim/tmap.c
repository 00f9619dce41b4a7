/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding and reading of tensor maps; the rules are those of cuTensorMapEncodeTiled (CUDA driver API, tensor map object
 * management) for compute capability 9.0. */
#include "tmap.h"

#include <string.h>

#include "gpusim.h"

enum { TMAP_MAGIC = 0x54714d31, INVALID = 1, NOT_SUPPORTED = 801 };

static const uint8_t type_bytes[GS_TMAP_TYPES] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};

_Static_assert(sizeof(gs_tmap) <= GS_TMAP_BYTES, "a tensor map is 128 bytes");

static uint32_t checksum(const gs_tmap *t) {
    uint32_t h = 2166136261u;
    const uint8_t *p = (const uint8_t *)t + offsetof(gs_tmap, base);
    for (size_t k = 0; k < sizeof *t - offsetof(gs_tmap, base); ++k) h = (h ^ p[k]) * 16777619u;
    return h;
}

static bool is_float(int type) { return type >= GS_TMAP_F16; /* all after it are floating point */ }

int gs_tmap_encode_tiled(void *map, int type, uint32_t rank, void *address, const uint64_t *dim, const uint64_t *stride,
                         const uint32_t *box, const uint32_t *element_stride, int interleave, int swizzle,
                         int l2_promotion, int oob_fill) {
    if (!map || !address || !dim || !box || !element_stride || (uintptr_t)map % 64) return INVALID;
    if (type < 0 || type >= GS_TMAP_TYPES) return INVALID; /* the packed 4- and 6-bit types are for later chips */
    if (rank < 1 || rank > GS_TMAP_RANK || (rank > 1 && !stride)) return INVALID;
    if (interleave < 0 || interleave > 2 || swizzle < 0 || swizzle > 3) return INVALID;
    if (l2_promotion < 0 || l2_promotion > 3 || oob_fill < 0 || oob_fill > 1) return INVALID;
    if (oob_fill && !is_float(type)) return INVALID;
    uint64_t unit = interleave == 2 ? 32 : 16;
    if ((uintptr_t)address % unit) return INVALID;
    if (interleave && rank < 3) return INVALID;
    if (interleave == 2 && swizzle != 1) return INVALID;
    for (uint32_t k = 0; k < rank; ++k) {
        if (dim[k] == 0 || dim[k] > 1ull << 32) return INVALID;
        if (box[k] == 0 || box[k] > 256) return INVALID;
        if (element_stride[k] == 0 || element_stride[k] > 8) return INVALID;
        if (k + 1 < rank && (stride[k] % unit || stride[k] >= 1ull << 40)) return INVALID;
    }
    uint32_t inner = box[0] * type_bytes[type];
    if (!interleave && inner % 16) return INVALID;
    if (!interleave && swizzle && inner > 16u << swizzle) return INVALID;
    if (interleave) {
        gs_find_host("tensor map", "interleaved layouts are not implemented");
        return NOT_SUPPORTED;
    }
    if (type >= GS_TMAP_F32_FTZ) {
        gs_find_host("tensor map", "FLOAT32_FTZ, TFLOAT32 and TFLOAT32_FTZ are not implemented");
        return NOT_SUPPORTED;
    }

    gs_tmap t;
    memset(&t, 0, sizeof t);
    t.magic = TMAP_MAGIC;
    t.base = (uint64_t)(uintptr_t)address;
    t.type = (uint8_t)type;
    t.rank = (uint8_t)rank;
    t.swizzle = (uint8_t)swizzle;
    t.fill_nan = (uint8_t)oob_fill;
    t.elem_bytes = type_bytes[type];
    for (uint32_t k = 0; k < rank; ++k) {
        uint32_t step = k ? element_stride[k] : 1; /* that of dimension 0 is ignored without interleaving */
        t.stride[k] = k ? stride[k - 1] : type_bytes[type];
        t.last[k] = (uint32_t)(dim[k] - 1);
        t.box[k] = (uint16_t)((box[k] + step - 1) / step);
        t.step[k] = (uint8_t)step;
    }
    t.check = checksum(&t);
    memset(map, 0, GS_TMAP_BYTES);
    memcpy(map, &t, sizeof t);
    return 0;
}

bool gs_tmap_read(const void *map, gs_tmap *t) {
    memcpy(t, map, sizeof *t);
    return t->magic == TMAP_MAGIC && t->check == checksum(t);
}

uint32_t gs_tmap_box_bytes(const gs_tmap *t) {
    uint32_t n = t->elem_bytes;
    for (int k = 0; k < t->rank; ++k) n *= t->box[k];
    return n;
}
