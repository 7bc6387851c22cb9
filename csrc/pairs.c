/* pairs.c: the pair quantity of a unit of a tile.
 *
 *   squared distance   s = |x|^2 + |z|^2 - 2 <x, z>, of centred rows. Where
 *                      s < CANCELLED (|x|^2 + |z|^2), or an overflow gave NaN, the pair is
 *                      recomputed as sum (x - z)^2 from the original rows: no distance loses
 * more than a factor 1/CANCELLED, however close the points or far from 0. angle of NTK rho =
 * <u, v> of unit rows is carried as e = 1 - |rho| with the sign of rho. Where e < SDF_PARALLEL,
 * e = |u -+ v|^2 / 2 instead: the angle sqrt(2 e) is then accurate to the rounding of u and v.
 *   others             sum (x - z)^2 (few columns), sum |x - z|, <x, z>, directly.
 */
#include "loops.h"

#define CANCELLED ((real)SDF_CANCELLED(sizeof(real)))
#define PARALLEL ((real)SDF_PARALLEL)

/* t[r][c] (+)= sum over `count` columns k of f(x[k][r], z[k][c]), MR x NR, in registers.
 * The step between columns of a panel is NR; x points at a row of its panel. */
#define PAIR_LOOP(name, UPDATE)                                                                \
  static void name(const real *restrict x, const real *restrict z, ptrdiff_t count, int first, \
                   real *restrict t, ptrdiff_t width) {                                        \
    vec sum[MR][NV];                                                                           \
    _Pragma("GCC unroll 8") for (int r = 0; r < MR; r++) {                                     \
      _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) { sum[r][v] = (vec){0}; }           \
    }                                                                                          \
    for (ptrdiff_t k = 0; k < count; k++, x += NR, z += NR) {                                  \
      vec b[NV];                                                                               \
      _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) b[v] = load_(z + v * LANES);        \
      _Pragma("GCC unroll 8") for (int r = 0; r < MR; r++) {                                   \
        _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) { UPDATE }                        \
      }                                                                                        \
    }                                                                                          \
    _Pragma("GCC unroll 8") for (int r = 0; r < MR; r++) {                                     \
      _Pragma("GCC unroll 8") for (int v = 0; v < NV; v++) {                                   \
        if (!first) sum[r][v] += load_(t + r * width + v * LANES);                             \
        store_(t + r * width + v * LANES, sum[r][v]);                                          \
      }                                                                                        \
    }                                                                                          \
  }

PAIR_LOOP(pair_inner, sum[r][v] += b[v] * x[r];)
PAIR_LOOP(pair_differences, const vec gap = b[v] - x[r]; sum[r][v] += gap * gap;)
PAIR_LOOP(pair_sums, const vec sum_ = b[v] + x[r]; sum[r][v] += sum_ * sum_;)
PAIR_LOOP(pair_l1, sum[r][v] += abs_(b[v] - x[r]);)

/* sum (x - z)^2 */
static real squared_gap(const real *x, const real *z, ptrdiff_t d) {
  vec sum = {0};
  ptrdiff_t k = 0;
  for (; k + LANES <= d; k += LANES) {
    const vec gap = load_any_(x + k) - load_any_(z + k);
    sum += gap * gap;
  }
  real total = 0;
  for (int l = 0; l < LANES; l++) total += sum[l];
  for (; k < d; k++) {
    const real gap = x[k] - z[k];
    total += gap * gap;
  }
  return total;
}

/* Inner products t of one row -> squared distances; recomputed where they cancel. */
static void squares_of_row(const sdf_job *job, ptrdiff_t i, ptrdiff_t j, ptrdiff_t width,
                           real *t) {
  const real *norms =
      (const real *)(job->plan.symmetric ? job->buffers.norms_x : job->buffers.norms_z) + j;
  const real norm = ((const real *)job->buffers.norms_x)[i];
  ivec bad = {0};
  for (ptrdiff_t c = 0; c < width; c += LANES) {
    const vec both = load_(norms + c) + norm;
    const vec s = both - 2 * load_(t + c);
    bad |= ~(s >= CANCELLED * both);
    store_(t + c, s);
  }
  i -= job->plan.pad_x;
  j -= job->plan.pad_z;
  if (!any_(bad) || i < 0 || i >= job->problem.n) return;
  const real *x = job->problem.x, *z = job->plan.symmetric ? job->problem.x : job->problem.z;
  for (ptrdiff_t c = most(0, -j); c < least(width, job->problem.m - j); c++) {
    if (!(t[c] >= CANCELLED * (norms[c] + norm))) {
      t[c] = squared_gap(x + i * job->problem.d, z + (j + c) * job->problem.d, job->problem.d);
    }
  }
}

/* Replaces cosines in t (MR rows, NR columns) that are near +-1 by |u -+ v|^2 / 2. x and z are
 * the unit rows in their panels. */
static void near_parallel(const real *x, const real *z, ptrdiff_t d, real *t, ptrdiff_t width) {
  real gaps[MR * NR] __attribute__((aligned(64))), sums[MR * NR] __attribute__((aligned(64)));
  for (ptrdiff_t k = 0; k < d; k += DEPTH) {
    const ptrdiff_t depth = least(DEPTH, d - k);
    pair_differences(x + k * NR, z + k * NR, depth, k == 0, gaps, NR);
    pair_sums(x + k * NR, z + k * NR, depth, k == 0, sums, NR);
  }
  for (ptrdiff_t r = 0; r < MR; r++) {
    for (ptrdiff_t c = 0; c < NR; c += LANES) {
      const vec e = load_(t + r * width + c), gap = load_(gaps + r * NR + c);
      const vec near = select_(negative_(e), load_(sums + r * NR + c), gap) * (real)0.5;
      store_(t + r * width + c, copysign_(select_(abs_(e) < PARALLEL, near, e), e));
    }
  }
}

/* Cosines t of MR rows and NR columns -> 1 - |cos| with the sign of cos. */
static void angles_of_block(const real *x, const real *z, ptrdiff_t d, real *t,
                            ptrdiff_t width) {
  ivec near = {0};
  for (ptrdiff_t r = 0; r < MR; r++) {
    for (ptrdiff_t c = 0; c < NR; c += LANES) {
      const vec cosine = load_(t + r * width + c), e = 1 - abs_(cosine);
      near |= e < PARALLEL;
      store_(t + r * width + c, copysign_(e, cosine)); /* e < 0 is also near 0 */
    }
  }
  if (any_(near)) near_parallel(x, z, d, t, width);
}

void pair_unit(const sdf_job *job, place at, ptrdiff_t k, ptrdiff_t depth, real *s) {
  const real *packed_x = job->buffers.packed_x;
  const real *packed_z = job->plan.symmetric ? packed_x : job->buffers.packed_z;
  const ptrdiff_t d = job->problem.d;
  const int last = k + depth == d;
  void (*const pair_loop)(const real *, const real *, ptrdiff_t, int, real *, ptrdiff_t) =
      job->plan.pair == SDF_PAIR_DIFFERENCES ? pair_differences
      : job->plan.pair == SDF_PAIR_L1        ? pair_l1
                                             : pair_inner;
  for (ptrdiff_t j = at.j; j < at.j + at.width; j += NR) {
    const real *z = packed_z + j * d + k * NR;
    for (ptrdiff_t i = at.i; i < at.i + at.rows; i += MR) {
      const real *x = packed_x + i / NR * NR * d + i % NR + k * NR;
      real *const t = s + (i - at.i) * at.width + (j - at.j);
      pair_loop(x, z, depth, k == 0, t, at.width);
      if (last && job->plan.pair == SDF_PAIR_ANGLE) {
        angles_of_block(x - k * NR, z - k * NR, d, t, at.width);
      }
    }
  }
  if (last && job->plan.pair == SDF_PAIR_SQUARES) {
    for (ptrdiff_t r = 0; r < at.rows; r++) {
      squares_of_row(job, at.i + r, at.j, at.width, s + r * at.width);
    }
  }
}
