/* orthogonalise.c: a pass of Gram-Schmidt, in units of SDF_COLUMN_BLOCK columns: the inner
 * products of rows with those of a basis, and the projection of the rows off the basis.
 */
#include "loops.h"

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

sdf_status LOOP(inner_products)(const void *basis, ptrdiff_t k, ptrdiff_t ldb, const void *w,
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

sdf_status LOOP(project_out)(const void *basis, ptrdiff_t k, ptrdiff_t ldb, const double *h,
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
