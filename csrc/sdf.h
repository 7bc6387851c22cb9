/* sdf.h: the complete contract between the C loops and their callers.
 *
 * The loops compute Gram matrices K(X, Z) of the kernels below, products K(X, Z) W without
 * forming K, and the spectral filters of self-distillation. They allocate nothing, start no
 * thread and do no input or output: the caller fills a `sdf_job`, provides scratch memory and
 * calls a loop on a range of panels or tiles. Any partition of a range into calls, in any order
 * and on any threads, gives the same bits.
 *
 * X is (n, d), Z is (m, d), rows contiguous. The loops work on packed copies:
 *
 *   1. pack    rows -> panels of `nr` rows, column by column: panel[k][0..nr). Squared
 *              distances subtract `shift` here; NTK divides rows by their norms.
 *   2. gram    tile by tile of tile x tile entries, in units of a few rows that stay in L1:
 *              pair quantity in registers (inner product, squared difference, L1), distance
 *              by norms, kernel function, store (and mirrored store where X is Z).
 *      or multiply: the last step is a product with columns of W instead;
 *      or half_gram: tiles of K(X, X) go to packed symmetric storage, for half_multiply.
 *
 * One tile, and the origin of its entries:
 *
 *                            panels of Z
 *                             <- nr ->
 *                            +--------+--------+--  --+--------+
 *                            |        |        |      |        |  d columns, `nr` reals each
 *         panels of X        +--------+--------+--  --+--------+
 *        +-----------+       +--------+--------+--  --+--------+
 *     mr |           |    mr |register|        |      |        |
 *        |...........|       |..tile..|        |      |        |  a unit: 16 rows, in L1
 *        |           |       |        |        |      |        |
 *        +-----------+       +--------+--------+--  --+--------+
 *        d columns           |                                 |  tile / 16 units
 *                            |                                 |
 *                            +---------------------------------+
 *                             <------------ tile ------------->
 *
 * K(X, X) has the tiles on and above the diagonal; each tile above also represents its mirror
 * image. Tiles are numbered by rows of tiles.
 *
 * Rows of a packed operand are counted from -pad: the first `pad` rows of its first panel are
 * zero, so that a tile begins where a cache line of `out` begins.
 */
#ifndef SDF_H
#define SDF_H

#include <stddef.h>
#include <stdint.h>

#include "formulas.h" /* SDF_KERNELS */

#ifdef __cplusplus
extern "C" {
#endif

#define SDF_ABI 5 /* changes with every change of a struct below */

/* X(identifier, message) */
#define SDF_STATUSES(X)                                                                 \
  X(OK, "no error")                                                                     \
  X(BAD_KERNEL, "no kernel has this id")                                                \
  X(BAD_PARAMETER, "a kernel parameter is out of range")                                \
  X(BAD_SIZE, "a number of rows, columns or leading elements is negative or too small") \
  X(BAD_RANGE, "the range of panels or tiles is not within the job")                    \
  X(NO_MEMORY_GIVEN, "a buffer that this loop needs is NULL or not aligned to 64 bytes")

/* X(identifier, name for SDF_ISA), each better than those before it */
#define SDF_ISAS(X) X(GENERIC, "generic") X(AVX2, "avx2") X(AVX512, "avx512")

#define SDF_ENUM(id, ...) SDF_##id,
typedef enum { SDF_STATUSES(SDF_ENUM) SDF_N_STATUSES } sdf_status;
typedef enum { SDF_KERNELS(SDF_ENUM) SDF_N_KERNELS } sdf_kernel;
typedef enum { SDF_ISAS(SDF_ENUM) SDF_N_ISAS } sdf_isa;
#undef SDF_ENUM

/* How the pair quantity of a job is computed; chosen by `prepare`. */
typedef enum {
  SDF_PAIR_INNER,       /* <x, z> */
  SDF_PAIR_SQUARES,     /* |x|^2 + |z|^2 - 2 <x, z>, by differences where that cancels */
  SDF_PAIR_DIFFERENCES, /* sum (x - z)^2, for few columns */
  SDF_PAIR_L1,          /* sum |x - z| */
  SDF_PAIR_ANGLE        /* +-(1 - |cos|), the sign that of cos, likewise */
} sdf_pair;

/* One Gram matrix, in three parts. "real" below is double or float, depending on the table of
 * loops in use.
 *
 *   problem   filled by the caller first; the kernel and its parameters may change later
 *   plan      filled by `prepare` from the problem; again after each change of the kernel
 *   buffers   the caller's memory, of the sizes in the plan; `pack` fills it once */
typedef struct {
  int32_t kernel;    /* sdf_kernel */
  int32_t degree;    /* of POLYNOMIAL; depth of NTK */
  double a, b;       /* parameters */
  ptrdiff_t n, m, d; /* sizes */
  const void *x;     /* real (n, d) */
  const void *z;     /* real (m, d); NULL: K(X, X) */
  void *out;         /* real (n, ld), ld >= m; NULL if nothing is written */
  ptrdiff_t ld;
  int32_t stream; /* write `out` past the caches, for matrices larger than the caches */
} sdf_problem;

typedef struct {
  int32_t pair; /* sdf_pair */
  int32_t symmetric, centred, streaming, ragged;
  ptrdiff_t pad_x, pad_z;
  ptrdiff_t panels_x, panels_z; /* pack ranges over panels_x + panels_z */
  ptrdiff_t tiles_x, tiles_z;   /* rows and columns of tiles */
  ptrdiff_t tiles;              /* gram ranges over these: upper triangle for K(X, X) */
  ptrdiff_t packed_size_x, packed_size_z, norms_size_x, norms_size_z, pairs_size;
  ptrdiff_t scratch_size; /* reals, for each concurrent call */
  double rate[4];         /* private to the loops */
} sdf_plan;

typedef struct {  /* aligned to 64 bytes, sizes in reals */
  void *shift;    /* d: by `center`, or zeros */
  void *packed_x; /* packed_size_x */
  void *packed_z; /* packed_size_z: none for K(X, X) */
  void *norms_x;  /* norms_size_x */
  void *norms_z;  /* norms_size_z: none for K(X, X) */
  void *pairs;    /* pairs_size: only for `pairs` and `of_pairs` */
} sdf_buffers;

typedef struct {
  sdf_problem problem;
  sdf_plan plan;
  sdf_buffers buffers;
} sdf_job;

/* The loops of one instruction set and one precision. */
typedef struct {
  sdf_isa isa;
  int32_t real_size; /* 8 or 4 */
  int32_t mr, nr;    /* register tile */
  int32_t tile;      /* entries along the side of a tile */
  int32_t line;      /* reals in a cache line */
  int32_t direct;    /* squared distances are sums of differences up to this d */

  /* y[i] = exp(x[i]); x and y real (n), possibly the same array */
  void (*exp)(const void *x, void *y, ptrdiff_t n);

  /* Fills the plan of a job. May be called again after a change of kernel. */
  sdf_status (*prepare)(sdf_job *job);

  /* buffers.shift = mean of (at most 1024) rows of Z, or of X: call once, if plan.centred. */
  sdf_status (*center)(const sdf_job *job);

  /* Packs panels [lo, hi) of X, then of Z. */
  sdf_status (*pack)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi);

  /* out = K(X, Z), tiles [lo, hi). */
  sdf_status (*gram)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *scratch);

  /* The same in two steps, so that kernels can share a pair quantity. */
  sdf_status (*pairs)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi);
  sdf_status (*of_pairs)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *scratch);

  /* With tile rows [i0, i1) and tile columns [j0, j1):
   *   sum_rows[q][i] += sum_j K[i][j] wt[q][j],  and for K(X, X) above the diagonal
   *   sum_cols[q][j] += sum_i K[i][j] wt[q][i].
   * wt is (p, ldw): W transposed, zero beyond m, 64-byte aligned, ldw >= tile tiles_z, real
   * (w_size 4 or 8) or double (8). The sums are double (p, lds), lds >= tile max(tiles_x,
   * tiles_z). Within a tile the products are summed in the type of wt, across tiles in double.
   * K(X, X) skips tiles below the diagonal. */
  sdf_status (*multiply)(const sdf_job *job, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0,
                         ptrdiff_t j1, const void *wt, int w_size, ptrdiff_t ldw, ptrdiff_t p,
                         double *sum_rows, double *sum_cols, ptrdiff_t lds, void *scratch);

  /* K(X, X) in packed symmetric storage: tiles [lo, hi) of `half`, (tiles, tile, tile) entries
   * of half_size bytes (4 or 8, at most those of real), 64-byte aligned, zero beyond n. The
   * job has out = NULL. Written past the caches where problem.stream. */
  sdf_status (*half_gram)(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, void *half,
                          int half_size, void *scratch);

  /* K V from such tiles of reals, however they were filled (rows [0, n) rounded up to 16), each
   * read from memory once; everything else is double. The tile rows are divided into `parts`; a
   * block is a pair of parts a <= b; computes blocks [lo, hi) of parts (parts + 1) / 2.
   * Block (a, b) sets sums[b][q][i] for the rows i of part a, and sums[a][q][j] for those of b.
   * After all of them sum_c sums[c][q][i] = sum_j K[i][j] wt[q][j]; sums is (parts, p, lds),
   * lds >= tile rows, wt as in `multiply`. */
  sdf_status (*half_multiply)(const void *half, ptrdiff_t n, const double *wt, ptrdiff_t ldw,
                              ptrdiff_t p, ptrdiff_t parts, ptrdiff_t lo, ptrdiff_t hi,
                              double *sums, ptrdiff_t lds);

  /* A pass of Gram-Schmidt: projects rows of w, real (p, ldw), off the rows of basis, real
   * (k, ldb); n columns, in units of SDF_COLUMN_BLOCK, of which [lo, hi) are processed. With
   * h[i][q] the sum over the units u of sums[u][i][q], u lds apart,
   *   inner_products: sums[u][i][q] = <basis_i, w_q> over the columns of unit u
   *   project_out:    w_q -= sum_i h[i][q] basis_i */
  sdf_status (*inner_products)(const void *basis, ptrdiff_t k, ptrdiff_t ldb, const void *w,
                               ptrdiff_t p, ptrdiff_t ldw, ptrdiff_t n, double *sums,
                               ptrdiff_t lds, ptrdiff_t lo, ptrdiff_t hi);
  sdf_status (*project_out)(const void *basis, ptrdiff_t k, ptrdiff_t ldb, const double *h,
                            void *w, ptrdiff_t p, ptrdiff_t ldw, ptrdiff_t n, ptrdiff_t lo,
                            ptrdiff_t hi);

  /* Spectral filters, d real (k), lam (n_lam), results real (n_lam, n_steps, k), with
   * A = d / (d + lam), everything in double. Units [lo, hi) of
   * n_lam * ceil(k / SDF_FILTER_BLOCK).
   *   shrinkage_path: B_t = A ((1 - alpha[t]) B_(t-1) + alpha[t]), B_0 = 1, alpha[0] unused
   *   pure_filters:   C_t = A^t / (d + lam), t = 0 .. n_steps - 1 */
  sdf_status (*shrinkage_path)(const void *d, ptrdiff_t k, const double *lam, ptrdiff_t n_lam,
                               const double *alpha, ptrdiff_t n_steps, void *out, ptrdiff_t lo,
                               ptrdiff_t hi);
  sdf_status (*pure_filters)(const void *d, ptrdiff_t k, const double *lam, ptrdiff_t n_lam,
                             ptrdiff_t n_steps, void *out, ptrdiff_t lo, ptrdiff_t hi);
} sdf_loops;

enum { SDF_FILTER_BLOCK = 512, SDF_COLUMN_BLOCK = 512 };

/* Provided to other extension modules through the capsule selfdistill_fast._core._C_API. */
typedef struct {
  int32_t abi; /* SDF_ABI */
  const sdf_loops *f32, *f64;
} sdf_api;

const char *sdf_message(sdf_status status);
const char *sdf_kernel_name(int kernel);
const char *sdf_isa_name(int isa);

/* The loops for one precision (4 or 8 bytes); NULL if the build, this processor or its
 * operating system lacks the instruction set. */
const sdf_loops *sdf_loops_of(int isa, int real_size);

#ifdef __cplusplus
}
#endif

#endif
