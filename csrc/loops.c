/* loops.c: every loop of sdf.h, compiled once per instruction set and precision.
 *
 * The build defines SDF_BITS (64 or 32) and SDF_ISA_ID (a suffix of an sdf_isa, such as
 * AVX2), sets the compiler flags of that instruction set, and gets one table of pointers.
 *
 *   squared distance   s = |x|^2 + |z|^2 - 2 <x, z>, of centred rows. The norms are summed in
 *                      the order of the inner product, so equal rows give 0. Where
 *                      s < CANCELLED (|x|^2 + |z|^2), or an overflow gave NaN, the pair is
 *                      done again as sum (x - z)^2 from the rows as given: no distance has lost
 *                      more than a factor 1/CANCELLED, however close or far from 0 the points.
 *   angle of NTK       rho = <u, v> of unit rows is carried as e = 1 - |rho| with the sign of
 *                      rho. Where e < SDF_PARALLEL, e = |u -+ v|^2 / 2 instead: the angle
 *                      sqrt(2 e) is then good to the rounding of u and v.
 *
 * Everything is symmetric in x and z to the last bit, so K(X, X) is, and the order of the
 * operations for one entry depends on nothing but its two rows.
 */
#include "sdf.h"

#include <stdint.h>

#include "elementary.h"

#define FORMULA static inline
#include "formulas.h"

/* Sizes, and why.
 *
 *   MR x NV   register tile: MR rows by NV vectors of accumulators, NV vectors of the panel
 *             and one temporary must fit the registers (32 for AVX-512 and NEON, else 16),
 *             and there must be at least 8 accumulators to cover the latency of 2 FMA units.
 *   TILE      192 = 8 x 24 = 4 x 48 = 16 x 12 = 24 x 8 panels of any precision. A unit of
 *             UNIT x TILE reals (24 KiB in double) stays in L1 from the inner products to the
 *             store, and a row of a tile is 24 cache lines of `out`.
 *   UNIT      16: a whole cache line of float along the mirrored direction.
 *   DEPTH     columns of X at a time: DEPTH x TILE reals of panels (384 KiB) stay in L2.
 *             Sums over more columns are sums of such sums, which also bounds their error.
 *   DIRECT    up to this d, differences cost no more than inner products plus mending: RBF
 *             8000 x d on AVX-512 takes 33, 36 and 38 ms at d = 12, 16 and 17.
 */
enum { TILE = 192, UNIT = 16, DEPTH = 256 };
#if defined(__AVX512F__)
enum { MR = 8, NV = 3, DIRECT = 16 };
#elif defined(__AVX2__)
enum { MR = 4, NV = 3, DIRECT = 8 };
#elif defined(__aarch64__)
enum { MR = 4, NV = 4, DIRECT = 8 };
#else
enum { MR = 4, NV = 2, DIRECT = 8 };
#endif
enum { NR = NV * LANES, TARGETS = SIMD_BYTES == 64 ? 4 : 2, CHUNK = 64 };

_Static_assert(NR % MR == 0 && TILE % NR == 0 && TILE % UNIT == 0, "tiles are whole panels");
_Static_assert(UNIT % MR == 0 && UNIT % LINE == 0, "units are whole register tiles and lines");

#define CANCELLED ((real)SDF_CANCELLED(sizeof(real)))
#define PARALLEL ((real)SDF_PARALLEL)
#if SDF_BITS == 64
#define LARGEST 1e307
#else
#define LARGEST 1e37f
#endif

static inline ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t most(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static inline ptrdiff_t quotient_up(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

/* ------------------------------------------------------------------ the job */

static rate rate_of(double a) {
  a = a < -(double)LARGEST ? -(double)LARGEST : a;
  const double log2_e = 0x1.71547652b82fep+0, log2_e_low = 0x1.777d0ffda0d24p-56;
  const double high = a * log2_e;
  const double low = __builtin_fma(a, log2_e, -high) + a * log2_e_low;
  rate k = {(real)a, (real)high, (real)low, (real)LARGEST};
  if (SDF_BITS == 32) k.low = (real)((high - (double)k.high) + low);
  if (-(double)EXP_LOWEST < -a * (double)LARGEST) k.furthest = (real)((double)EXP_LOWEST / a);
  return k;
}

static sdf_status prepare(sdf_job *job) {
  static const int8_t pair_of[] = {
#define SQUARES SDF_PAIR_SQUARES
#define L1 SDF_PAIR_L1
#define INNER SDF_PAIR_INNER
#define ANGLE SDF_PAIR_ANGLE
#define PAIR(id, name, pair) pair,
      SDF_KERNELS(PAIR)};
  if (job->kernel < 0 || job->kernel >= SDF_N_KERNELS) return SDF_BAD_KERNEL;
  if (job->n < 0 || job->m < 0 || job->d < 0) return SDF_BAD_SIZE;
  if (job->z == NULL && job->n != job->m) return SDF_BAD_SIZE;
  if (job->out != NULL && job->ld < job->m) return SDF_BAD_SIZE;

  double a = job->a; /* -> the rate of the exponential */
  switch ((sdf_kernel)job->kernel) {
#define RATE(id, rate, distance, polynomial) \
  case SDF_##id: a *= (rate); break;
    SDF_DECAYS(RATE)
    case SDF_POLYNOMIAL:
    case SDF_NTK:
      if (job->degree < 1) return SDF_BAD_PARAMETER;
      break;
    default: break;
  }
  const int decays =
      pair_of[job->kernel] == SDF_PAIR_SQUARES || pair_of[job->kernel] == SDF_PAIR_L1;
  if (decays && !(a > 0)) return SDF_BAD_PARAMETER;
  const rate k = rate_of(decays ? -a : -1);
  job->rate[0] = (double)k.a;
  job->rate[1] = (double)k.high;
  job->rate[2] = (double)k.low;
  job->rate[3] = (double)k.furthest;

  job->pair = pair_of[job->kernel];
  if (job->pair == SDF_PAIR_SQUARES && job->d <= DIRECT) job->pair = SDF_PAIR_DIFFERENCES;
  job->centred = job->pair == SDF_PAIR_SQUARES;
  job->symmetric = job->z == NULL;

  /* Where every row of `out` begins alike, tiles begin where its lines do. Elsewhere lines
   * are written whole but for the two at the ends of a row of a tile (`ragged`). */
  const uintptr_t address = (uintptr_t)job->out;
  const int alike = job->ld % LINE == 0;
  job->streaming = job->stream && job->out != NULL && address % sizeof(real) == 0;
  job->ragged = job->streaming && !alike;
  job->pad_z = job->streaming && alike ? (ptrdiff_t)(address % 64 / sizeof(real)) : 0;
  job->pad_x = job->symmetric ? job->pad_z : 0;

  const ptrdiff_t rows_x = job->n ? job->n + job->pad_x : 0;
  const ptrdiff_t rows_z = job->m ? job->m + job->pad_z : 0;
  job->panels_x = quotient_up(rows_x, NR);
  job->panels_z = job->symmetric ? 0 : quotient_up(rows_z, NR);
  job->tiles_x = quotient_up(rows_x, TILE);
  job->tiles_z = quotient_up(rows_z, TILE);
  job->tiles =
      job->symmetric ? job->tiles_x * (job->tiles_x + 1) / 2 : job->tiles_x * job->tiles_z;
  job->norms_size_x = job->panels_x * NR;
  job->norms_size_z = job->panels_z * NR;
  job->packed_size_x = job->norms_size_x * job->d;
  job->packed_size_z = job->norms_size_z * job->d;
  job->pairs_size = job->tiles * TILE * TILE;
  job->scratch_size = TILE * (job->d > DEPTH || job->ragged ? TILE + LINE : UNIT);
  return SDF_OK;
}

static int unusable(const void *buffer, ptrdiff_t size) {
  return size > 0 && (buffer == NULL || (uintptr_t)buffer % 64 != 0);
}

static sdf_status check(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, ptrdiff_t count) {
  if (lo < 0 || hi < lo || hi > count) return SDF_BAD_RANGE;
  if (unusable(job->packed_x, job->packed_size_x) ||
      unusable(job->norms_x, job->norms_size_x) ||
      unusable(job->packed_z, job->packed_size_z) ||
      unusable(job->norms_z, job->norms_size_z) || unusable(job->shift, job->d)) {
    return SDF_NO_MEMORY_GIVEN;
  }
  return SDF_OK;
}

/* --------------------------------------------------------------------- pack */

/* The mean of evenly spaced rows is as good a shift as the mean of all: it need only lie
 * among the points. Scaled terms cannot overflow for finite input. */
static sdf_status center(const sdf_job *job) {
  const real *rows = job->symmetric ? job->x : job->z;
  const ptrdiff_t n = job->symmetric ? job->n : job->m, d = job->d;
  const ptrdiff_t count = least(n, 1024);
  real *shift = job->shift;
  if (unusable(shift, d)) return SDF_NO_MEMORY_GIVEN;
  for (ptrdiff_t k0 = 0; k0 < d; k0 += CHUNK) {
    const ptrdiff_t width = least(CHUNK, d - k0);
    double sum[CHUNK] = {0};
    for (ptrdiff_t s = 0; s < count; s++) {
      const real *row = rows + (s * n / count) * d + k0;
      for (ptrdiff_t k = 0; k < width; k++) sum[k] += (double)row[k] * (1.0 / (double)count);
    }
    for (ptrdiff_t k = 0; k < width; k++) {
      const real mean = (real)sum[k];
      shift[k0 + k] = mean - mean == 0 ? mean : 0; /* 0 for what is not finite */
    }
  }
  return SDF_OK;
}

static real norm_of(const real *row, ptrdiff_t d) {
  double largest = 0, sum = 0;
  for (ptrdiff_t k = 0; k < d; k++) {
    const double value = row[k] < 0 ? -(double)row[k] : (double)row[k];
    largest = largest < value ? value : largest;
  }
  if (largest == 0) return 0;
  for (ptrdiff_t k0 = 0; k0 < d; k0 += CHUNK) { /* sums of sums round less */
    double part = 0;
    for (ptrdiff_t k = k0; k < least(k0 + CHUNK, d); k++) {
      const double value = (double)row[k] / largest;
      part += value * value;
    }
    sum += part;
  }
  return (real)(largest * __builtin_sqrt(sum));
}

static void pack_panel(const sdf_job *job, const real *rows, ptrdiff_t n, ptrdiff_t pad,
                       ptrdiff_t panel, real *packed, real *norms) {
  const ptrdiff_t d = job->d, first = panel * NR - pad;
  const real *shift = job->shift;
  const int unit_rows = job->pair == SDF_PAIR_ANGLE;
  real divisor[NR]; /* 1 / norm would round once more, and overflow for tiny rows */
  packed += panel * NR * d;
  norms += panel * NR;

  for (int r = 0; r < NR; r++) {
    const ptrdiff_t i = first + r;
    norms[r] = 0;
    divisor[r] = 1;
    if (unit_rows && i >= 0 && i < n) {
      norms[r] = norm_of(rows + i * d, d);
      if (norms[r] > 0) divisor[r] = norms[r];
    }
  }
  for (int r = 0; r < NR; r += LANES) {
    ptrdiff_t k = 0;
    if (first + r >= 0 && first + r + LANES <= n) {
      const real *corner = rows + (first + r) * d;
      for (; k + LANES <= d; k += LANES) {
        vec block[LANES];
        const vec moved = load_any_(shift + k);
        for (int l = 0; l < LANES; l++) {
          block[l] = load_any_(corner + l * d + k) - moved;
          if (unit_rows) block[l] /= divisor[r + l];
        }
        transpose_(block);
        for (int l = 0; l < LANES; l++) store_(packed + (k + l) * NR + r, block[l]);
      }
    }
    for (int l = 0; l < LANES; l++) {
      const ptrdiff_t i = first + r + l;
      const int real_row = i >= 0 && i < n;
      for (ptrdiff_t c = k; c < d; c++) {
        packed[c * NR + r + l] = real_row ? (rows[i * d + c] - shift[c]) / divisor[r + l] : 0;
      }
    }
  }
  if (job->pair == SDF_PAIR_SQUARES) { /* in the order of pair_inner */
    for (int r = 0; r < NR; r += LANES) {
      vec norm = {0};
      for (ptrdiff_t k0 = 0; k0 < d; k0 += DEPTH) {
        vec sum = {0};
        for (ptrdiff_t k = k0; k < least(k0 + DEPTH, d); k++) {
          const vec value = load_(packed + k * NR + r);
          sum += value * value;
        }
        norm += sum;
      }
      store_(norms + r, norm);
    }
  }
}

static sdf_status pack(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi) {
  const sdf_status status = check(job, lo, hi, job->panels_x + job->panels_z);
  if (status != SDF_OK) return status;
  for (ptrdiff_t p = lo; p < hi; p++) {
    if (p < job->panels_x) {
      pack_panel(job, job->x, job->n, job->pad_x, p, job->packed_x, job->norms_x);
    } else {
      pack_panel(job, job->z, job->m, job->pad_z, p - job->panels_x, job->packed_z,
                 job->norms_z);
    }
  }
  return SDF_OK;
}

/* -------------------------------------------------------------- pair quantity */

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

typedef struct { /* where a unit lies, in rows counted from the padded beginning */
  ptrdiff_t i, rows, j, width;
} place;

/* Inner products t of one row -> squared distances; mended where they cancel. */
static void squares_of_row(const sdf_job *job, ptrdiff_t i, ptrdiff_t j, ptrdiff_t width,
                           real *t) {
  const real *norms = (const real *)(job->symmetric ? job->norms_x : job->norms_z) + j;
  const real norm = ((const real *)job->norms_x)[i];
  ivec bad = {0};
  for (ptrdiff_t c = 0; c < width; c += LANES) {
    const vec both = load_(norms + c) + norm;
    const vec s = both - 2 * load_(t + c);
    bad |= ~(s >= CANCELLED * both);
    store_(t + c, s);
  }
  i -= job->pad_x;
  j -= job->pad_z;
  if (!any_(bad) || i < 0 || i >= job->n) return;
  const real *x = job->x, *z = job->symmetric ? job->x : job->z;
  for (ptrdiff_t c = most(0, -j); c < least(width, job->m - j); c++) {
    if (!(t[c] >= CANCELLED * (norms[c] + norm))) {
      t[c] = squared_gap(x + i * job->d, z + (j + c) * job->d, job->d);
    }
  }
}

/* Of cosines in t (MR rows, NR columns) that are near +-1: |u -+ v|^2 / 2 in their place. x and
 * z are the unit rows in their panels. */
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
      store_(t + r * width + c, copysign_(e, cosine)); /* e < 0 is near 0 as well */
    }
  }
  if (any_(near)) near_parallel(x, z, d, t, width);
}

/* ------------------------------------------------------------- kernel function */

/* Kernel values t of the pair quantities s of one unit; s and t may be the same. */
static void apply(const sdf_job *job, place at, const real *s, real *t) {
  const ptrdiff_t count = at.rows * at.width;
  const rate k = {(real)job->rate[0], (real)job->rate[1], (real)job->rate[2],
                  (real)job->rate[3]};
#define EACH(...)                                \
  for (ptrdiff_t c = 0; c < count; c += LANES) { \
    const vec value = load_(s + c);              \
    vec result;                                  \
    __VA_ARGS__                                  \
    store_(t + c, result);                       \
  }                                              \
  break
  switch ((sdf_kernel)job->kernel) {
#define DECAY(id, rate, distance, polynomial) \
  case SDF_##id: EACH(result = kappa_##id(value, k););
    SDF_DECAYS(DECAY)
    case SDF_POLYNOMIAL:
      EACH(result = kappa_POLYNOMIAL(value, (real)job->a, (real)job->b, job->degree););
    case SDF_LINEAR: EACH(result = value;);
    case SDF_NTK: {
      const real *norms_x = (const real *)job->norms_x + at.i;
      const real *norms_z = (const real *)(job->symmetric ? job->norms_x : job->norms_z) + at.j;
      for (ptrdiff_t c = 0; c < count; c += LANES) {
        store_(t + c, kappa_NTK(load_(s + c), job->degree));
      }
      for (ptrdiff_t r = 0; r < at.rows; r++) {
        for (ptrdiff_t c = 0; c < at.width; c += LANES) {
          real *p = t + r * at.width + c;
          store_(p, load_(p) * (load_(norms_z + c) * norms_x[r]));
        }
      }
      break;
    }
    default: break; /* prepare refused it */
  }
}

/* ----------------------------------------------------------- store of a unit */

static inline void copy_row(real *to, const real *from, ptrdiff_t count, int streaming) {
  ptrdiff_t c = 0;
  if (streaming) {
    for (; c < count && (uintptr_t)(to + c) % 64 != 0; c++) to[c] = from[c];
    for (; c + LINE <= count; c += LINE) {
#pragma GCC unroll 4
      for (int l = 0; l < LINE; l += LANES) stream_(to + c + l, load_any_(from + c + l));
    }
  }
  for (; c + LANES <= count; c += LANES) store_any_(to + c, load_any_(from + c));
  for (; c < count; c++) to[c] = from[c];
}

/* Rows and columns of the unit that are not padding, relative to its corner. */
typedef struct {
  ptrdiff_t r0, r1, c0, c1;
} extent;

static extent inside(const sdf_job *job, place at) {
  const ptrdiff_t i = at.i - job->pad_x, j = at.j - job->pad_z;
  return (extent){most(0, -i), least(at.rows, job->n - i), most(0, -j),
                  least(at.width, job->m - j)};
}

static void store_unit(const sdf_job *job, place at, const real *t, int mirrored) {
  const extent e = inside(job, at);
  const ptrdiff_t i = at.i - job->pad_x, j = at.j - job->pad_z, ld = job->ld;
  real *out = job->out;
  for (ptrdiff_t r = e.r0; r < e.r1; r++) {
    copy_row(out + (i + r) * ld + j + e.c0, t + r * at.width + e.c0, e.c1 - e.c0,
             job->streaming);
  }
  if (!mirrored) return;
  for (ptrdiff_t c = e.c0 / LANES * LANES; c < e.c1; c += LANES) {
    for (ptrdiff_t r = e.r0 / LANES * LANES; r < e.r1; r += LANES) {
      if (c >= e.c0 && c + LANES <= e.c1 && r >= e.r0 && r + LANES <= e.r1) {
        real *to = out + (j + c) * ld + i + r;
        vec block[LANES];
        for (int l = 0; l < LANES; l++) block[l] = load_(t + (r + l) * at.width + c);
        transpose_(block);
        if (job->streaming) {
          for (int l = 0; l < LANES; l++) stream_(to + l * ld, block[l]);
        } else {
          for (int l = 0; l < LANES; l++) store_any_(to + l * ld, block[l]);
        }
      } else {
        for (ptrdiff_t q = most(c, e.c0); q < least(c + LANES, e.c1); q++) {
          for (ptrdiff_t p = most(r, e.r0); p < least(r + LANES, e.r1); p++) {
            out[(j + q) * ld + i + p] = t[p * at.width + q];
          }
        }
      }
    }
  }
}

/* The mirror image of a whole tile by whole rows, for a ragged `out`: from L2, with as few
 * lines written in parts as there are. `strip` holds LANES rows. */
static void store_image(const sdf_job *job, place at, const real *t, real *strip) {
  const extent e = inside(job, at);
  real *out = (real *)job->out + (at.j - job->pad_z) * job->ld + (at.i - job->pad_x);
  for (ptrdiff_t c = 0; c < e.c1; c += LANES) {
    for (ptrdiff_t r = 0; r < e.r1; r += LANES) {
      vec block[LANES];
      for (int l = 0; l < LANES; l++) {
        block[l] = r + l < at.rows ? load_(t + (r + l) * at.width + c) : (vec){0};
      }
      transpose_(block);
      for (int l = 0; l < LANES; l++) store_(strip + l * TILE + r, block[l]);
    }
    for (ptrdiff_t q = c; q < least(c + LANES, e.c1); q++) {
      copy_row(out + q * job->ld, strip + (q - c) * TILE, e.r1, 1);
    }
  }
}

/* -------------------------------------------------------- product of a unit */

typedef struct { /* arguments of `multiply`, at the first row and column of a unit */
  const void *w_rows, *w_cols;
  double *sum_rows, *sum_cols;
  ptrdiff_t ldw, lds, p;
  int w_size;
} product;

/* The product at tile (ti, tj), or at a unit further down. */
static product moved(const product *to, ptrdiff_t rows, ptrdiff_t cols) {
  product there = *to;
  there.w_rows = (const char *)to->w_rows + rows * to->w_size;
  there.w_cols = (const char *)to->w_cols + cols * to->w_size;
  there.sum_rows += rows;
  if (to->sum_cols != NULL) there.sum_cols += cols;
  return there;
}

#define SUM_BITS SDF_BITS
#include "product.h"
#if SDF_BITS == 32
#define SUM_BITS 64
#include "product.h"
#endif

static void multiply_unit(const real *t, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t width,
                          const product *to, int mirrored, ptrdiff_t ahead) {
#if SDF_BITS == 32
  if (to->w_size == 4) {
    multiply_unit_32(t, step, rows, width, to, mirrored, ahead);
    return;
  }
#endif
  multiply_unit_64(t, step, rows, width, to, mirrored, ahead);
}

/* ------------------------------------------------------------- a unit of half K */

/* `from` has `size` bytes, a multiple of 64; both begin on a cache line. */
static void copy_lines(void *to, const void *from, ptrdiff_t size, int stream) {
  for (ptrdiff_t c = 0; c < size; c += SIMD_BYTES) {
    const vec v = load_((const real *)((const char *)from + c));
    real *p = (real *)((char *)to + c);
    if (stream) {
      stream_(p, v);
    } else {
      store_(p, v);
    }
  }
}

/* UNIT rows of the tile `to`, whose entries have `size` bytes: zero beyond n. */
static void keep_unit(const sdf_job *job, place at, const real *t, void *to, int size) {
  const extent e = inside(job, at);
  for (ptrdiff_t r = 0; r < UNIT; r++) {
    real row[TILE] __attribute__((aligned(64)));
    const ptrdiff_t count = r < e.r1 ? e.c1 : 0;
    const real *from = t + r * at.width;
    if (size == (int)sizeof(real) && count == TILE) {
      copy_lines((char *)to + r * TILE * size, from, TILE * size, job->stream);
      continue;
    }
    if (size == (int)sizeof(real)) {
      for (ptrdiff_t c = 0; c < TILE; c++) row[c] = c < count ? from[c] : 0;
    } else { /* double to float */
      float *rounded = (float *)(void *)row;
      for (ptrdiff_t c = 0; c < count; c++) rounded[c] = (float)from[c];
      for (ptrdiff_t c = count; c < TILE; c++) rounded[c] = 0;
    }
    copy_lines((char *)to + r * TILE * size, row, TILE * size, job->stream);
  }
}

/* ------------------------------------------------------------------ one tile */

enum { PAIRS = 1, KERNEL = 2 }; /* steps of a tile */

typedef struct { /* a tile of `half_gram`, entries of `size` bytes */
  char *tile;
  int size;
} kept;

/* Tile (ti, tj): pair quantities, kernel function, then store, product (`to`) or `keep`. Where
 * all columns of X fit one pass, a unit goes through every step before the next begins. */
static void do_tile(const sdf_job *job, ptrdiff_t ti, ptrdiff_t tj, int steps, real *pairs,
                    real *scratch, const product *to, const kept *keep) {
  const real *packed_x = job->packed_x;
  const real *packed_z = job->symmetric ? job->packed_x : job->packed_z;
  const ptrdiff_t d = job->d, i0 = ti * TILE, j0 = tj * TILE;
  const ptrdiff_t panels = job->symmetric ? job->panels_x : job->panels_z;
  const ptrdiff_t width = least(TILE, panels * NR - j0);
  const ptrdiff_t rows = least(TILE, quotient_up(job->n + job->pad_x - i0, MR) * MR);
  const int mirrored = job->symmetric && ti != tj;
  /* scratch holds the tile, else a unit */
  const int whole = scratch != NULL && (d > DEPTH || job->ragged);
  void (*const pair_loop)(const real *, const real *, ptrdiff_t, int, real *, ptrdiff_t) =
      job->pair == SDF_PAIR_DIFFERENCES ? pair_differences
      : job->pair == SDF_PAIR_L1        ? pair_l1
                                        : pair_inner;

  ptrdiff_t k = (steps & PAIRS) ? 0 : d; /* the first column not yet seen */
  do {
    const ptrdiff_t depth = least(DEPTH, d - k);
    for (ptrdiff_t u = 0; u < rows; u += UNIT) {
      const place at = {i0 + u, least(UNIT, rows - u), j0, width};
      real *const part = whole ? scratch + u * width : scratch;
      real *s = pairs != NULL ? pairs + u * width : part;
      if (steps & PAIRS) {
        for (ptrdiff_t j = j0; j < j0 + width; j += NR) {
          const real *z = packed_z + j * d + k * NR;
          for (ptrdiff_t i = at.i; i < at.i + at.rows; i += MR) {
            const real *x = packed_x + i / NR * NR * d + i % NR + k * NR;
            real *const t = s + (i - at.i) * width + (j - j0);
            pair_loop(x, z, depth, k == 0, t, width);
            if (job->pair == SDF_PAIR_ANGLE && k + depth == d) {
              angles_of_block(x - k * NR, z - k * NR, d, t, width);
            }
          }
        }
        if (k + depth < d) continue;
        if (job->pair == SDF_PAIR_SQUARES) {
          for (ptrdiff_t r = 0; r < at.rows; r++) {
            squares_of_row(job, at.i + r, j0, width, s + r * width);
          }
        }
      }
      if (!(steps & KERNEL)) continue;
      real *t = pairs != NULL ? part : s;
      apply(job, at, s, t);
      if (to != NULL) {
        const product here = moved(to, u, 0);
        multiply_unit(t, width, at.rows, width, &here, mirrored, 0);
      } else if (keep != NULL) {
        keep_unit(job, at, t, keep->tile + u * TILE * keep->size, keep->size);
      } else {
        store_unit(job, at, t, mirrored && !job->ragged);
      }
    }
    k += depth;
  } while (k < d);
  if (mirrored && job->ragged && (steps & KERNEL) && keep == NULL) {
    const place all = {i0, rows, j0, width};
    store_image(job, all, scratch, scratch + TILE * TILE);
  }
}

static sdf_status do_tiles(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, int steps,
                           real *pairs, void *scratch, const kept *keep) {
  const sdf_status status = check(job, lo, hi, job->tiles);
  if (status != SDF_OK) return status;
  if ((steps & KERNEL) && ((job->out == NULL && keep == NULL) || unusable(scratch, 1)))
    return SDF_NO_MEMORY_GIVEN;
  if (steps != (PAIRS | KERNEL) && unusable(pairs, job->pairs_size)) return SDF_NO_MEMORY_GIVEN;

  ptrdiff_t ti = 0, tj = lo; /* tile `lo` in rows of tiles, from the diagonal for K(X, X) */
  for (ptrdiff_t width; ti < job->tiles_x; ti++, tj -= width) {
    width = job->tiles_z - (job->symmetric ? ti : 0);
    if (tj < width) break;
  }
  if (job->symmetric) tj += ti;
  for (ptrdiff_t t = lo; t < hi; t++) {
    kept tile = {NULL, 0};
    if (keep != NULL) tile = (kept){keep->tile + t * TILE * TILE * keep->size, keep->size};
    do_tile(job, ti, tj, steps, pairs == NULL ? NULL : pairs + t * TILE * TILE, scratch, NULL,
            keep == NULL ? NULL : &tile);
    if (++tj == job->tiles_z) tj = job->symmetric ? ++ti : (++ti, 0);
  }
  if (job->stream) stream_end_();
  return SDF_OK;
}

static sdf_status gram(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *scratch) {
  return do_tiles(job, lo, hi, PAIRS | KERNEL, NULL, scratch, NULL);
}

static sdf_status pairs(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi) {
  return do_tiles(job, lo, hi, PAIRS, job->pairs, NULL, NULL);
}

static sdf_status of_pairs(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *scratch) {
  return do_tiles(job, lo, hi, KERNEL, job->pairs, scratch, NULL);
}

static sdf_status half_gram(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *half,
                            int half_size, void *scratch) {
  if (!job->symmetric || (half_size != 4 && half_size != 8) || half_size > (int)sizeof(real) ||
      job->out != NULL) {
    return SDF_BAD_SIZE;
  }
  if (unusable(half, job->tiles)) return SDF_NO_MEMORY_GIVEN;
  const kept keep = {half, half_size};
  return do_tiles(job, lo, hi, PAIRS | KERNEL, NULL, scratch, &keep);
}

static sdf_status multiply(const sdf_job *job, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0,
                           ptrdiff_t j1, const void *wt, int w_size, ptrdiff_t ldw, ptrdiff_t p,
                           double *sum_rows, double *sum_cols, ptrdiff_t lds, void *scratch) {
  const sdf_status status = check(job, i0, i1, job->tiles_x);
  if (status != SDF_OK) return status;
  if (j0 < 0 || j1 < j0 || j1 > job->tiles_z) return SDF_BAD_RANGE;
  if (p < 0 || ldw < TILE * job->tiles_z || lds < TILE * most(job->tiles_x, job->tiles_z) ||
      ldw % LINE != 0 || (w_size != 8 && w_size != (int)sizeof(real))) {
    return SDF_BAD_SIZE;
  }
  if (unusable(wt, p) || unusable(scratch, 1) || (p > 0 && sum_rows == NULL) ||
      (p > 0 && job->symmetric && sum_cols == NULL)) {
    return SDF_NO_MEMORY_GIVEN;
  }
  const product all = {wt, wt, sum_rows, job->symmetric ? sum_cols : NULL, ldw, lds, p, w_size};
  for (ptrdiff_t ti = i0; ti < i1; ti++) {
    for (ptrdiff_t tj = job->symmetric ? most(j0, ti) : j0; tj < j1; tj++) {
      const product to = moved(&all, ti * TILE, tj * TILE);
      do_tile(job, ti, tj, PAIRS | KERNEL, NULL, scratch, &to, NULL);
    }
  }
  return SDF_OK;
}

/* One block of `half_multiply`: parts a <= b, of tile rows [i0, i1) and columns [j0, j1). */
static void half_block(const real *half, ptrdiff_t n, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0,
                       ptrdiff_t j1, const product *all) {
  const ptrdiff_t side = quotient_up(n, TILE), unit = UNIT * TILE;
  for (ptrdiff_t ti = i0; ti < i1; ti++) {
    const ptrdiff_t rows = quotient_up(least(TILE, n - ti * TILE), UNIT) * UNIT;
    const ptrdiff_t first = most(j0, ti);
    const real *row = half + (ti * (2 * side - ti + 1) / 2 - ti) * (TILE * TILE);
    const ptrdiff_t next_row = (side - ti - 1 + most(j0, ti + 1)) * (TILE * TILE);
    for (ptrdiff_t tj = first; tj < j1; tj++) {
      const ptrdiff_t width = quotient_up(least(TILE, n - tj * TILE), NR) * NR;
      const real *tile = row + tj * (TILE * TILE);
      for (ptrdiff_t u = 0; u < rows; u += UNIT) {
        const product here = moved(all, ti * TILE + u, tj * TILE);
        const real *t = tile + u * TILE;
        ptrdiff_t ahead = unit; /* to the unit that comes next */
        if (tj + 1 == j1 && u + UNIT >= rows) ahead = ti + 1 < i1 ? row - t + next_row : 0;
        multiply_unit(t, TILE, UNIT, width, &here, ti != tj, ahead);
      }
    }
  }
}

static sdf_status half_multiply(const void *half, ptrdiff_t n, const double *wt, ptrdiff_t ldw,
                                ptrdiff_t p, ptrdiff_t parts, ptrdiff_t lo, ptrdiff_t hi,
                                double *sums, ptrdiff_t lds) {
  const ptrdiff_t side = quotient_up(n, TILE);
  if (n < 0 || p < 0 || parts < 1 || ldw < TILE * side || lds < TILE * side ||
      ldw % LINE != 0) {
    return SDF_BAD_SIZE;
  }
  if (lo < 0 || hi < lo || hi > parts * (parts + 1) / 2) return SDF_BAD_RANGE;
  if (n == 0 || p == 0) return SDF_OK;
  if (unusable(half, 1) || unusable(wt, 1) || sums == NULL) return SDF_NO_MEMORY_GIVEN;
  ptrdiff_t a = 0, b = lo;
  for (; b >= parts - a; a++) b -= parts - a;
  b += a;
  for (ptrdiff_t block = lo; block < hi; block++) {
    const ptrdiff_t i0 = side * a / parts, i1 = side * (a + 1) / parts;
    const ptrdiff_t j0 = side * b / parts, j1 = side * (b + 1) / parts;
    double *sum_rows = sums + b * p * lds, *sum_cols = sums + a * p * lds;
    const product all = {wt, wt, sum_rows, sum_cols, ldw, lds, p, 8};
    for (ptrdiff_t q = 0; q < p; q++) {
      memset(sum_rows + q * lds + i0 * TILE, 0, (size_t)((i1 - i0) * TILE) * sizeof(double));
      memset(sum_cols + q * lds + j0 * TILE, 0, (size_t)((j1 - j0) * TILE) * sizeof(double));
    }
    half_block(half, n, i0, i1, j0, j1, &all);
    if (++b == parts) b = ++a;
  }
  return SDF_OK;
}

/* --------------------------------------------------------------- Gram-Schmidt */

/* TI rows of the basis and TQ of w; SDF_COLUMN_BLOCK columns of TARGETS rows of w stay in L1.
 */
static inline __attribute__((always_inline)) void inner_tile(const real *basis, ptrdiff_t ldb,
                                                             const real *w, ptrdiff_t ldw,
                                                             ptrdiff_t width, double *sums,
                                                             ptrdiff_t p, const int TI,
                                                             const int TQ) {
  vec sum[4][TARGETS] = {{{0}}};
  ptrdiff_t c = 0;
  for (; c + LANES <= width; c += LANES) {
    vec value[TARGETS];
#pragma GCC unroll 8
    for (int b = 0; b < TQ; b++) value[b] = load_any_(w + b * ldw + c);
#pragma GCC unroll 8
    for (int a = 0; a < TI; a++) {
      const vec q = load_any_(basis + a * ldb + c);
#pragma GCC unroll 8
      for (int b = 0; b < TQ; b++) sum[a][b] += q * value[b];
    }
  }
  for (int a = 0; a < TI; a++) {
    for (int b = 0; b < TQ; b++) {
      double total = 0;
      for (int l = 0; l < LANES; l++) total += (double)sum[a][b][l];
      for (ptrdiff_t r = c; r < width; r++) {
        total += (double)basis[a * ldb + r] * (double)w[b * ldw + r];
      }
      sums[a * p + b] = total;
    }
  }
}

static inline __attribute__((always_inline)) void subtract_tile(const real *basis,
                                                                ptrdiff_t ldb, const double *h,
                                                                ptrdiff_t p, real *w,
                                                                ptrdiff_t ldw, ptrdiff_t width,
                                                                const int TI, const int TQ) {
  ptrdiff_t c = 0;
  for (; c + LANES <= width; c += LANES) {
    vec q[4];
#pragma GCC unroll 8
    for (int a = 0; a < TI; a++) q[a] = load_any_(basis + a * ldb + c);
#pragma GCC unroll 8
    for (int b = 0; b < TQ; b++) {
      vec value = load_any_(w + b * ldw + c);
#pragma GCC unroll 8
      for (int a = 0; a < TI; a++) value -= q[a] * (real)h[a * p + b];
      store_any_(w + b * ldw + c, value);
    }
  }
  for (; c < width; c++) {
    for (int b = 0; b < TQ; b++) {
      for (int a = 0; a < TI; a++) w[b * ldw + c] -= basis[a * ldb + c] * (real)h[a * p + b];
    }
  }
}

/* Calls TILE_(..., TI, TQ) with constants for every four rows of the basis and TARGETS of w. */
#define EACH_TILE(TILE_)                                                               \
  for (ptrdiff_t b = 0; b < p; b += TARGETS) {                                         \
    ptrdiff_t i = 0;                                                                   \
    for (; i + 4 <= k; i += 4) {                                                       \
      if (b + TARGETS <= p) {                                                          \
        TILE_(i, b, 4, TARGETS);                                                       \
      } else {                                                                         \
        for (ptrdiff_t one = b; one < p; one++) TILE_(i, one, 4, 1);                   \
      }                                                                                \
    }                                                                                  \
    for (; i < k; i++) {                                                               \
      for (ptrdiff_t one = b; one < least(b + TARGETS, p); one++) TILE_(i, one, 1, 1); \
    }                                                                                  \
  }

static sdf_status check_rows(const void *basis, ptrdiff_t k, ptrdiff_t ldb, const void *w,
                             ptrdiff_t p, ptrdiff_t ldw, ptrdiff_t n, const double *h,
                             ptrdiff_t lo, ptrdiff_t hi) {
  if (k < 0 || p < 0 || n < 0 || ldb < n || ldw < n) return SDF_BAD_SIZE;
  if (lo < 0 || hi < lo || hi > quotient_up(n, SDF_COLUMN_BLOCK)) return SDF_BAD_RANGE;
  const int none = k == 0 || p == 0 || n == 0;
  return none || (basis != NULL && w != NULL && h != NULL) ? SDF_OK : SDF_NO_MEMORY_GIVEN;
}

static sdf_status inner_products(const void *basis, ptrdiff_t k, ptrdiff_t ldb, const void *w,
                                 ptrdiff_t p, ptrdiff_t ldw, ptrdiff_t n, double *sums,
                                 ptrdiff_t lds, ptrdiff_t lo, ptrdiff_t hi) {
  const sdf_status status = check_rows(basis, k, ldb, w, p, ldw, n, sums, lo, hi);
  if (status != SDF_OK) return status;
  if (lds < k * p) return SDF_BAD_SIZE;
  for (ptrdiff_t u = lo; u < hi; u++) {
    const ptrdiff_t first = u * SDF_COLUMN_BLOCK, width = least(SDF_COLUMN_BLOCK, n - first);
    const real *q = (const real *)basis + first, *v = (const real *)w + first;
    double *to = sums + u * lds;
#define INNER_TILE(i, b, TI, TQ) \
  inner_tile(q + (i) * ldb, ldb, v + (b) * ldw, ldw, width, to + (i) * p + (b), p, TI, TQ)
    EACH_TILE(INNER_TILE)
  }
  return SDF_OK;
}

static sdf_status project_out(const void *basis, ptrdiff_t k, ptrdiff_t ldb, const double *h,
                              void *w, ptrdiff_t p, ptrdiff_t ldw, ptrdiff_t n, ptrdiff_t lo,
                              ptrdiff_t hi) {
  const sdf_status status = check_rows(basis, k, ldb, w, p, ldw, n, h, lo, hi);
  if (status != SDF_OK) return status;
  for (ptrdiff_t u = lo; u < hi; u++) {
    const ptrdiff_t first = u * SDF_COLUMN_BLOCK, width = least(SDF_COLUMN_BLOCK, n - first);
    const real *q = (const real *)basis + first;
    real *v = (real *)w + first;
#define SUBTRACT_TILE(i, b, TI, TQ) \
  subtract_tile(q + (i) * ldb, ldb, h + (i) * p + (b), p, v + (b) * ldw, ldw, width, TI, TQ)
    EACH_TILE(SUBTRACT_TILE)
  }
  return SDF_OK;
}

/* ------------------------------------------------------------- spectral filters */

static sdf_status shrinkage_path(const void *d, ptrdiff_t k, const double *lam, ptrdiff_t n_lam,
                                 const double *alpha, ptrdiff_t n_steps, void *out,
                                 ptrdiff_t lo, ptrdiff_t hi) {
  const ptrdiff_t blocks = quotient_up(k, SDF_FILTER_BLOCK);
  if (lo < 0 || hi < lo || hi > n_lam * blocks) return SDF_BAD_RANGE;
  for (ptrdiff_t unit = lo; unit < hi; unit++) {
    const ptrdiff_t l = unit / blocks, first = unit % blocks * SDF_FILTER_BLOCK;
    const ptrdiff_t count = least(SDF_FILTER_BLOCK, k - first);
    const real *eigenvalues = (const real *)d + first;
    double a[SDF_FILTER_BLOCK], b[SDF_FILTER_BLOCK];
    for (ptrdiff_t c = 0; c < count; c++) {
      a[c] = smoother_((double)eigenvalues[c], lam[l]);
      b[c] = 1;
    }
    for (ptrdiff_t t = 0; t < n_steps; t++) {
      const double weight = t == 0 ? 0 : alpha[t];
      real *row = (real *)out + (l * n_steps + t) * k + first;
      for (ptrdiff_t c = 0; c < count; c++) {
        b[c] = next_shrinkage_(a[c], b[c], weight);
        row[c] = (real)b[c];
      }
    }
  }
  return SDF_OK;
}

static sdf_status pure_filters(const void *d, ptrdiff_t k, const double *lam, ptrdiff_t n_lam,
                               ptrdiff_t n_steps, void *out, ptrdiff_t lo, ptrdiff_t hi) {
  const ptrdiff_t blocks = quotient_up(k, SDF_FILTER_BLOCK);
  if (lo < 0 || hi < lo || hi > n_lam * blocks) return SDF_BAD_RANGE;
  for (ptrdiff_t unit = lo; unit < hi; unit++) {
    const ptrdiff_t l = unit / blocks, first = unit % blocks * SDF_FILTER_BLOCK;
    const ptrdiff_t count = least(SDF_FILTER_BLOCK, k - first);
    const real *eigenvalues = (const real *)d + first;
    double a[SDF_FILTER_BLOCK], filter[SDF_FILTER_BLOCK];
    for (ptrdiff_t c = 0; c < count; c++) {
      a[c] = smoother_((double)eigenvalues[c], lam[l]);
      filter[c] = 1 / ((double)eigenvalues[c] + lam[l]);
    }
    for (ptrdiff_t t = 0; t < n_steps; t++) {
      real *row = (real *)out + (l * n_steps + t) * k + first;
      for (ptrdiff_t c = 0; c < count; c++) {
        row[c] = (real)filter[c];
        filter[c] *= a[c];
      }
    }
  }
  return SDF_OK;
}

static void exp_each(const void *x, void *y, ptrdiff_t n) {
  const real *from = x;
  real *to = y;
  ptrdiff_t i = 0;
  for (; i + LANES <= n; i += LANES) store_any_(to + i, exp_(load_any_(from + i)));
  for (; i < n; i++) to[i] = exp_(splat_(from[i]))[0];
}

/* ------------------------------------------------------------------- the table */

#define JOIN_(a, b, c, d) a##b##c##d
#define JOIN(a, b, c, d) JOIN_(a, b, c, d)
const sdf_loops JOIN(sdf_f, SDF_BITS, _, SDF_ISA_ID) = {
    .isa = JOIN(SDF_, SDF_ISA_ID, , ),
    .real_size = sizeof(real),
    .mr = MR,
    .nr = NR,
    .tile = TILE,
    .line = LINE,
    .direct = DIRECT,
    .exp = exp_each,
    .prepare = prepare,
    .center = center,
    .pack = pack,
    .gram = gram,
    .pairs = pairs,
    .of_pairs = of_pairs,
    .multiply = multiply,
    .half_gram = half_gram,
    .half_multiply = half_multiply,
    .inner_products = inner_products,
    .project_out = project_out,
    .shrinkage_path = shrinkage_path,
    .pure_filters = pure_filters,
};
