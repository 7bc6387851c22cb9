/* gram.c: K(X, Z) tile by tile: the loop over a tile, the kernel function, the store.
 *
 * If all columns of X fit in one pass, a unit goes through every step before the next one
 * begins. Products (product.c) and packed symmetric storage (half.c) replace the store by their
 * own epilogue.
 */
#include "loops.h"

/* Kernel values t of the pair quantities s of one unit; s and t may be the same. */
static void apply(const sdf_job *job, place at, const real *s, real *t) {
  const ptrdiff_t count = at.rows * at.width;
  const rate k = {(real)job->plan.rate[0], (real)job->plan.rate[1], (real)job->plan.rate[2],
                  (real)job->plan.rate[3]};
#define EACH(...)                                \
  for (ptrdiff_t c = 0; c < count; c += LANES) { \
    const vec value = load_(s + c);              \
    vec result;                                  \
    __VA_ARGS__                                  \
    store_(t + c, result);                       \
  }                                              \
  break
  switch ((sdf_kernel)job->problem.kernel) {
#define DECAY(id, rate, distance, polynomial) \
  case SDF_##id: EACH(result = kappa_##id(value, k););
    SDF_DECAYS(DECAY)
    case SDF_POLYNOMIAL:
      EACH(result = kappa_POLYNOMIAL(value, (real)job->problem.a, (real)job->problem.b,
                                     job->problem.degree););
    case SDF_LINEAR: EACH(result = value;);
    case SDF_NTK: {
      const real *norms_x = (const real *)job->buffers.norms_x + at.i;
      const real *norms_z =
          (const real *)(job->plan.symmetric ? job->buffers.norms_x : job->buffers.norms_z) +
          at.j;
      for (ptrdiff_t c = 0; c < count; c += LANES) {
        store_(t + c, kappa_NTK(load_(s + c), job->problem.degree));
      }
      for (ptrdiff_t r = 0; r < at.rows; r++) {
        for (ptrdiff_t c = 0; c < at.width; c += LANES) {
          real *p = t + r * at.width + c;
          store_(p, load_(p) * (load_(norms_z + c) * norms_x[r]));
        }
      }
      break;
    }
    default: break; /* rejected by prepare */
  }
}

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

/* The epilogue of `gram`. store_image later writes the mirror image of a ragged `out`. */
static void store_unit(const sdf_job *job, place at, const real *t, const void *unused) {
  (void)unused;
  const extent e = inside(job, at);
  const ptrdiff_t i = at.i - job->plan.pad_x, j = at.j - job->plan.pad_z, ld = job->problem.ld;
  real *out = job->problem.out;
  for (ptrdiff_t r = e.r0; r < e.r1; r++) {
    copy_row(out + (i + r) * ld + j + e.c0, t + r * at.width + e.c0, e.c1 - e.c0,
             job->plan.streaming);
  }
  if (!at.mirrored || job->plan.ragged) return;
  for (ptrdiff_t c = e.c0 / LANES * LANES; c < e.c1; c += LANES) {
    for (ptrdiff_t r = e.r0 / LANES * LANES; r < e.r1; r += LANES) {
      if (c >= e.c0 && c + LANES <= e.c1 && r >= e.r0 && r + LANES <= e.r1) {
        real *to = out + (j + c) * ld + i + r;
        vec block[LANES];
        for (int l = 0; l < LANES; l++) block[l] = load_(t + (r + l) * at.width + c);
        transpose_(block);
        if (job->plan.streaming) {
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

/* The mirror image of a complete tile by complete rows, for a ragged `out`: from L2, with as
 * few partially written lines as possible. `strip` holds LANES rows. */
static void store_image(const sdf_job *job, place at, const real *t, real *strip) {
  const extent e = inside(job, at);
  real *out = (real *)job->problem.out + (at.j - job->plan.pad_z) * job->problem.ld +
              (at.i - job->plan.pad_x);
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
      copy_row(out + q * job->problem.ld, strip + (q - c) * TILE, e.r1, 1);
    }
  }
}

static place whole_tile(const sdf_job *job, tile_index tile) {
  const ptrdiff_t i = tile.i * TILE, j = tile.j * TILE;
  const ptrdiff_t panels = job->plan.symmetric ? job->plan.panels_x : job->plan.panels_z;
  const ptrdiff_t rows = quotient_up(job->problem.n + job->plan.pad_x - i, MR) * MR;
  const int mirrored = job->plan.symmetric && tile.i != tile.j;
  return (place){i, least(TILE, rows), j, least(TILE, panels * NR - j), mirrored};
}

/* do_tile, with the pair quantities in `pairs` if they are reused later, else in `scratch`. If
 * `paired`, they are already there; without an epilogue, only they are requested. */
static void tile_steps(const sdf_job *job, place tile, int paired, real *pairs, real *scratch,
                       epilogue *end, const void *to) {
  const ptrdiff_t d = job->problem.d, width = tile.width;
  const int whole =
      d > DEPTH || job->plan.ragged; /* scratch holds the tile, otherwise a unit */
  ptrdiff_t k = paired ? d : 0;      /* the first column not yet seen */
  do {
    const ptrdiff_t depth = least(DEPTH, d - k);
    for (ptrdiff_t u = 0; u < tile.rows; u += UNIT) {
      const place at = {tile.i + u, least(UNIT, tile.rows - u), tile.j, width, tile.mirrored};
      real *const part = scratch != NULL && whole ? scratch + u * width : scratch;
      real *const s = pairs != NULL ? pairs + u * width : part;
      if (!paired) pair_unit(job, at, k, depth, s);
      if (k + depth < d || end == NULL) continue;
      apply(job, at, s, part);
      end(job, at, part, to);
    }
    k += depth;
  } while (k < d);
}

void do_tile(const sdf_job *job, tile_index tile, void *scratch, epilogue *end,
             const void *to) {
  tile_steps(job, whole_tile(job, tile), 0, NULL, scratch, end, to);
}

static sdf_status store_tiles(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, int paired,
                              void *scratch) {
  const sdf_status status = check_job(job, lo, hi, job->plan.tiles);
  if (status != SDF_OK) return status;
  if (job->problem.out == NULL || unusable(scratch, 1) ||
      (paired && unusable(job->buffers.pairs, job->plan.pairs_size))) {
    return SDF_NO_MEMORY_GIVEN;
  }
  tile_index at = tile_at(job, lo);
  for (ptrdiff_t t = lo; t < hi; t++, at = tile_after(job, at)) {
    real *const pairs = paired ? (real *)job->buffers.pairs + t * TILE * TILE : NULL;
    const place tile = whole_tile(job, at);
    tile_steps(job, tile, paired, pairs, scratch, store_unit, NULL);
    if (tile.mirrored && job->plan.ragged) {
      store_image(job, tile, scratch, (real *)scratch + TILE * TILE);
    }
  }
  if (job->problem.stream) stream_end_();
  return SDF_OK;
}

sdf_status LOOP(gram)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *scratch) {
  return store_tiles(job, lo, hi, 0, scratch);
}

sdf_status LOOP(pairs)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi) {
  const sdf_status status = check_job(job, lo, hi, job->plan.tiles);
  if (status != SDF_OK) return status;
  real *const pairs = job->buffers.pairs;
  if (unusable(pairs, job->plan.pairs_size)) return SDF_NO_MEMORY_GIVEN;
  tile_index at = tile_at(job, lo);
  for (ptrdiff_t t = lo; t < hi; t++, at = tile_after(job, at)) {
    tile_steps(job, whole_tile(job, at), 0, pairs + t * TILE * TILE, NULL, NULL, NULL);
  }
  return SDF_OK;
}

sdf_status LOOP(of_pairs)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *scratch) {
  return store_tiles(job, lo, hi, 1, scratch);
}
