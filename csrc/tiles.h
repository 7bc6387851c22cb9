/* tiles.h: the sizes of tiles, units and register tiles, with reasons.
 *
 *   MR x NV   register tile: MR rows by NV vectors of accumulators, NV vectors of the panel
 *             and one temporary must fit in the registers (32 for AVX-512 and NEON, else 16),
 *             and there must be at least 8 accumulators to cover the latency of 2 FMA units.
 *   NR        rows of a panel: the width of a register tile.
 *   TILE      192 = 8 x 24 = 4 x 48 = 16 x 12 = 24 x 8 panels of any precision. A unit of
 *             UNIT x TILE reals (24 KiB in double) stays in L1 from the inner products to the
 *             store, and a row of a tile is 24 cache lines of `out`.
 *   UNIT      16: a full cache line of float along the mirrored direction.
 *   DEPTH     columns of X at a time: DEPTH x TILE reals of panels (384 KiB) stay in L2.
 *             Sums over more columns are sums of such sums, which also bounds their error.
 *   DIRECT    up to this d, differences cost no more than inner products and the recomputation
 *             of cancelled ones: RBF 8000 x d on AVX-512 takes 33, 36 and 38 ms at d = 12, 16
 *             and 17.
 *   TARGETS   columns of W (or rows of w) at a time: their sums must fit in the registers.
 *
 * SDF_FILTER_BLOCK and SDF_COLUMN_BLOCK, which callers need, are in sdf.h.
 */
#ifndef SDF_TILES_H
#define SDF_TILES_H

#include "simd.h"

enum { TILE = 192, UNIT = 16, DEPTH = 256 };
#if defined(__AVX512F__)
enum { MR = 8, NV = 3, DIRECT = 16, TARGETS = 4 };
#elif defined(__AVX2__)
enum { MR = 4, NV = 3, DIRECT = 8, TARGETS = 2 };
#elif defined(__aarch64__)
enum { MR = 4, NV = 4, DIRECT = 8, TARGETS = 2 };
#else
enum { MR = 4, NV = 2, DIRECT = 8, TARGETS = 2 };
#endif
enum { NR = NV * LANES };

_Static_assert(NR % MR == 0 && TILE % NR == 0 && TILE % UNIT == 0, "tiles are whole panels");
_Static_assert(UNIT % MR == 0 && UNIT % LINE == 0, "units are whole register tiles and lines");

#endif
