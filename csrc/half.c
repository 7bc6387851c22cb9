/* half.c: K(X, X) in packed symmetric storage: the tiles on and above the diagonal, row of
 * tiles by row of tiles, each tile complete and zero beyond n; and products of such a matrix. A
 * tile off the diagonal serves both sides of the product, so each tile is read from memory
 * once.
 */
#include "loops.h"

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

typedef struct { /* a tile of packed symmetric storage, entries of `size` bytes */
  char *tile;
  int size;
} kept;

/* The epilogue of `half_gram`: UNIT rows of a tile, zero beyond n. */
static void keep_unit(const sdf_job *job, place at, const real *t, const void *to) {
  const extent e = inside(job, at);
  const int size = ((const kept *)to)->size;
  char *const rows = ((const kept *)to)->tile + at.i % TILE * TILE * size;
  for (ptrdiff_t r = 0; r < UNIT; r++) {
    real row[TILE] __attribute__((aligned(64)));
    const ptrdiff_t count = r < e.r1 ? e.c1 : 0;
    const real *from = t + r * at.width;
    if (size == (int)sizeof(real) && count == TILE) {
      copy_lines(rows + r * TILE * size, from, TILE * size, job->problem.stream);
      continue;
    }
    if (size == (int)sizeof(real)) {
      for (ptrdiff_t c = 0; c < TILE; c++) row[c] = c < count ? from[c] : 0;
    } else { /* double to float */
      float *rounded = (float *)(void *)row;
      for (ptrdiff_t c = 0; c < count; c++) rounded[c] = (float)from[c];
      for (ptrdiff_t c = count; c < TILE; c++) rounded[c] = 0;
    }
    copy_lines(rows + r * TILE * size, row, TILE * size, job->problem.stream);
  }
}

sdf_status LOOP(half_gram)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *half,
                           int half_size, void *scratch) {
  if (!job->plan.symmetric || (half_size != 4 && half_size != 8) ||
      half_size > (int)sizeof(real) || job->problem.out != NULL) {
    return SDF_BAD_SIZE;
  }
  if (unusable(half, job->plan.tiles)) return SDF_NO_MEMORY_GIVEN;
  const sdf_status status = check_job(job, lo, hi, job->plan.tiles);
  if (status != SDF_OK) return status;
  if (unusable(scratch, 1)) return SDF_NO_MEMORY_GIVEN;
  tile_index at = tile_at(job, lo);
  for (ptrdiff_t t = lo; t < hi; t++, at = tile_after(job, at)) {
    const kept to = {(char *)half + t * TILE * TILE * half_size, half_size};
    do_tile(job, at, scratch, keep_unit, &to);
  }
  if (job->problem.stream) stream_end_();
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
        ptrdiff_t ahead = unit; /* to the next unit */
        if (tj + 1 == j1 && u + UNIT >= rows) ahead = ti + 1 < i1 ? row - t + next_row : 0;
        multiply_unit(t, TILE, UNIT, width, &here, ti != tj, ahead);
      }
    }
  }
}

sdf_status LOOP(half_multiply)(const void *half, ptrdiff_t n, const double *wt, ptrdiff_t ldw,
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
