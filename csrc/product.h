/* product.h: a unit of K times columns of W, from both sides, in registers:
 *
 *     sum_rows[q][r] += sum_c t[r][c] w_cols[q][c],
 *     sum_cols[q][c] += sum_r t[r][c] w_rows[q][r].
 *
 * Included by product.c once for each precision SUM_BITS of W and of the sums within a unit:
 * the precision of the entries t, and double. Defines unit_product_32 or unit_product_64. Sums
 * over several units are double in both cases.
 */
#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
#define OF(name) JOINED(JOINED(name, _), SUM_BITS)

#if SUM_BITS == 64
#define scalar double
typedef int64_t OF(mask) __attribute__((vector_size(SIMD_BYTES)));
#else
#define scalar float
typedef int32_t OF(mask) __attribute__((vector_size(SIMD_BYTES)));
#endif
#define SUM_LANES (SIMD_BYTES * 8 / SUM_BITS)
#if SIMD_BYTES * 8 / SUM_BITS == 16
#define SUM_LIST LIST16
#elif SIMD_BYTES * 8 / SUM_BITS == 8
#define SUM_LIST LIST8
#elif SIMD_BYTES * 8 / SUM_BITS == 4
#define SUM_LIST LIST4
#else
#define SUM_LIST LIST2
#endif
typedef scalar OF(sum) __attribute__((vector_size(SIMD_BYTES), may_alias));
typedef scalar OF(sum_unaligned)
    __attribute__((vector_size(SIMD_BYTES), may_alias, aligned(SUM_BITS / 8)));
#define sum_vec OF(sum)
#define sum_vec_unaligned OF(sum_unaligned)

/* as many entries of K as a sum has lanes */
static inline sum_vec OF(entries)(const real *t) {
#if SUM_BITS == SDF_BITS
  return (sum_vec)load_(t);
#else
  typedef real part __attribute__((vector_size(SUM_LANES * sizeof(real)), may_alias));
  return __builtin_convertvector(*(const part *)t, sum_vec);
#endif
}

/* Lane l of the result is the sum of the lanes of v[l]. */
static inline sum_vec OF(sums)(sum_vec v[SUM_LANES]) {
#define LOWER(l, s) (((l) & (s)) ? SUM_LANES + (l) - (s) : (l))
#define UPPER(l, s) (((l) & (s)) ? SUM_LANES + (l) : (l) + (s))
#define SUM_STEP(s)                                                       \
  _Pragma("GCC unroll 16") for (int i = 0; i < SUM_LANES; i += 2 * (s)) { \
    v[i] = SHUFFLE_OF(SUM_LIST, OF(mask), v[i], v[i + (s)], LOWER, s) +   \
           SHUFFLE_OF(SUM_LIST, OF(mask), v[i], v[i + (s)], UPPER, s);    \
  }
  SUM_STEP(1)
#if SIMD_BYTES * 8 / SUM_BITS > 2
  SUM_STEP(2)
#endif
#if SIMD_BYTES * 8 / SUM_BITS > 4
  SUM_STEP(4)
#endif
#if SIMD_BYTES * 8 / SUM_BITS > 8
  SUM_STEP(8)
#endif
#undef SUM_STEP
#undef LOWER
#undef UPPER
  return v[0];
}

/* The sums of TR rows from r on and TQ targets from q on: TR * TQ vectors, and zeros up to a
 * multiple of SUM_LANES. */
static inline __attribute__((always_inline)) void OF(add_sums)(sum_vec *sum, const product *to,
                                                               ptrdiff_t q, ptrdiff_t r,
                                                               const int TR, const int TQ) {
#pragma GCC unroll 16
  for (int s = 0; s < TR * TQ; s += SUM_LANES) {
    const sum_vec total = OF(sums)(sum + s);
    for (int l = 0; l < least(SUM_LANES, TR * TQ - s); l++) {
      to->sum_rows[(q + (s + l) / TR) * to->lds + r + (s + l) % TR] += (double)total[l];
    }
  }
}

/* Rows [0, rows) for TQ targets from q on, TR rows at a time; `step` reals between rows. The
 * entries `ahead` reals further are prefetched (0: none are). */
static inline __attribute__((always_inline)) void OF(add_to_rows)(
    const real *t, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t width, const product *to,
    ptrdiff_t q, ptrdiff_t ahead, const int TR, const int TQ) {
  for (ptrdiff_t r = 0; r < rows; r += TR) {
    sum_vec sum[16] = {{0}};
    for (ptrdiff_t c = 0; c < width; c += SUM_LANES) {
      if (ahead && c % LINE == 0) {
#pragma GCC unroll 8
        for (int a = 0; a < TR; a++) __builtin_prefetch(t + (r + a) * step + c + ahead);
      }
#pragma GCC unroll 8
      for (int b = 0; b < TQ; b++) {
        const sum_vec w =
            *(const sum_vec *)((const scalar *)to->w_cols + (q + b) * to->ldw + c);
#pragma GCC unroll 8
        for (int a = 0; a < TR; a++) {
          sum[b * TR + a] += OF(entries)(t + (r + a) * step + c) * w;
        }
      }
    }
    OF(add_sums)(sum, to, q, r, TR, TQ);
  }
}

/* Columns [0, width) for TQ targets from q on. */
static inline __attribute__((always_inline)) void OF(add_to_cols)(const real *t, ptrdiff_t step,
                                                                  ptrdiff_t rows,
                                                                  ptrdiff_t width,
                                                                  const product *to,
                                                                  ptrdiff_t q, const int TQ) {
  const scalar *w = to->w_rows;
  for (ptrdiff_t c = 0; c < width; c += NV * SUM_LANES) {
    sum_vec sum[4][NV] = {{{0}}};
    for (ptrdiff_t r = 0; r < rows; r++) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        const sum_vec value = OF(entries)(t + r * step + c + v * SUM_LANES);
#pragma GCC unroll 8
        for (int b = 0; b < TQ; b++) sum[b][v] += value * w[(q + b) * to->ldw + r];
      }
    }
#pragma GCC unroll 8
    for (int b = 0; b < TQ; b++) {
      scalar total[NV * SUM_LANES] __attribute__((aligned(64)));
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) *(sum_vec *)(total + v * SUM_LANES) = sum[b][v];
      double *sums = to->sum_cols + (q + b) * to->lds + c;
      for (int l = 0; l < NV * SUM_LANES; l++) sums[l] += (double)total[l];
    }
  }
}

#if SUM_BITS == 64
/* Both sides at once: an entry is loaded once, but the sums of columns are in memory. */
static inline __attribute__((always_inline)) void add_to_both(const real *t, ptrdiff_t step,
                                                              ptrdiff_t rows, ptrdiff_t width,
                                                              const product *to, ptrdiff_t q,
                                                              ptrdiff_t ahead, const int TR,
                                                              const int TQ) {
  for (ptrdiff_t r = 0; r < rows; r += TR) {
    const double *w_rows = (const double *)to->w_rows + q * to->ldw + r;
    sum_vec sum[16] = {{0}};
    for (ptrdiff_t c = 0; c < width; c += SUM_LANES) {
      if (ahead && c % LINE == 0) {
#pragma GCC unroll 8
        for (int a = 0; a < TR; a++) __builtin_prefetch(t + (r + a) * step + c + ahead);
      }
      double *sums = to->sum_cols + q * to->lds + c;
      sum_vec w[4], column[4];
#pragma GCC unroll 8
      for (int b = 0; b < TQ; b++) {
        w[b] = *(const sum_vec *)((const double *)to->w_cols + (q + b) * to->ldw + c);
        column[b] = (sum_vec) * (const sum_vec_unaligned *)(sums + b * to->lds);
      }
#pragma GCC unroll 8
      for (int a = 0; a < TR; a++) {
        const sum_vec value = OF(entries)(t + (r + a) * step + c);
#pragma GCC unroll 8
        for (int b = 0; b < TQ; b++) {
          sum[b * TR + a] += value * w[b];
          column[b] += value * w_rows[b * to->ldw + a];
        }
      }
#pragma GCC unroll 8
      for (int b = 0; b < TQ; b++) {
        *(sum_vec_unaligned *)(sums + b * to->lds) = (sum_vec_unaligned)column[b];
      }
    }
    OF(add_sums)(sum, to, q, r, TR, TQ);
  }
}
#endif

/* TQ targets from q on, TR rows at a time. */
static inline __attribute__((always_inline)) void OF(add_product)(
    const real *t, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t width, const product *to,
    int mirrored, ptrdiff_t q, ptrdiff_t ahead, const int at_once, const int TR, const int TQ) {
#if SUM_BITS == 64
  if (mirrored && at_once) {
    add_to_both(t, step, rows, width, to, q, ahead, TR, TQ);
    return;
  }
#endif
  OF(add_to_rows)(t, step, rows, width, to, q, ahead, TR, TQ);
  if (mirrored) OF(add_to_cols)(t, step, rows, width, to, q, TQ);
  (void)at_once;
}

/* Up to TARGETS columns of W take both sides at once, while the unit comes from memory. Where
 * there are more, a side at a time leaves more registers to each, and the sums bound. */
static void OF(unit_product)(const real *t, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t width,
                             const product *to, int mirrored, ptrdiff_t ahead) {
  ptrdiff_t q = 0;
  for (; to->p > TARGETS && q + TARGETS <= to->p; q += TARGETS, ahead = 0) {
    OF(add_product)(t, step, rows, width, to, mirrored, q, ahead, 0, 4, TARGETS);
  }
  switch (to->p - q) {
    case 1: OF(add_product)(t, step, rows, width, to, mirrored, q, ahead, 1, MR, 1); break;
    case 2: OF(add_product)(t, step, rows, width, to, mirrored, q, ahead, 1, MR, 2); break;
#if SIMD_BYTES == 64 /* TARGETS is 4 */
    case 3: OF(add_product)(t, step, rows, width, to, mirrored, q, ahead, 1, 4, 3); break;
    case 4: OF(add_product)(t, step, rows, width, to, mirrored, q, ahead, 1, 4, 4); break;
#endif
    default: break;
  }
}

#undef JOINED_
#undef JOINED
#undef OF
#undef scalar
#undef SUM_LANES
#undef SUM_LIST
#undef sum_vec
#undef sum_vec_unaligned
#undef SUM_BITS
