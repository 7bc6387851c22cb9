/* loops.h: declarations shared by the sources of one table of loops. The build compiles each
 * source once per instruction set and precision, with SDF_BITS (64 or 32), SDF_ISA_ID (a suffix
 * of an sdf_isa, such as AVX2) and the compiler flags of that instruction set.
 *
 *     job.c             sizes and constants of a job; checks
 *     pack.c            rows -> panels
 *     pairs.c           panels -> pair quantities of a unit
 *     gram.c            kernel function, the loop over a tile, store
 *     product.c         K W without forming K (product.h: in registers)
 *     half.c            K(X, X) in packed symmetric storage, and its products
 *     orthogonalise.c   inner products with a basis, projection out of it
 *     filters.c         spectral filters
 *     table.c           the table of pointers
 *
 * Everything is symmetric in x and z to the last bit, and so is K(X, X). The order of the
 * operations for one entry depends only on its two rows.
 */
#ifndef SDF_LOOPS_H
#define SDF_LOOPS_H

#include "sdf.h"

#include "elementary.h"
#include "tiles.h"

#define FORMULA static inline
#include "formulas.h"

/* LOOP(gram) is, for example, sdf_gram_f64_AVX2: unique per instruction set and precision. */
#define LOOP_JOINED(name, bits, isa) sdf_##name##_f##bits##_##isa
#define LOOP_OF(name, bits, isa) LOOP_JOINED(name, bits, isa)
#define LOOP(name) LOOP_OF(name, SDF_BITS, SDF_ISA_ID)

/* Every loop of the table, declared with its type in sdf_loops. */
/* clang-format off */
#define LOOPS(X)                                                                           \
  X(exp) X(prepare) X(center) X(pack) X(gram) X(pairs) X(of_pairs) X(multiply)             \
  X(half_gram) X(half_multiply) X(inner_products) X(project_out) X(shrinkage_path)         \
  X(pure_filters)
/* clang-format on */
#define DECLARE(name) extern __typeof__(*((const sdf_loops *)NULL)->name) LOOP(name);
LOOPS(DECLARE)
#undef DECLARE

static inline ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t most(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static inline ptrdiff_t quotient_up(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

/* ---------------------------------------------------------------- job.c: checks */

static inline int unusable(const void *buffer, ptrdiff_t size) {
  return size > 0 && (buffer == NULL || (uintptr_t)buffer % 64 != 0);
}

/* Whether [lo, hi) is within `count` and the packed rows have memory. */
#define check_job LOOP(check_job)
sdf_status check_job(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, ptrdiff_t count);

/* ------------------------------------------------------- pairs.c, gram.c: tiles */

typedef struct { /* a unit of a tile, in rows counted from the padded start */
  ptrdiff_t i, rows, j, width;
  int mirrored; /* the unit also represents its mirror image */
} place;

/* Adds columns [k, k + depth) to the pair quantities s of a unit; the last column completes
 * them. */
#define pair_unit LOOP(pair_unit)
void pair_unit(const sdf_job *job, place at, ptrdiff_t k, ptrdiff_t depth, real *s);

/* The epilogue: processes the kernel values t of a unit, at.width apart; `to` is its target. */
typedef void epilogue(const sdf_job *job, place at, const real *t, const void *to);

/* Rows and columns of a unit that are not padding, relative to its corner. */
typedef struct {
  ptrdiff_t r0, r1, c0, c1;
} extent;

static inline extent inside(const sdf_job *job, place at) {
  const ptrdiff_t i = at.i - job->plan.pad_x, j = at.j - job->plan.pad_z;
  return (extent){most(0, -i), least(at.rows, job->problem.n - i), most(0, -j),
                  least(at.width, job->problem.m - j)};
}

/* Tiles are numbered by rows of tiles, from the diagonal on for K(X, X). */
typedef struct {
  ptrdiff_t i, j;
} tile_index;

static inline tile_index tile_at(const sdf_job *job, ptrdiff_t number) {
  tile_index t = {0, number};
  for (ptrdiff_t width; t.i < job->plan.tiles_x; t.i++, t.j -= width) {
    width = job->plan.tiles_z - (job->plan.symmetric ? t.i : 0);
    if (t.j < width) break;
  }
  if (job->plan.symmetric) t.j += t.i;
  return t;
}

static inline tile_index tile_after(const sdf_job *job, tile_index t) {
  if (++t.j < job->plan.tiles_z) return t;
  t.i++;
  return (tile_index){t.i, job->plan.symmetric ? t.i : 0};
}

/* One tile: pair quantities, kernel function, epilogue. */
#define do_tile LOOP(do_tile)
void do_tile(const sdf_job *job, tile_index tile, void *scratch, epilogue *end, const void *to);

/* ----------------------------------------------- product.c: product of one unit */

typedef struct { /* arguments of `multiply`, at the first row and column of a unit */
  const void *w_rows, *w_cols;
  double *sum_rows, *sum_cols;
  ptrdiff_t ldw, lds, p;
  int w_size;
} product;

/* The product at a tile or a unit that is offset by so many rows and columns. */
static inline product moved(const product *to, ptrdiff_t rows, ptrdiff_t cols) {
  product there = *to;
  there.w_rows = (const char *)to->w_rows + rows * to->w_size;
  there.w_cols = (const char *)to->w_cols + cols * to->w_size;
  there.sum_rows += rows;
  if (to->sum_cols != NULL) there.sum_cols += cols;
  return there;
}

/* Adds the products of entries t, `step` reals between rows; those `ahead` reals further are
 * prefetched (0: none are). */
#define multiply_unit LOOP(multiply_unit)
void multiply_unit(const real *t, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t width,
                   const product *to, int mirrored, ptrdiff_t ahead);

#endif
