/* SPDX-License-Identifier: Apache-2.0 */
/* RQ_CLONES builds a function of plain float loops once per instruction set and picks at load time. Only for loops the
 * compiler vectorises safely (floats; integer dot products are written with intrinsics, docs/style.md says why).
 * Only on static functions: gcc 12 exports the clones' dispatcher whatever the visibility. */
#ifndef RQ_SIMD_H
#define RQ_SIMD_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define RQ_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RQ_CLONES
#endif

#endif
