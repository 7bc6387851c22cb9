/* product.c: K(X, Z) W without forming K: the entries of a unit are multiplied while they are
 * in L1, from both sides if K is symmetric.
 */
#include "loops.h"

#define SUM_BITS SDF_BITS
#include "product.h"
#if SDF_BITS == 32
#define SUM_BITS 64
#include "product.h"
#endif

void multiply_unit(const real *t, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t width,
                   const product *to, int mirrored, ptrdiff_t ahead) {
#if SDF_BITS == 32
  if (to->w_size == 4) {
    unit_product_32(t, step, rows, width, to, mirrored, ahead);
    return;
  }
#endif
  unit_product_64(t, step, rows, width, to, mirrored, ahead);
}

/* The epilogue of `multiply`; `to` is the product at the tile of the unit. */
static void multiply_entries(const sdf_job *job, place at, const real *t, const void *to) {
  (void)job;
  const product here = moved(to, at.i % TILE, 0);
  multiply_unit(t, at.width, at.rows, at.width, &here, at.mirrored, 0);
}

sdf_status LOOP(multiply)(const sdf_job *job, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0,
                          ptrdiff_t j1, const void *wt, int w_size, ptrdiff_t ldw, ptrdiff_t p,
                          double *sum_rows, double *sum_cols, ptrdiff_t lds, void *scratch) {
  const sdf_status status = check_job(job, i0, i1, job->plan.tiles_x);
  if (status != SDF_OK) return status;
  if (j0 < 0 || j1 < j0 || j1 > job->plan.tiles_z) return SDF_BAD_RANGE;
  if (p < 0 || ldw < TILE * job->plan.tiles_z ||
      lds < TILE * most(job->plan.tiles_x, job->plan.tiles_z) || ldw % LINE != 0 ||
      (w_size != 8 && w_size != (int)sizeof(real))) {
    return SDF_BAD_SIZE;
  }
  if (unusable(wt, p) || unusable(scratch, 1) || (p > 0 && sum_rows == NULL) ||
      (p > 0 && job->plan.symmetric && sum_cols == NULL)) {
    return SDF_NO_MEMORY_GIVEN;
  }
  const product all = {wt,  wt,  sum_rows, job->plan.symmetric ? sum_cols : NULL,
                       ldw, lds, p,        w_size};
  for (ptrdiff_t ti = i0; ti < i1; ti++) {
    for (ptrdiff_t tj = job->plan.symmetric ? most(j0, ti) : j0; tj < j1; tj++) {
      const product to = moved(&all, ti * TILE, tj * TILE);
      do_tile(job, (tile_index){ti, tj}, scratch, multiply_entries, &to);
    }
  }
  return SDF_OK;
}
