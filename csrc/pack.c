/* pack.c: rows of X and Z -> panels of NR rows, column by column, as the register tiles read
 * them.
 *
 * Squared distances subtract a shift located among the points; NTK divides each row by its
 * norm. The norms of centred rows are summed in the order of the inner product, so that equal
 * rows are at distance 0.
 */
#include "loops.h"

enum { CHUNK = 64 }; /* columns summed at a time */

/* The mean of evenly spaced rows is as good a shift as the mean of all rows: it only has to be
 * among the points. Scaled terms cannot overflow for finite input. */
sdf_status LOOP(center)(const sdf_job *job) {
  const real *rows = job->plan.symmetric ? job->problem.x : job->problem.z;
  const ptrdiff_t n = job->plan.symmetric ? job->problem.n : job->problem.m, d = job->problem.d;
  const ptrdiff_t count = least(n, 1024);
  real *shift = job->buffers.shift;
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
      shift[k0 + k] = mean - mean == 0 ? mean : 0; /* 0 if it is not finite */
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
  for (ptrdiff_t k0 = 0; k0 < d; k0 += CHUNK) { /* sums of sums have smaller rounding errors */
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
  const ptrdiff_t d = job->problem.d, first = panel * NR - pad;
  const real *shift = job->buffers.shift;
  const int unit_rows = job->plan.pair == SDF_PAIR_ANGLE;
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
  if (job->plan.pair == SDF_PAIR_SQUARES) { /* in the order of pair_inner */
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

sdf_status LOOP(pack)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi) {
  const sdf_status status = check_job(job, lo, hi, job->plan.panels_x + job->plan.panels_z);
  if (status != SDF_OK) return status;
  for (ptrdiff_t p = lo; p < hi; p++) {
    if (p < job->plan.panels_x) {
      pack_panel(job, job->problem.x, job->problem.n, job->plan.pad_x, p, job->buffers.packed_x,
                 job->buffers.norms_x);
    } else {
      pack_panel(job, job->problem.z, job->problem.m, job->plan.pad_z, p - job->plan.panels_x,
                 job->buffers.packed_z, job->buffers.norms_z);
    }
  }
  return SDF_OK;
}
