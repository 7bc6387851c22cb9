/* Every loop of csrc/sdf.h, of every instruction set and precision that this processor has,
 * against plain long double arithmetic, at awkward sizes. Meant to be compiled with
 * -fsanitize=address,undefined: buffers have exactly the sizes that `prepare` asks for.
 *
 *   exp        in ulp, over the whole range, with the special values
 *   gram       K(X, Z), K(X, X): error, exact symmetry, exact diagonal, with and without
 *              streaming, with `out` off the cache line and with ld > m
 *   pairs      gives the bits of gram
 *   multiply   K W and, from half the tiles, K(X, X) W
 *   half       of K(X, X) in tiles: the bits of gram, zero beyond n; its products
 *   projection inner products with a basis, and what is left without it
 *   filters    shrinkage path and pure filters
 *   statuses   bad kernels, sizes, ranges and buffers are refused
 */
#define _POSIX_C_SOURCE 200112L
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/sdf.h"

#ifdef _WIN32
#include <malloc.h>
#define aligned(size) _aligned_malloc(size, 64)
#define release(p) _aligned_free(p)
#else
static void *aligned(size_t size) {
  void *p = NULL;
  return posix_memalign(&p, 64, size) == 0 ? p : NULL;
}
#define release(p) free(p)
#endif

static int failures = 0;
#define CHECK(condition, ...)                                \
  do {                                                       \
    if (!(condition)) {                                      \
      failures++;                                            \
      printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      printf(__VA_ARGS__);                                   \
      printf("\n");                                          \
    }                                                        \
  } while (0)

static const ptrdiff_t SIZES[] = {0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 97};
static const ptrdiff_t WIDTHS[] = {0, 1, 2, 3, 8, 9, 16, 17, 31, 65, 97, 300};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

/* ------------------------------------------------------------------ helpers */

static void *buffer(ptrdiff_t reals, int real_size) {
  if (reals == 0) return NULL;
  void *p = aligned((size_t)(reals * real_size));
  if (p == NULL) abort();
  memset(p, 0xa5, (size_t)(reals * real_size));
  return p;
}

static double get(const void *p, ptrdiff_t i, int real_size) {
  return real_size == 8 ? ((const double *)p)[i] : (double)((const float *)p)[i];
}

static void set(void *p, ptrdiff_t i, double value, int real_size) {
  if (real_size == 8) {
    ((double *)p)[i] = value;
  } else {
    ((float *)p)[i] = (float)value;
  }
}

static double noise(void) { /* uniform in [-1, 1), the same in every run */
  static uint64_t state = 88172645463325252u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (double)(state >> 11) * 0x1p-52 - 1;
}

static void *points(ptrdiff_t n, ptrdiff_t d, int real_size) {
  void *x = buffer(n * d, real_size);
  for (ptrdiff_t i = 0; i < n * d; i++) set(x, i, 0.3 + noise() / sqrt((double)d), real_size);
  return x;
}

static void free_job(sdf_job *job) {
  release(job->buffers.shift);
  release(job->buffers.packed_x);
  release(job->buffers.packed_z);
  release(job->buffers.norms_x);
  release(job->buffers.norms_z);
  release(job->buffers.pairs);
}

static void give_buffers(const sdf_loops *loops, sdf_job *job) {
  const int size = loops->real_size;
  job->buffers.shift = buffer(job->problem.d, size);
  for (ptrdiff_t k = 0; k < job->problem.d; k++) set(job->buffers.shift, k, 0, size);
  job->buffers.packed_x = buffer(job->plan.packed_size_x, size);
  job->buffers.packed_z = buffer(job->plan.packed_size_z, size);
  job->buffers.norms_x = buffer(job->plan.norms_size_x, size);
  job->buffers.norms_z = buffer(job->plan.norms_size_z, size);
  job->buffers.pairs = buffer(job->plan.pairs_size, size);
}

static sdf_job new_job(int kernel, ptrdiff_t n, ptrdiff_t m, ptrdiff_t d) {
  sdf_job job;
  memset(&job, 0, sizeof job);
  job.problem.kernel = kernel;
  job.problem.a = kernel == SDF_POLYNOMIAL ? 0.4 : 0.7;
  job.problem.b = kernel == SDF_POLYNOMIAL ? 0.9 : 0;
  job.problem.degree = 3;
  job.problem.n = n;
  job.problem.m = m;
  job.problem.d = d;
  return job;
}

static long double kernel_value(const sdf_job *job, ptrdiff_t i, ptrdiff_t j, int size) {
  const void *z = job->problem.z ? job->problem.z : job->problem.x;
  long double inner = 0, squares = 0, l1 = 0, xx = 0, zz = 0;
  for (ptrdiff_t k = 0; k < job->problem.d; k++) {
    const long double a = get(job->problem.x, i * job->problem.d + k, size),
                      b = get(z, j * job->problem.d + k, size);
    inner += a * b;
    squares += (a - b) * (a - b);
    l1 += fabsl(a - b);
    xx += a * a;
    zz += b * b;
  }
  const long double root = sqrtl(squares) * job->problem.a,
                    pi = 3.14159265358979323846264338327950288L;
  switch ((sdf_kernel)job->problem.kernel) {
    case SDF_RBF: return expl(-job->problem.a * squares);
    case SDF_LAPLACIAN: return expl(-job->problem.a * l1);
    case SDF_MATERN12: return expl(-root);
    case SDF_MATERN32: return (1 + sqrtl(3) * root) * expl(-sqrtl(3) * root);
    case SDF_MATERN52: {
      const long double r = sqrtl(5) * root;
      return (1 + r + r * r / 3) * expl(-r);
    }
    case SDF_POLYNOMIAL:
      return powl(job->problem.a * inner + job->problem.b, job->problem.degree);
    case SDF_LINEAR: return inner;
    case SDF_NTK: {
      if (xx == 0 || zz == 0) return 0;
      /* theta = 2 atan2(|u - v|, |u + v|) and 1 - kappa_1 keep the digits of small angles */
      long double minus = 0, plus = 0;
      for (ptrdiff_t k = 0; k < job->problem.d; k++) {
        const long double u = get(job->problem.x, i * job->problem.d + k, size) / sqrtl(xx);
        const long double v = get(z, j * job->problem.d + k, size) / sqrtl(zz);
        minus += (u - v) * (u - v);
        plus += (u + v) * (u + v);
      }
      long double theta = 2 * atan2l(sqrtl(minus), sqrtl(plus)), rho = cosl(theta), t = rho;
      for (int h = 0; h < job->problem.degree; h++) {
        const long double k0 = (pi - theta) / pi, k1 = rho * k0 + sinl(theta) / pi;
        const long double gap = 2 * sinl(theta / 2) * sinl(theta / 2); /* 1 - rho */
        t = t * k0 + k1;
        theta = 2 * asinl(sqrtl(fmaxl(0, gap + (rho * theta - sinl(theta)) / pi) / 2));
        rho = cosl(theta);
      }
      return sqrtl(xx * zz) * t;
    }
    default: abort();
  }
}

/* ---------------------------------------------------------------------- exp */

static long double ulps(double got, long double want, int size) {
  const int digits = size == 8 ? 53 : 24, lowest = size == 8 ? -1074 : -149;
  int exponent;
  frexpl(want, &exponent);
  exponent -= digits;
  return fabsl((long double)got - want) / ldexpl(1, exponent < lowest ? lowest : exponent);
}

static void test_exp(const sdf_loops *loops) {
  const int size = loops->real_size;
  const double low = size == 8 ? -750 : -106, high = size == 8 ? 712 : 90;
  const long double largest = size == 8 ? 1.7976931348623157e308L : 3.4028234663852886e38L;
  enum { COUNT = 60013 };
  void *x = buffer(COUNT, size), *y = buffer(COUNT, size);
  long double worst = 0;
  for (int scale = 0; scale < 3; scale++) {
    for (ptrdiff_t i = 0; i < COUNT; i++) {
      const double u = (double)i / COUNT;
      set(x, i,
          scale == 0   ? low + (high - low) * u
          : scale == 1 ? 2 * u - 1
                       : noise() * 1e-7,
          size);
    }
    loops->exp(x, y, COUNT);
    for (ptrdiff_t i = 0; i < COUNT; i++) {
      const long double want = expl(get(x, i, size));
      const double got = get(y, i, size);
      if (want > largest * (1 + (size == 8 ? 0x1p-54L : 0x1p-25L))) {
        CHECK(isinf(got) && got > 0, "exp(%g) = %g", get(x, i, size), got);
      } else if (want <= largest) {
        worst = fmaxl(worst, ulps(got, want, size));
      }
    }
  }
  CHECK(worst <= 2, "exp is off by %Lg ulp", worst);
  const double special[] = {0,    -0.0,  INFINITY, -INFINITY, NAN,
                            -NAN, 1e300, -1e300,   5e-324,    -5e-324};
  enum { N_SPECIAL = sizeof special / sizeof *special };
  for (int i = 0; i < N_SPECIAL; i++) set(x, i, special[i], size);
  loops->exp(x, y, N_SPECIAL);
  const double expected[] = {1, 1, INFINITY, 0, NAN, NAN, INFINITY, 0, 1, 1};
  for (int i = 0; i < N_SPECIAL; i++) {
    const double got = get(y, i, size);
    CHECK(isnan(expected[i]) ? isnan(got) : got == expected[i], "exp(%g) = %g", special[i],
          got);
  }
  for (int i = 0; i < N_SIZES; i++) { /* no write past the end */
    void *s = buffer(SIZES[i], size);
    for (ptrdiff_t k = 0; k < SIZES[i]; k++) set(s, k, 0, size);
    loops->exp(s, s, SIZES[i]);
    for (ptrdiff_t k = 0; k < SIZES[i]; k++) CHECK(get(s, k, size) == 1, "exp(0)");
    release(s);
  }
  release(x);
  release(y);
}

/* -------------------------------------------------------------- gram, pairs */

static void test_gram(const sdf_loops *loops, int kernel, ptrdiff_t n, ptrdiff_t m, ptrdiff_t d,
                      int symmetric, int stream, ptrdiff_t offset, ptrdiff_t gap) {
  const int size = loops->real_size;
  sdf_job job = new_job(kernel, n, symmetric ? n : m, d);
  m = job.problem.m;
  void *x = points(n, d, size), *z = symmetric ? NULL : points(m, d, size);
  if (!symmetric && n > 1 && m > 2 && d > 0) { /* a shared row */
    memcpy((char *)z + 2 * d * size, (char *)x + d * size, (size_t)(d * size));
  }
  if (n > 3 && d > 0) memset((char *)x + 3 * d * size, 0, (size_t)(d * size)); /* a zero row */
  void *none = buffer(1, size), *memory = buffer(offset + n * (m + gap) + 1, size);
  void *copy = buffer(offset + n * (m + gap) + 1, size);
  job.problem.x = x ? x : none;
  job.problem.z = symmetric ? NULL : z ? z : none;
  job.problem.out = (char *)memory + offset * size;
  job.problem.ld = m + gap;
  job.problem.stream = stream;
  CHECK(loops->prepare(&job) == SDF_OK, "prepare");
  give_buffers(loops, &job);
  if (job.plan.centred && m > 0 && n > 0) CHECK(loops->center(&job) == SDF_OK, "center");
  const ptrdiff_t panels = job.plan.panels_x + job.plan.panels_z;
  for (ptrdiff_t p = panels; p > 0; p--) CHECK(loops->pack(&job, p - 1, p) == SDF_OK, "pack");
  void *scratch = buffer(job.plan.scratch_size, size);
  CHECK(loops->gram(&job, 0, job.plan.tiles / 2, scratch) == SDF_OK, "gram");
  CHECK(loops->gram(&job, job.plan.tiles / 2, job.plan.tiles, scratch) == SDF_OK, "gram");

  const double eps = size == 8 ? 0x1p-52 : 0x1p-23;
  double worst = 0, scale = 1;
  for (ptrdiff_t i = 0; i < n; i++) {
    for (ptrdiff_t j = 0; j < m; j++) {
      const long double want = kernel_value(&job, i, j, size);
      const double got = get(job.problem.out, i * job.problem.ld + j, size);
      if (fabs((double)want) > scale) scale = fabs((double)want);
      const double error = fabs((double)(got - want));
      if (!(error <= worst)) worst = error;
      if (symmetric)
        CHECK(got == get(job.problem.out, j * job.problem.ld + i, size),
              "K(X, X) not symmetric");
      const int same = symmetric ? i == j : d > 0 && n > 1 && m > 2 && i == 1 && j == 2;
      if (same && kernel <= SDF_MATERN52)
        CHECK(got == 1, "kernel %d: K(x, x) = %.17g", kernel, got);
    }
  }
  /* sqrt of a squared distance halves the digits only below CANCELLED, where it is mended */
  CHECK(worst <= (200 + 20 * sqrt((double)d)) * eps * scale,
        "%s f%d %s n %td m %td d %td%s: off by %g eps", sdf_isa_name(loops->isa), 8 * size,
        sdf_kernel_name(kernel), n, m, d, symmetric ? " symmetric" : "", worst / eps);
  CHECK(get(memory, offset + n * (m + gap), size) == get(none, 0, size) || n * m == 0,
        "wrote past out");

  memcpy(copy, memory, (size_t)((offset + n * (m + gap)) * size));
  memset(job.problem.out, 0, (size_t)(n * (m + gap) * size));
  CHECK(loops->pairs(&job, 0, job.plan.tiles) == SDF_OK, "pairs");
  CHECK(loops->of_pairs(&job, 0, job.plan.tiles, scratch) == SDF_OK, "of_pairs");
  for (ptrdiff_t i = 0; i < n; i++) {
    for (ptrdiff_t j = 0; j < m; j++) {
      CHECK(get(copy, offset + i * job.problem.ld + j, size) ==
                get(job.problem.out, i * job.problem.ld + j, size),
            "of_pairs gives other bits than gram");
    }
  }

  /* product with W, into sums that already hold something */
  for (ptrdiff_t p = 1; p <= 6; p += 5) {
    const ptrdiff_t width = loops->tile * job.plan.tiles_z;
    const ptrdiff_t sums =
        loops->tile *
        (job.plan.tiles_x > job.plan.tiles_z ? job.plan.tiles_x : job.plan.tiles_z);
    sdf_job plain = job; /* the padding is that of `out`; a product has none */
    plain.problem.out = NULL;
    plain.buffers.shift = plain.buffers.packed_x = plain.buffers.packed_z =
        plain.buffers.norms_x = plain.buffers.norms_z = plain.buffers.pairs = NULL;
    CHECK(loops->prepare(&plain) == SDF_OK, "prepare");
    give_buffers(loops, &plain);
    if (plain.plan.centred && m > 0 && n > 0) loops->center(&plain);
    CHECK(loops->pack(&plain, 0, plain.plan.panels_x + plain.plan.panels_z) == SDF_OK, "pack");
    void *wt = buffer(p * width, size);
    double *rows = buffer(p * sums, 8);
    for (ptrdiff_t i = 0; i < p * width; i++)
      set(wt, i, i % (width ? width : 1) < m ? noise() : 0, size);
    for (ptrdiff_t i = 0; i < p * sums; i++) rows[i] = 1;
    CHECK(loops->multiply(&plain, 0, plain.plan.tiles_x, 0, plain.plan.tiles_z, wt, size, width,
                          p, rows, rows, sums, scratch) == SDF_OK ||
              n * m == 0,
          "multiply");
    for (ptrdiff_t q = 0; q < p && n * m > 0; q++) {
      for (ptrdiff_t i = 0; i < n; i++) {
        double want = 1, size_of_sum = 1;
        for (ptrdiff_t j = 0; j < m; j++) {
          const double term =
              get(copy, offset + i * job.problem.ld + j, size) * get(wt, q * width + j, size);
          want += term;
          size_of_sum += fabs(term);
        }
        CHECK(fabs(rows[q * sums + i] - want) <= 200 * eps * size_of_sum,
              "%s f%d %s n %td m %td d %td: product %g instead of %g", sdf_isa_name(loops->isa),
              8 * size, sdf_kernel_name(kernel), n, m, d, rows[q * sums + i], want);
      }
    }
    release(wt);
    release(rows);
    free_job(&plain);
  }
  release(x);
  release(z);
  release(none);
  release(memory);
  release(copy);
  release(scratch);
  free_job(&job);
}

/* --------------------------------------------------------------------- half */

static void test_half(const sdf_loops *loops, int kernel, ptrdiff_t n, ptrdiff_t d,
                      int half_size, int stream) {
  const int size = loops->real_size;
  const ptrdiff_t tile = loops->tile, area = tile * tile;
  sdf_job job = new_job(kernel, n, n, d), whole = job;
  void *x = points(n, d, size), *none = buffer(1, size), *K = buffer(n * n + 1, size);
  job.problem.x = whole.problem.x = x ? x : none;
  job.problem.stream = stream;
  whole.problem.out = K;
  whole.problem.ld = n;
  sdf_job *const both[] = {&job, &whole};
  void *scratch[2];
  for (int b = 0; b < 2; b++) {
    CHECK(loops->prepare(both[b]) == SDF_OK, "prepare");
    give_buffers(loops, both[b]);
    if (both[b]->plan.centred && n > 0) CHECK(loops->center(both[b]) == SDF_OK, "center");
    CHECK(loops->pack(both[b], 0, both[b]->plan.panels_x) == SDF_OK, "pack");
    scratch[b] = buffer(both[b]->plan.scratch_size, size);
  }
  CHECK(loops->gram(&whole, 0, whole.plan.tiles, scratch[1]) == SDF_OK, "gram");
  void *half = buffer(job.plan.tiles * area, half_size);
  for (ptrdiff_t t = job.plan.tiles; t > 0; t--) {
    CHECK(loops->half_gram(&job, t - 1, t, half, half_size, scratch[0]) == SDF_OK, "half_gram");
  }
  ptrdiff_t t = 0;
  for (ptrdiff_t ti = 0; ti < job.plan.tiles_x; ti++) {
    for (ptrdiff_t tj = ti; tj < job.plan.tiles_x; tj++, t++) {
      for (ptrdiff_t r = 0; r < tile && (ti * tile + r) / 16 <= (n - 1) / 16; r++) {
        for (ptrdiff_t c = 0; c < tile; c++) {
          const ptrdiff_t i = ti * tile + r, j = tj * tile + c;
          const double got = get(half, t * area + r * tile + c, half_size);
          double want = i < n && j < n ? get(K, i * n + j, size) : 0;
          if (half_size == 4) want = (double)(float)want;
          CHECK(got == want, "%s f%d %s n %td d %td: half of K has %g for %g at %td, %td",
                sdf_isa_name(loops->isa), 8 * size, sdf_kernel_name(kernel), n, d, got, want, i,
                j);
        }
      }
    }
  }

  const sdf_loops *narrow = sdf_loops_of((int)loops->isa, half_size);
  const ptrdiff_t width = tile * job.plan.tiles_x;
  for (ptrdiff_t p = 0; p <= 7; p++) {
    const ptrdiff_t parts = 1 + p % 4, blocks = parts * (parts + 1) / 2;
    double *wt = buffer(p * width, 8), *sums = buffer(parts * p * width, 8);
    for (ptrdiff_t i = 0; i < p * width; i++) wt[i] = i % width < n ? noise() : 0;
    for (ptrdiff_t block = blocks; block > 0; block--) {
      CHECK(narrow->half_multiply(half, n, wt, width, p, parts, block - 1, block, sums,
                                  width) == SDF_OK,
            "half_multiply");
    }
    for (ptrdiff_t c = 1; c < parts; c++) {
      for (ptrdiff_t i = 0; i < p * width; i++) sums[i] += sums[c * p * width + i];
    }
    for (ptrdiff_t q = 0; q < p; q++) {
      for (ptrdiff_t i = 0; i < n; i++) {
        long double want = 0, size_of_sum = 0;
        for (ptrdiff_t j = 0; j < n; j++) {
          double entry = get(K, i * n + j, size);
          if (half_size == 4) entry = (double)(float)entry;
          want += (long double)entry * wt[q * width + j];
          size_of_sum += fabsl((long double)entry * wt[q * width + j]);
        }
        CHECK(fabsl(sums[q * width + i] - want) <= (n + 8) * 0x1p-53L * size_of_sum,
              "%s f%d of f%d n %td p %td: product %g instead of %Lg", sdf_isa_name(loops->isa),
              8 * half_size, 8 * size, n, p, sums[q * width + i], want);
      }
    }
    release(wt);
    release(sums);
  }
  release(x);
  release(none);
  release(K);
  release(half);
  for (int b = 0; b < 2; b++) {
    release(scratch[b]);
    free_job(both[b]);
  }
}

/* --------------------------------------------------------------- projection */

static void test_projection(const sdf_loops *loops, ptrdiff_t n, ptrdiff_t k, ptrdiff_t p) {
  const int size = loops->real_size;
  const ptrdiff_t ldb = n + 3, ldw = n + 1, lds = k * p + 5;
  const ptrdiff_t units = (n + SDF_COLUMN_BLOCK - 1) / SDF_COLUMN_BLOCK;
  void *basis = buffer(k * ldb, size), *w = buffer(p * ldw, size);
  double *sums = buffer(units * lds, 8), *h = buffer(k * p, 8);
  for (ptrdiff_t i = 0; i < k * ldb; i++) set(basis, i, i % ldb < n ? noise() : NAN, size);
  for (ptrdiff_t i = 0; i < p * ldw; i++) set(w, i, i % ldw < n ? noise() : NAN, size);
  for (ptrdiff_t i = 0; i < k * p; i++) h[i] = noise();
  for (ptrdiff_t u = units; u > 0; u--) {
    CHECK(loops->inner_products(basis, k, ldb, w, p, ldw, n, sums, lds, u - 1, u) == SDF_OK,
          "inner_products");
  }
  const double eps = size == 8 ? 0x1p-52 : 0x1p-23;
  for (ptrdiff_t i = 0; i < k; i++) {
    for (ptrdiff_t q = 0; q < p; q++) {
      long double want = 0, magnitude = 0;
      double got = 0;
      for (ptrdiff_t c = 0; c < n; c++) {
        const long double term =
            (long double)get(basis, i * ldb + c, size) * get(w, q * ldw + c, size);
        want += term;
        magnitude += fabsl(term);
      }
      for (ptrdiff_t u = 0; u < units; u++) got += sums[u * lds + i * p + q];
      /* rounding grows with the square root of the number of terms in a lane */
      CHECK(fabsl(got - want) <= eps / 2 * sqrtl((long double)n) * magnitude,
            "%s f%d n %td: <%td, %td> off by %Lg", sdf_isa_name(loops->isa), 8 * size, n, i, q,
            got - want);
    }
  }
  void *before = buffer(p * ldw, size);
  if (p > 0) memcpy(before, w, (size_t)(p * ldw * size));
  for (ptrdiff_t u = units; u > 0; u--) {
    CHECK(loops->project_out(basis, k, ldb, h, w, p, ldw, n, u - 1, u) == SDF_OK,
          "project_out");
  }
  for (ptrdiff_t q = 0; q < p; q++) {
    for (ptrdiff_t c = 0; c < n; c++) {
      long double want = get(before, q * ldw + c, size);
      for (ptrdiff_t i = 0; i < k; i++) want -= h[i * p + q] * get(basis, i * ldb + c, size);
      const double got = get(w, q * ldw + c, size);
      CHECK(fabsl(got - want) <= eps * (double)(k + 1), "f%d: %g for %Lg at %td, %td", 8 * size,
            got, want, q, c);
    }
    CHECK(isnan(get(w, q * ldw + n, size)), "written beyond n");
  }
  release(basis);
  release(w);
  release(sums);
  release(h);
  release(before);
}

/* ------------------------------------------------------------------ filters */

static void test_filters(const sdf_loops *loops, ptrdiff_t k) {
  const int size = loops->real_size;
  enum { STEPS = 5, N_LAM = 3 };
  const double lam[N_LAM] = {1e-8, 0.5, 1e3}, alpha[STEPS] = {NAN, 0.3, 0, 1, -0.5};
  void *d = buffer(k, size), *out = buffer(N_LAM * STEPS * k, size);
  for (ptrdiff_t i = 0; i < k; i++) set(d, i, i % 7 == 0 ? 0 : 1 + noise(), size);
  const ptrdiff_t units = N_LAM * ((k + SDF_FILTER_BLOCK - 1) / SDF_FILTER_BLOCK);
  const double eps = size == 8 ? 0x1p-52 : 0x1p-23;
  for (int pure = 0; pure < 2; pure++) {
    for (ptrdiff_t u = units; u > 0; u--) {
      CHECK((pure ? loops->pure_filters(d, k, lam, N_LAM, STEPS, out, u - 1, u)
                  : loops->shrinkage_path(d, k, lam, N_LAM, alpha, STEPS, out, u - 1, u)) ==
                SDF_OK,
            "filters");
    }
    for (int l = 0; l < N_LAM; l++) {
      for (ptrdiff_t i = 0; i < k; i++) {
        const long double value = get(d, i, size), a = value / (value + lam[l]);
        long double want = pure ? 1 / (value + lam[l]) : 1;
        for (int t = 0; t < STEPS; t++) {
          const long double w = t == 0 ? 0 : alpha[t];
          if (!pure) want = a * ((1 - w) * want + w);
          const double got = get(out, (l * STEPS + t) * k + i, size);
          CHECK(fabsl(got - want) <= 10 * eps * fmaxl(fabsl(want), pure ? 0 : 1), "filter %g",
                got);
          if (pure) want *= a;
        }
      }
    }
  }
  CHECK(loops->pure_filters(d, k, lam, N_LAM, STEPS, out, 0, units + 1) == SDF_BAD_RANGE,
        "range");
  CHECK(loops->shrinkage_path(d, k, lam, N_LAM, alpha, STEPS, out, 1, 0) == SDF_BAD_RANGE,
        "range");
  release(d);
  release(out);
}

/* ----------------------------------------------------------------- statuses */

static void test_statuses(const sdf_loops *loops) {
  double x[16] = {0};
  sdf_job job = new_job(SDF_N_KERNELS, 2, 2, 2);
  job.problem.x = x;
  CHECK(loops->prepare(&job) == SDF_BAD_KERNEL, "kernel id");
  job.problem.kernel = SDF_RBF;
  job.problem.a = NAN;
  CHECK(loops->prepare(&job) == SDF_BAD_PARAMETER, "gamma");
  job.problem.a = 1;
  job.problem.m = 3;
  CHECK(loops->prepare(&job) == SDF_BAD_SIZE, "K(X, X) with n != m");
  job.problem.m = 2;
  job.problem.out = x;
  job.problem.ld = 1;
  CHECK(loops->prepare(&job) == SDF_BAD_SIZE, "ld");
  job.problem.ld = 2;
  CHECK(loops->prepare(&job) == SDF_OK, "prepare");
  CHECK(loops->pack(&job, 0, 1) == SDF_NO_MEMORY_GIVEN, "no buffers");
  CHECK(loops->gram(&job, 0, 1, x) == SDF_NO_MEMORY_GIVEN, "no buffers");
  give_buffers(loops, &job);
  CHECK(loops->pack(&job, 0, job.plan.panels_x + 1) == SDF_BAD_RANGE, "range");
  CHECK(loops->gram(&job, -1, 1, x) == SDF_BAD_RANGE, "range");
  CHECK(loops->gram(&job, 0, 1, NULL) == SDF_NO_MEMORY_GIVEN, "no scratch");
  CHECK(loops->half_gram(&job, 0, 1, x, loops->real_size, x) == SDF_BAD_SIZE, "out and half");
  job.problem.out = NULL;
  CHECK(loops->half_gram(&job, 0, 1, x, 2, x) == SDF_BAD_SIZE, "half_size");
  CHECK(loops->half_gram(&job, 0, 1, NULL, 4, x) == SDF_NO_MEMORY_GIVEN, "no tiles");
  double *half = buffer(2 * loops->tile, 8), *sums = half + loops->tile;
#define MULTIPLY(...) loops->half_multiply(half, 2, half, __VA_ARGS__)
  CHECK(MULTIPLY(loops->tile, 1, 1, 0, 2, sums, loops->tile) == SDF_BAD_RANGE, "range");
  CHECK(MULTIPLY(8, 1, 1, 0, 1, sums, loops->tile) == SDF_BAD_SIZE, "ldw");
  CHECK(MULTIPLY(loops->tile, 1, 1, 0, 1, sums, 1) == SDF_BAD_SIZE, "lds");
  CHECK(MULTIPLY(loops->tile, 1, 0, 0, 0, sums, loops->tile) == SDF_BAD_SIZE, "parts");
  CHECK(MULTIPLY(loops->tile, 1, 1, 0, 1, NULL, loops->tile) == SDF_NO_MEMORY_GIVEN, "sums");
  release(half);
  CHECK(loops->inner_products(x, 1, 1, x, 1, 2, 2, x, 1, 0, 1) == SDF_BAD_SIZE, "ldb");
  CHECK(loops->inner_products(x, 2, 2, x, 2, 2, 2, x, 3, 0, 1) == SDF_BAD_SIZE, "lds");
  CHECK(loops->inner_products(x, 1, 2, x, 1, 2, 2, x, 1, 0, 2) == SDF_BAD_RANGE, "range");
  CHECK(loops->inner_products(x, 1, 2, x, 1, 2, 2, NULL, 1, 0, 1) == SDF_NO_MEMORY_GIVEN, "h");
  CHECK(loops->project_out(x, 1, 2, x, x, 1, 1, 2, 0, 1) == SDF_BAD_SIZE, "ldw");
  CHECK(loops->project_out(x, 1, 2, x, NULL, 1, 2, 2, 0, 1) == SDF_NO_MEMORY_GIVEN, "w");
  free_job(&job);
  for (int s = 0; s < SDF_N_STATUSES; s++)
    CHECK(strlen(sdf_message((sdf_status)s)) > 5, "message");
  CHECK(sdf_kernel_name(SDF_N_KERNELS) == NULL && sdf_isa_name(-1) == NULL, "names");
  CHECK(sdf_loops_of(SDF_N_ISAS, 8) == NULL && sdf_loops_of(0, 2) == NULL, "tables");
}

/* --------------------------------------------------------------------- main */

int main(void) {
  for (int isa = 0; isa < SDF_N_ISAS; isa++) {
    for (int size = 4; size <= 8; size += 4) {
      const sdf_loops *loops = sdf_loops_of(isa, size);
      if (loops == NULL) {
        printf("%s: not available here\n", sdf_isa_name(isa));
        continue;
      }
      test_exp(loops);
      test_statuses(loops);
      for (int i = 0; i < N_SIZES; i++) test_filters(loops, 17 * SIZES[i]);
      for (int i = 0; i < N_SIZES; i++) {
        test_projection(loops, SIZES[i], i % 7, SIZES[i] % 9);
        test_projection(loops, 512 * (i % 3) + SIZES[i], SIZES[i] % 11, i);
      }
      for (int kernel = 0; kernel < SDF_N_KERNELS; kernel++) {
        for (int i = 0; i < N_SIZES; i++) {
          const ptrdiff_t n = SIZES[i], m = SIZES[(5 * i + 3) % N_SIZES];
          test_gram(loops, kernel, n, m, WIDTHS[i], 0, 0, 0, i % 3);
          test_gram(loops, kernel, n, n, WIDTHS[(7 * i + 4) % N_SIZES], 1, 0, i % 4, 0);
          test_gram(loops, kernel, m, n, WIDTHS[(7 * i + 2) % N_SIZES], 0, 1, i % 4, i % 2);
        }
        /* several tiles, rows that begin alike and not, one and two passes over d */
        test_gram(loops, kernel, 208, 208, 20, 1, 1, 1 + kernel % 5, 0);
        test_gram(loops, kernel, 203, 203, kernel % 2 ? 259 : 5, 1, 1, 0, 0);
        test_gram(loops, kernel, 30, 400, 18, 0, 1, 3, 0);
        for (int half_size = 4; half_size <= size; half_size += 4) {
          for (int i = kernel % 3; i < N_SIZES; i += 3) {
            test_half(loops, kernel, SIZES[i], WIDTHS[i], half_size, i % 2);
          }
          test_half(loops, kernel, 203, kernel % 2 ? 259 : 5, half_size, 1);
        }
        if (kernel < 2) test_half(loops, kernel, 385 - kernel, 3, 4, kernel);
      }
      printf("%s f%d: done\n", sdf_isa_name(isa), 8 * size);
    }
  }
  printf(failures ? "%d FAILURES\n" : "all passed\n", failures);
  return failures != 0;
}
