/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor maps: what cuTensorMapEncodeTiled writes into a CUtensorMap. The real 128 bytes are opaque; these are ours, so
 * that a map that was never encoded, or was copied in part, is noticed. */
#ifndef RQ_GPUSIM_TMAP_H
#define RQ_GPUSIM_TMAP_H
#include <stdbool.h>
#include <stdint.h>

enum { GS_TMAP_RANK = 5, GS_TMAP_BYTES = 128 };

/* As the driver's enum CUtensorMapDataType. */
enum {
    GS_TMAP_U8,
    GS_TMAP_U16,
    GS_TMAP_U32,
    GS_TMAP_S32,
    GS_TMAP_U64,
    GS_TMAP_S64,
    GS_TMAP_F16,
    GS_TMAP_F32,
    GS_TMAP_F64,
    GS_TMAP_BF16,
    GS_TMAP_F32_FTZ,
    GS_TMAP_TF32,
    GS_TMAP_TF32_FTZ,
    GS_TMAP_TYPES
};

typedef struct gs_tmap {
    uint32_t magic, check; /* check: of all that follows */
    uint64_t base;
    uint64_t stride[GS_TMAP_RANK]; /* bytes; [0] is the size of an element */
    uint32_t last[GS_TMAP_RANK];   /* size of the tensor minus one, in elements */
    uint16_t box[GS_TMAP_RANK];    /* elements copied along each dimension: box size over element stride, rounded up */
    uint8_t step[GS_TMAP_RANK];    /* element strides */
    uint8_t type, rank;
    uint8_t swizzle; /* 0 none, 1 32 bytes, 2 64 bytes, 3 128 bytes */
    uint8_t fill_nan;
    uint8_t elem_bytes;
    uint8_t unused[6];
} gs_tmap;

/* The arguments of cuTensorMapEncodeTiled. 0; 1 (CUDA_ERROR_INVALID_VALUE) where the driver refuses; 801
 * (CUDA_ERROR_NOT_SUPPORTED, with a finding) for what is legal and not implemented: interleaved layouts, and the types that
 * change values on the way (FLOAT32_FTZ, TFLOAT32). */
int gs_tmap_encode_tiled(void *map, int type, uint32_t rank, void *address, const uint64_t *dim, const uint64_t *stride,
                         const uint32_t *box, const uint32_t *element_stride, int interleave, int swizzle,
                         int l2_promotion, int oob_fill);

/* Reads a map back; false when these bytes are none. */
bool gs_tmap_read(const void *map, gs_tmap *t);
/* Bytes that a whole box takes in shared memory. */
uint32_t gs_tmap_box_bytes(const gs_tmap *t);
/* Where a byte lies in shared memory: the swizzle permutes 16-byte pieces by bits of the address itself. */
static inline uint32_t gs_swizzle(uint32_t address, unsigned mode) {
    return address ^ ((address >> 7 & ((1u << mode) - 1)) << 4);
}

#endif
