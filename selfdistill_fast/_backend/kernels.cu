/* kernels.cu: Gram matrices, products with them and spectral filters on a CUDA device.
 *
 * gpu.py compiles this file once per precision (SDF_BITS 64 or 32, as for the loops of csrc/),
 * with the text of csrc/formulas.h in place of its #include, so kernel functions and recursions
 * are those of the C loops. X is (n, d), Z is (m, d), rows contiguous; sizes, indices: 64 bits.
 *
 * Kernels, in the order of this file; * is the pair quantity: squares, l1, inner or angle.
 *
 *   gram_*           K(X, Z) by tiles of SIDE x SIDE entries: pair quantity in registers
 *                    (squared distances and angles by differences, so nothing cancels), kernel
 *                    function, store. K(X, X): tiles on and below the diagonal; the image of
 *                    a tile is written from shared memory, so that K is exactly symmetric and
 *                    each entry is written once.
 *   finish_*         the same for many columns, in place, where `out` holds the inner
 *                    products that BLAS computed from packed rows: |x|^2 + |z|^2 - 2 <x, z>,
 *                    recomputed by differences of the original rows where that cancels;
 *                    not for l1
 *   vector_*         K(X, Z) w without forming K
 *   product16_*      K(X, Z) W for up to 16 columns, without forming K
 *   product64_*      the same for up to 64
 *   stored_vector    K w for a K in memory
 *   squared16        (V o V) F for up to 16 columns
 *   squared64        the same for up to 64
 *   pack_rows        packed rows for BLAS, and their norms
 *   upper_triangle   the part above the diagonal <- the part below, or 0
 *   shrinkage_path   spectral filters
 *   pure_filters     likewise
 *
 * Sums within a tile are in real, across tiles in double; each block of a grid has its own
 * sums, so that the order of addition is fixed.
 *
 * A block has THREADS x THREADS threads in one dimension. A thread owns the PER x PER entries
 * whose row and column are its own plus multiples of THREADS, so that neighbouring threads
 * write neighbouring entries.
 */
#define DEVICE static __device__ __forceinline__ __attribute__((unused))
#define FORMULA DEVICE

#if SDF_BITS == 64
typedef double real;
#define EXP exp
#define SQRT sqrt
#define ASIN asin
#define FMA fma
#define ABS fabs
#define COPYSIGN copysign
#else
typedef float real;
#define EXP expf
#define SQRT sqrtf
#define ASIN asinf
#define FMA fmaf
#define ABS fabsf
#define COPYSIGN copysignf
#endif
typedef long long wide;

/* ------------------------------------- definitions for formulas.h; a vector is one number */

typedef real vec;
typedef bool ivec;
typedef struct {
  real a, low;   /* the rate is a + low */
  real furthest; /* distances are clipped here; e^(a t) is 0 long before */
} rate;

FORMULA vec splat_(real x) { return x; }
FORMULA vec select_(ivec mask, vec yes, vec no) { return mask ? yes : no; }
FORMULA vec min_(vec a, vec b) { return a < b ? a : b; } /* b where a or b is NaN */
FORMULA vec max_(vec a, vec b) { return a > b ? a : b; }
FORMULA vec abs_(vec a) { return ABS(a); }
FORMULA vec copysign_(vec a, vec b) { return COPYSIGN(a, b); }
FORMULA ivec negative_(vec a) { return COPYSIGN((real)1, a) < 0; }
FORMULA vec sqrt_(vec a) { return SQRT(a); }
FORMULA vec asin_(vec a) { return ASIN(a); }

/* Compensates the rounding of a t, which would cost exp of a number near 700 ten bits. */
FORMULA vec decay_(vec t, rate k) {
  t = min_(k.furthest, t);
  const real x = k.a * t, rest = FMA(k.a, t, -x) + k.low * t, e = EXP(x);
  return FMA(e, rest, e);
}

#include "formulas.h"

/* ------------------------------------------------------------------------- the job */

enum { THREADS = 16, PER = 4, SIDE = THREADS * PER, BLOCK = THREADS * THREADS };
enum { DEPTH = 8 }; /* columns of X and Z in shared memory at a time */
enum { SQUARES, L1, INNER, ANGLE };

#define SDF_ENUM(id, ...) K_##id,
enum { SDF_KERNELS(SDF_ENUM) N_KERNELS };

/* A kernel function: its number, and the parameters of kernels.py's c_spec. */
struct kappa {
  int kernel, degree;
  real a, b;
  rate k; /* of SDF_DECAYS */
};

#if SDF_BITS == 64
#define EXP_LOWEST (-746.0)
#define LARGEST 1e307
#else
#define EXP_LOWEST (-104.0)
#define LARGEST 1e37
#endif

DEVICE kappa kappa_of(wide kernel, wide degree, double a, double b) {
  double high = -1; /* the rate */
  switch (kernel) {
#define RATE(id, rate, distance, polynomial) \
  case K_##id: high = -a * (rate); break;
    SDF_DECAYS(RATE)
  }
  if (high < -LARGEST) high = -LARGEST;
  kappa f;
  f.kernel = (int)kernel;
  f.degree = (int)degree;
  f.a = (real)a;
  f.b = (real)b;
  f.k.a = (real)high;
  f.k.low = (real)(high - (double)f.k.a);
  f.k.furthest = (real)(-EXP_LOWEST < -high * LARGEST ? EXP_LOWEST / high : LARGEST);
  return f;
}

/* kappa of a pair quantity; nx and nz are the norms of the two rows, for NTK. */
template <int PAIR>
DEVICE real value_of(const kappa &f, real s, real nx, real nz) {
  if (PAIR == ANGLE) return kappa_NTK(s, f.degree) * (nz * nx);
  if (PAIR == INNER) {
    return f.kernel == K_LINEAR ? s : kappa_POLYNOMIAL(s, f.a, f.b, f.degree);
  }
  switch (f.kernel) {
#define DECAY(id, rate, distance, polynomial) \
  case K_##id: return kappa_##id(s, f.k);
    SDF_DECAYS(DECAY)
  }
  return 0;
}

/* Shared memory of a block: 42 KB in double, within the 48 KB that need no opt-in. */
struct memory {
  union {
    struct {
      real x[DEPTH][SIDE + 2], z[DEPTH][SIDE + 2]; /* columns of rows of the tile */
    } rows;
    real w[SIDE * THREADS]; /* a part of W */
  } in;
  union {
    real t[SIDE][SIDE + 1]; /* the tile */
    double sums[SIDE][THREADS + 1];
  } out;
};
static_assert(sizeof(memory) <= 48 * 1024, "static shared memory");
static_assert(SIDE * THREADS <= 2 * DEPTH * (SIDE + 2), "W takes the place of the rows");

struct place {
  wide i, j; /* first row and column of a tile */
};

/* Tile number `tile` of the lower triangle, or of all, row by row. */
DEVICE place place_of(wide tile, wide tiles_z, bool symmetric) {
  wide ti, tj;
  if (symmetric) {
    ti = (wide)((sqrt(8.0 * (double)tile + 1.0) - 1.0) * 0.5);
    while (ti * (ti + 1) / 2 > tile) ti--;
    while ((ti + 1) * (ti + 2) / 2 <= tile) ti++;
    tj = tile - ti * (ti + 1) / 2;
  } else {
    ti = tile / tiles_z;
    tj = tile - ti * tiles_z;
  }
  const place at = {ti * SIDE, tj * SIDE};
  return at;
}

DEVICE wide tiles_of(wide rows) { return (rows + SIDE - 1) / SIDE; }

/* ---------------------------------------------------------------- pair quantity */

/* s = pair quantities of a tile. Rows beyond the last are zero. All threads must take part;
 * shared.in is free afterwards. */
template <int PAIR>
DEVICE void pair_tile(memory &shared, const real *x, const real *z, wide n, wide m, wide d,
                      place at, real s[PER][PER]) {
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  real far[PER][PER]; /* |u + v|^2 */
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int c = 0; c < PER; c++) s[r][c] = far[r][c] = 0;
  }
  for (wide k0 = 0; k0 < d; k0 += DEPTH) {
    for (int e = threadIdx.x; e < SIDE * DEPTH; e += BLOCK) {
      const int row = e / DEPTH, k = e % DEPTH;
      const wide i = at.i + row, j = at.j + row;
      shared.in.rows.x[k][row] = i < n && k0 + k < d ? x[i * d + k0 + k] : (real)0;
      shared.in.rows.z[k][row] = j < m && k0 + k < d ? z[j * d + k0 + k] : (real)0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
      real p[PER], q[PER];
#pragma unroll
      for (int r = 0; r < PER; r++) p[r] = shared.in.rows.x[k][ty + r * THREADS];
#pragma unroll
      for (int c = 0; c < PER; c++) q[c] = shared.in.rows.z[k][tx + c * THREADS];
#pragma unroll
      for (int r = 0; r < PER; r++) {
#pragma unroll
        for (int c = 0; c < PER; c++) {
          if (PAIR == INNER) {
            s[r][c] = FMA(p[r], q[c], s[r][c]);
          } else {
            const real gap = q[c] - p[r];
            s[r][c] = PAIR == L1 ? s[r][c] + ABS(gap) : FMA(gap, gap, s[r][c]);
            if (PAIR == ANGLE) {
              const real sum = q[c] + p[r];
              far[r][c] = FMA(sum, sum, far[r][c]);
            }
          }
        }
      }
    }
    __syncthreads();
  }
  if (PAIR == ANGLE) { /* of unit rows: 1 - cos = |u - v|^2 / 2, 1 + cos = |u + v|^2 / 2 */
#pragma unroll
    for (int r = 0; r < PER; r++) {
#pragma unroll
      for (int c = 0; c < PER; c++) {
        s[r][c] = s[r][c] <= far[r][c] ? s[r][c] / 2 : -(far[r][c] / 2);
      }
    }
  }
}

/* t = kappa of a tile; 0 beyond the last row and column. */
template <int PAIR>
DEVICE void kappa_tile(memory &shared, const kappa &f, const real *x, const real *z,
                       const real *norms_x, const real *norms_z, wide n, wide m, wide d,
                       place at, real t[PER][PER]) {
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  pair_tile<PAIR>(shared, x, z, n, m, d, at, t);
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int c = 0; c < PER; c++) {
      const wide i = at.i + ty + r * THREADS, j = at.j + tx + c * THREADS;
      const bool inside = i < n && j < m;
      const real nx = PAIR == ANGLE && inside ? norms_x[i] : (real)0;
      const real nz = PAIR == ANGLE && inside ? norms_z[j] : (real)0;
      t[r][c] = inside ? value_of<PAIR>(f, t[r][c], nx, nz) : (real)0;
    }
  }
}

/* --------------------------------------------------------------- store of a tile */

/* out = t and, `mirrored`, its image on the other side of the diagonal of out (n, n). */
DEVICE void store_tile(memory &shared, const real t[PER][PER], real *out, wide n, wide m,
                       wide ld, place at, bool mirrored) {
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int c = 0; c < PER; c++) {
      const wide i = at.i + ty + r * THREADS, j = at.j + tx + c * THREADS;
      if (i < n && j < m) out[i * ld + j] = t[r][c];
    }
  }
  if (!mirrored) return;
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int c = 0; c < PER; c++) shared.out.t[ty + r * THREADS][tx + c * THREADS] = t[r][c];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int c = 0; c < PER; c++) { /* neighbours are rows of the tile, columns of the image */
      const wide i = at.i + tx + r * THREADS, j = at.j + ty + c * THREADS;
      if (i < n && j < m) out[j * ld + i] = shared.out.t[tx + r * THREADS][ty + c * THREADS];
    }
  }
  __syncthreads();
}

/* ------------------------------------------------------------------------ gram */

template <int PAIR>
DEVICE void gram(const real *x, const real *z, const real *norms_x, const real *norms_z,
                 real *out, wide n, wide m, wide d, wide ld, wide symmetric, const kappa &f) {
  __shared__ memory shared;
  const wide tiles_x = tiles_of(n), tiles_z = tiles_of(m);
  const wide tiles = symmetric ? tiles_x * (tiles_x + 1) / 2 : tiles_x * tiles_z;
  for (wide tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const place at = place_of(tile, tiles_z, symmetric != 0);
    real t[PER][PER];
    kappa_tile<PAIR>(shared, f, x, z, norms_x, norms_z, n, m, d, at, t);
    store_tile(shared, t, out, n, m, ld, at, symmetric && at.i != at.j);
  }
}

/* ---------------------------------------------------------- after a product by BLAS */

DEVICE real squared_gap(const real *x, const real *z, wide d, real sign) {
  real total = 0;
  for (wide k = 0; k < d; k++) {
    const real gap = x[k] - sign * z[k];
    total = FMA(gap, gap, total);
  }
  return total;
}

/* Inner product of packed rows -> pair quantity. Packed rows are x - shift, or unit rows for
 * ANGLE; x and z are the original rows, or unit rows for ANGLE. */
template <int PAIR>
DEVICE real mended(real inner, const real *x, const real *z, real norm_x, real norm_z, wide d) {
  if (PAIR == INNER) return inner;
  if (PAIR == SQUARES) {
    const real cancelled = (real)SDF_CANCELLED(sizeof(real));
    const real both = norm_z + norm_x, s = both - 2 * inner;
    return s >= cancelled * both ? s : squared_gap(x, z, d, 1); /* also if s is NaN */
  }
  const real e = 1 - ABS(inner), sign = COPYSIGN((real)1, inner);
  return sign * (e >= (real)SDF_PARALLEL ? e : squared_gap(x, z, d, sign) / 2);
}

template <int PAIR>
DEVICE void finish(const real *x, const real *z, const real *norms_x, const real *norms_z,
                   real *out, wide n, wide m, wide d, wide ld, wide symmetric, const kappa &f) {
  __shared__ memory shared;
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  const wide tiles_x = tiles_of(n), tiles_z = tiles_of(m);
  const wide tiles = symmetric ? tiles_x * (tiles_x + 1) / 2 : tiles_x * tiles_z;
  for (wide tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const place at = place_of(tile, tiles_z, symmetric != 0);
    const bool diagonal = symmetric && at.i == at.j;
    real t[PER][PER];
#pragma unroll
    for (int r = 0; r < PER; r++) {
#pragma unroll
      for (int c = 0; c < PER; c++) {
        const wide i = at.i + ty + r * THREADS, j = at.j + tx + c * THREADS;
        t[r][c] = 0;
        if (i >= n || j >= m || (diagonal && j > i)) continue;
        const real nx = PAIR == INNER ? (real)0 : norms_x[i];
        const real nz = PAIR == INNER ? (real)0 : norms_z[j];
        real s = 0; /* of a row with itself */
        if (PAIR == INNER || !(diagonal && i == j)) {
          s = mended<PAIR>(out[i * ld + j], x + i * d, z + j * d, nx, nz, d);
        }
        t[r][c] = value_of<PAIR>(f, s, nx, nz);
      }
    }
    if (diagonal) { /* copied from below: the result of BLAS need not be symmetric to the last
                       bit */
#pragma unroll
      for (int r = 0; r < PER; r++) {
#pragma unroll
        for (int c = 0; c < PER; c++)
          shared.out.t[ty + r * THREADS][tx + c * THREADS] = t[r][c];
      }
      __syncthreads();
#pragma unroll
      for (int r = 0; r < PER; r++) {
#pragma unroll
        for (int c = 0; c < PER; c++) {
          const int row = ty + r * THREADS, column = tx + c * THREADS;
          if (column > row) t[r][c] = shared.out.t[column][row];
        }
      }
      __syncthreads();
    }
    store_tile(shared, t, out, n, m, ld, at, symmetric && !diagonal);
  }
}

/* --------------------------------------------------------------- products, K not formed */

/* sums[s][i] = sum over the s-th part of the columns of t[i][j] w[j]: one target. Blocks are
 * (row of tiles, part of the columns). */
template <int PAIR>
DEVICE void vector(const real *x, const real *z, const real *norms_x, const real *norms_z,
                   const real *w, double *sums, wide n, wide m, wide d, const kappa &f) {
  __shared__ memory shared;
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  const wide tiles_z = tiles_of(m), part = blockIdx.y, parts = gridDim.y;
  double total[PER];
  place at;
  at.i = (wide)blockIdx.x * SIDE;
#pragma unroll
  for (int r = 0; r < PER; r++) total[r] = 0;
  for (wide tj = tiles_z * part / parts; tj < tiles_z * (part + 1) / parts; tj++) {
    real t[PER][PER], b[PER];
    at.j = tj * SIDE;
    kappa_tile<PAIR>(shared, f, x, z, norms_x, norms_z, n, m, d, at, t);
#pragma unroll
    for (int c = 0; c < PER; c++) {
      const wide j = at.j + tx + c * THREADS;
      b[c] = j < m ? w[j] : (real)0;
    }
#pragma unroll
    for (int r = 0; r < PER; r++) {
      real sum = 0;
#pragma unroll
      for (int c = 0; c < PER; c++) sum = FMA(t[r][c], b[c], sum);
      total[r] += (double)sum;
    }
  }
#pragma unroll
  for (int r = 0; r < PER; r++) shared.out.sums[ty + r * THREADS][tx] = total[r];
  __syncthreads();
  if (threadIdx.x < SIDE && at.i + threadIdx.x < n) {
    double sum = 0;
    for (int c = 0; c < THREADS; c++) sum += shared.out.sums[threadIdx.x][c];
    sums[part * n + at.i + threadIdx.x] = sum;
  }
}

/* The same for stored entries, K (n, m) with leading dimension ld, and w in double. */
DEVICE void stored(const real *k, wide ld, const double *w, double *sums, wide n, wide m) {
  __shared__ memory shared;
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  const wide tiles_z = tiles_of(m), part = blockIdx.y, parts = gridDim.y;
  const wide i0 = (wide)blockIdx.x * SIDE;
  const wide first = tiles_z * part / parts * SIDE;
  const wide last =
      tiles_z * (part + 1) / parts * SIDE < m ? tiles_z * (part + 1) / parts * SIDE : m;
  double total[PER];
#pragma unroll
  for (int r = 0; r < PER; r++) total[r] = 0;
#pragma unroll 4
  for (wide j = first + tx; j < last; j += THREADS) {
    const double b = w[j];
#pragma unroll
    for (int r = 0; r < PER; r++) {
      const wide i = i0 + ty + r * THREADS;
      if (i < n) total[r] = fma((double)k[i * ld + j], b, total[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < PER; r++) shared.out.sums[ty + r * THREADS][tx] = total[r];
  __syncthreads();
  if (threadIdx.x < SIDE && i0 + threadIdx.x < n) {
    double sum = 0;
    for (int c = 0; c < THREADS; c++) sum += shared.out.sums[threadIdx.x][c];
    sums[part * n + i0 + threadIdx.x] = sum;
  }
}

/* total[r][g] += t @ W for the tile in shared.out.t and targets q0 + tx + THREADS g. */
template <int GROUPS>
DEVICE void multiply_tile(memory &shared, const real *w, wide m, wide p, wide q0, wide j0,
                          double total[PER][GROUPS]) {
  enum { TARGETS = THREADS * GROUPS, WIDTH = SIDE / GROUPS };
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  real sum[PER][GROUPS];
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) sum[r][g] = 0;
  }
  for (int c0 = 0; c0 < SIDE; c0 += WIDTH) {
    __syncthreads(); /* the tile is complete, the last part of W has been used */
    for (int e = threadIdx.x; e < WIDTH * TARGETS; e += BLOCK) {
      const wide j = j0 + c0 + e / TARGETS, q = q0 + e % TARGETS;
      shared.in.w[e] = j < m && q < p ? w[j * p + q] : (real)0;
    }
    __syncthreads();
#pragma unroll 4
    for (int c = 0; c < WIDTH; c++) {
      real a[PER], b[GROUPS];
#pragma unroll
      for (int r = 0; r < PER; r++) a[r] = shared.out.t[ty + r * THREADS][c0 + c];
#pragma unroll
      for (int g = 0; g < GROUPS; g++) b[g] = shared.in.w[c * TARGETS + tx + g * THREADS];
#pragma unroll
      for (int r = 0; r < PER; r++) {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) sum[r][g] = FMA(a[r], b[g], sum[r][g]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) total[r][g] += (double)sum[r][g];
  }
}

/* sums[part][i][q] for the targets q0 .. of this block. */
template <int GROUPS>
DEVICE void store_sums(const double total[PER][GROUPS], double *sums, wide n, wide p, wide q0,
                       wide i0, wide part) {
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      const wide i = i0 + ty + r * THREADS, q = q0 + tx + g * THREADS;
      if (i < n && q < p) sums[(part * n + i) * p + q] = total[r][g];
    }
  }
}

/* The same for THREADS x GROUPS targets from q0 on; w is (m, p). */
template <int PAIR, int GROUPS>
DEVICE void product(const real *x, const real *z, const real *norms_x, const real *norms_z,
                    const real *w, double *sums, wide n, wide m, wide d, wide p, wide q0,
                    const kappa &f) {
  __shared__ memory shared;
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  const wide tiles_z = tiles_of(m), part = blockIdx.y, parts = gridDim.y;
  double total[PER][GROUPS];
  place at;
  at.i = (wide)blockIdx.x * SIDE;
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) total[r][g] = 0;
  }
  for (wide tj = tiles_z * part / parts; tj < tiles_z * (part + 1) / parts; tj++) {
    real t[PER][PER];
    at.j = tj * SIDE;
    kappa_tile<PAIR>(shared, f, x, z, norms_x, norms_z, n, m, d, at, t);
#pragma unroll
    for (int r = 0; r < PER; r++) {
#pragma unroll
      for (int c = 0; c < PER; c++) shared.out.t[ty + r * THREADS][tx + c * THREADS] = t[r][c];
    }
    multiply_tile<GROUPS>(shared, w, m, p, q0, at.j, total);
  }
  store_sums<GROUPS>(total, sums, n, p, q0, at.i, part);
}

/* (V o V) F; V (n, m) has any strides, in numbers. */
template <int GROUPS>
DEVICE void squared(const real *v, wide row_stride, wide column_stride, const real *f,
                    double *sums, wide n, wide m, wide p, wide q0) {
  __shared__ memory shared;
  const wide tiles_z = tiles_of(m), part = blockIdx.y, parts = gridDim.y;
  const wide i0 = (wide)blockIdx.x * SIDE;
  const bool by_rows = column_stride <= row_stride; /* coalesced reads */
  double total[PER][GROUPS];
#pragma unroll
  for (int r = 0; r < PER; r++) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) total[r][g] = 0;
  }
  for (wide tj = tiles_z * part / parts; tj < tiles_z * (part + 1) / parts; tj++) {
    for (int e = threadIdx.x; e < SIDE * SIDE; e += BLOCK) {
      const int row = by_rows ? e / SIDE : e % SIDE, column = by_rows ? e % SIDE : e / SIDE;
      const wide i = i0 + row, j = tj * SIDE + column;
      const real value = i < n && j < m ? v[i * row_stride + j * column_stride] : (real)0;
      shared.out.t[row][column] = value * value;
    }
    multiply_tile<GROUPS>(shared, f, m, p, q0, tj * SIDE, total);
  }
  store_sums<GROUPS>(total, sums, n, p, q0, i0, part);
}

/* ------------------------------------------------------------------- entry points */

/* blocks per multiprocessor at a time, which limits the registers of a thread: memory-bound
 * kernels benefit from more blocks, angles and products need the registers */
#define ENTRY(blocks) extern "C" __global__ void __launch_bounds__(BLOCK, blocks)
#define TILES ENTRY(2)
#define ROWS const real *x, const real *z, const real *norms_x, const real *norms_z
#define FOR_PAIR(name, PAIR)                                                                  \
  ENTRY(PAIR == ANGLE ? 2 : 3)                                                                \
  gram_##name(ROWS, real *out, wide n, wide m, wide d, wide ld, wide symmetric, wide kernel,  \
              wide degree, double a, double b) {                                              \
    const kappa f = kappa_of(kernel, degree, a, b);                                           \
    gram<PAIR>(x, z, norms_x, norms_z, out, n, m, d, ld, symmetric, f);                       \
  }                                                                                           \
  TILES vector_##name(ROWS, const real *w, double *sums, wide n, wide m, wide d, wide kernel, \
                      wide degree, double a, double b) {                                      \
    const kappa f = kappa_of(kernel, degree, a, b);                                           \
    vector<PAIR>(x, z, norms_x, norms_z, w, sums, n, m, d, f);                                \
  }                                                                                           \
  TILES product16_##name(ROWS, const real *w, double *sums, wide n, wide m, wide d, wide p,   \
                         wide q0, wide kernel, wide degree, double a, double b) {             \
    const kappa f = kappa_of(kernel, degree, a, b);                                           \
    product<PAIR, 1>(x, z, norms_x, norms_z, w, sums, n, m, d, p, q0, f);                     \
  }                                                                                           \
  TILES product64_##name(ROWS, const real *w, double *sums, wide n, wide m, wide d, wide p,   \
                         wide q0, wide kernel, wide degree, double a, double b) {             \
    const kappa f = kappa_of(kernel, degree, a, b);                                           \
    product<PAIR, 4>(x, z, norms_x, norms_z, w, sums, n, m, d, p, q0, f);                     \
  }
#define FINISH_PAIR(name, PAIR)                                                                \
  ENTRY(PAIR == ANGLE ? 2 : 3)                                                                 \
  finish_##name(ROWS, real *out, wide n, wide m, wide d, wide ld, wide symmetric, wide kernel, \
                wide degree, double a, double b) {                                             \
    const kappa f = kappa_of(kernel, degree, a, b);                                            \
    finish<PAIR>(x, z, norms_x, norms_z, out, n, m, d, ld, symmetric, f);                      \
  }
/* NVRTC takes seconds for each part; a program compiles those that it uses. */
#if !defined(SDF_PART) || SDF_PART == 0
FOR_PAIR(squares, SQUARES)
FINISH_PAIR(squares, SQUARES)
#endif
#if !defined(SDF_PART) || SDF_PART == 1
FOR_PAIR(l1, L1)
#endif
#if !defined(SDF_PART) || SDF_PART == 2
FOR_PAIR(inner, INNER)
FINISH_PAIR(inner, INNER)
#endif
#if !defined(SDF_PART) || SDF_PART == 3
FOR_PAIR(angle, ANGLE)
FINISH_PAIR(angle, ANGLE)
#endif
#if !defined(SDF_PART) || SDF_PART == 4

TILES stored_vector(const real *k, wide ld, const double *w, double *sums, wide n, wide m) {
  stored(k, ld, w, sums, n, m);
}
TILES squared16(const real *v, wide row_stride, wide column_stride, const real *f, double *sums,
                wide n, wide m, wide p, wide q0) {
  squared<1>(v, row_stride, column_stride, f, sums, n, m, p, q0);
}
TILES squared64(const real *v, wide row_stride, wide column_stride, const real *f, double *sums,
                wide n, wide m, wide p, wide q0) {
  squared<4>(v, row_stride, column_stride, f, sums, n, m, p, q0);
}

/* Packed rows for BLAS and their norms: x - shift and its squared norm, or with `angle`
 * x / |x| (0 for 0) and |x|. A block processes one row at a time. */
TILES pack_rows(const real *x, const real *shift, wide n, wide d, wide angle, real *packed,
                real *norms) {
  __shared__ double part[BLOCK];
  for (wide i = blockIdx.x; i < n; i += gridDim.x) {
    const real *row = x + i * d;
    double scale = 1;
    if (angle) { /* no square may over- or underflow */
      double largest = 0;
      for (wide k = threadIdx.x; k < d; k += BLOCK) {
        const double value = fabs((double)row[k]);
        largest = largest < value ? value : largest;
      }
      part[threadIdx.x] = largest;
      __syncthreads();
      for (int half = BLOCK / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && part[threadIdx.x] < part[threadIdx.x + half]) {
          part[threadIdx.x] = part[threadIdx.x + half];
        }
        __syncthreads();
      }
      scale = part[0] > 0 ? part[0] : 1;
      __syncthreads();
    }
    double sum = 0;
    for (wide k = threadIdx.x; k < d; k += BLOCK) {
      const real value = angle ? row[k] : row[k] - shift[k];
      sum += (double)value / scale * ((double)value / scale);
    }
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = BLOCK / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
      __syncthreads();
    }
    const double norm = angle ? scale * sqrt(part[0]) : part[0];
    if (threadIdx.x == 0) norms[i] = (real)norm;
    for (wide k = threadIdx.x; k < d; k += BLOCK) {
      packed[i * d + k] = !angle     ? row[k] - shift[k]
                          : norm > 0 ? (real)(row[k] / norm)
                                     : (real)0;
    }
    __syncthreads();
  }
}

/* out (n, n): the part above the diagonal <- the part below (`mirrored`), or 0. */
TILES upper_triangle(real *out, wide n, wide ld, wide mirrored) {
  __shared__ memory shared;
  const int tx = threadIdx.x % THREADS, ty = threadIdx.x / THREADS;
  const wide tiles_x = tiles_of(n);
  for (wide tile = blockIdx.x; tile < tiles_x * (tiles_x + 1) / 2; tile += gridDim.x) {
    const place at = place_of(tile, tiles_x, true);
    for (int r = ty; r < SIDE; r += THREADS) {
      for (int c = tx; c < SIDE; c += THREADS) {
        const bool inside = at.i + r < n && at.j + c < n && mirrored;
        shared.out.t[r][c] = inside ? out[(at.i + r) * ld + at.j + c] : (real)0;
      }
    }
    __syncthreads();
    for (int c = ty; c < SIDE; c += THREADS) {
      for (int r = tx; r < SIDE; r += THREADS) {
        const wide i = at.i + r, j = at.j + c;
        if (i < n && j < n && i > j) out[j * ld + i] = shared.out.t[r][c];
      }
    }
    __syncthreads();
  }
}

/* Spectral filters of csrc/sdf.h: d real (k), lam (n_lam), out real (n_lam, n_steps, k). */
TILES shrinkage_path(const real *d, wide k, const double *lam, wide n_lam, const double *alpha,
                     wide n_steps, real *out) {
  for (wide e = (wide)blockIdx.x * BLOCK + threadIdx.x; e < n_lam * k;
       e += (wide)gridDim.x * BLOCK) {
    const wide l = e / k, c = e - l * k;
    const double a = smoother_((double)d[c], lam[l]);
    double b = 1;
    for (wide t = 0; t < n_steps; t++) {
      b = next_shrinkage_(a, b, t == 0 ? 0.0 : alpha[t]);
      out[(l * n_steps + t) * k + c] = (real)b;
    }
  }
}

TILES pure_filters(const real *d, wide k, const double *lam, wide n_lam, wide n_steps,
                   real *out) {
  for (wide e = (wide)blockIdx.x * BLOCK + threadIdx.x; e < n_lam * k;
       e += (wide)gridDim.x * BLOCK) {
    const wide l = e / k, c = e - l * k;
    const double a = smoother_((double)d[c], lam[l]);
    double filter = 1 / ((double)d[c] + lam[l]);
    for (wide t = 0; t < n_steps; t++) {
      out[(l * n_steps + t) * k + c] = (real)filter;
      filter *= a;
    }
  }
}

#endif
