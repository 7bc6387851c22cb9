/* filters.c: spectral filters of self-distillation, with A = d / (d + lam):
 *
 *     shrinkage_path   B_t = A ((1 - alpha_t) B_(t-1) + alpha_t), B_0 = 1
 *     pure_filters     C_t = A^t / (d + lam)
 */
#include "loops.h"

sdf_status LOOP(shrinkage_path)(const void *d, ptrdiff_t k, const double *lam, ptrdiff_t n_lam,
                                const double *alpha, ptrdiff_t n_steps, void *out, ptrdiff_t lo,
                                ptrdiff_t hi) {
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

sdf_status LOOP(pure_filters)(const void *d, ptrdiff_t k, const double *lam, ptrdiff_t n_lam,
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
