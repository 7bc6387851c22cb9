/* simd.h: one vector type, `vec`, of SDF_BITS-bit reals, as wide as the instruction set
 * for which this file is compiled. Arithmetic, comparisons and shuffles use the vector
 * extensions of GCC and Clang; intrinsics are used only for what these cannot express (min,
 * max, square root, streaming store, a guaranteed FMA, and AVX-512's scalef with its table
 * look-up in elementary.h).
 */
#ifndef SDF_SIMD_H
#define SDF_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if SDF_BITS == 64
typedef double real;
typedef int64_t integer; /* of the width of real */
typedef uint64_t natural;
#define PD_OR_PS(op) op##_pd
#else
typedef float real;
typedef int32_t integer;
typedef uint32_t natural;
#define PD_OR_PS(op) op##_ps
#endif

#if defined(__AVX512F__)
#include <immintrin.h>
#define SIMD_BYTES 64
#define SIMD(op) PD_OR_PS(_mm512_##op)
#elif defined(__AVX2__)
#include <immintrin.h>
#define SIMD_BYTES 32
#define SIMD(op) PD_OR_PS(_mm256_##op)
#elif defined(__SSE2__)
#include <immintrin.h>
#define SIMD_BYTES 16
#define SIMD(op) PD_OR_PS(_mm_##op)
#else
#define SIMD_BYTES 16
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { LANES = SIMD_BYTES / (int)sizeof(real), LINE = 64 / (int)sizeof(real) /* of cache */ };

typedef real vec __attribute__((vector_size(SIMD_BYTES), may_alias));
typedef real vec_unaligned
    __attribute__((vector_size(SIMD_BYTES), may_alias, aligned(SDF_BITS / 8)));
typedef integer ivec __attribute__((vector_size(SIMD_BYTES), may_alias));
typedef natural uvec __attribute__((vector_size(SIMD_BYTES), may_alias));

static inline vec load_(const real *p) { return *(const vec *)p; }
static inline vec load_any_(const real *p) { return (vec) * (const vec_unaligned *)p; }
static inline void store_(real *p, vec v) { *(vec *)p = v; }
static inline void store_any_(real *p, vec v) { *(vec_unaligned *)p = (vec_unaligned)v; }
static inline vec splat_(real x) { return x - (vec){0}; }

static inline vec select_(ivec mask, vec yes, vec no) {
  return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

/* min and max return b if a or b is NaN. */
#if defined(SIMD)
static inline vec min_(vec a, vec b) { return SIMD(min)(a, b); }
static inline vec max_(vec a, vec b) { return SIMD(max)(a, b); }
static inline vec sqrt_(vec a) { return SIMD(sqrt)(a); }
static inline void stream_(real *p, vec v) { SIMD(stream)(p, v); }
static inline void stream_end_(void) { _mm_sfence(); }
#else
static inline vec min_(vec a, vec b) { return select_(a < b, a, b); }
static inline vec max_(vec a, vec b) { return select_(a > b, a, b); }
static inline vec sqrt_(vec a) {
  for (int l = 0; l < LANES; l++) {
    a[l] = SDF_BITS == 64 ? (real)__builtin_sqrt(a[l]) : (real)__builtin_sqrtf((float)a[l]);
  }
  return a;
}
static inline void stream_(real *p, vec v) { store_(p, v); }
static inline void stream_end_(void) {}
#endif

/* a * b + c, rounded once if the processor has FMA; otherwise the compiler may contract. */
#if defined(__FMA__)
#define SIMD_FMA 1
static inline vec fma_(vec a, vec b, vec c) { return SIMD(fmadd)(a, b, c); }
#elif defined(__aarch64__) && SDF_BITS == 64
#define SIMD_FMA 1
static inline vec fma_(vec a, vec b, vec c) {
  return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#elif defined(__aarch64__)
#define SIMD_FMA 1
static inline vec fma_(vec a, vec b, vec c) {
  return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
#define SIMD_FMA 0
#endif

static inline vec sign_(vec a) { return (vec)((ivec)a & (ivec)splat_((real)-0.0)); }
static inline vec abs_(vec a) { return (vec)((ivec)a & ~(ivec)splat_((real)-0.0)); }
static inline vec copysign_(vec a, vec b) { return (vec)((ivec)abs_(a) | (ivec)sign_(b)); }

static inline ivec negative_(vec a) { return (ivec)a < 0; } /* the sign bit, which -0 has set */

static inline int any_(ivec mask) {
  integer any = 0;
  for (int l = 0; l < LANES; l++) any |= mask[l];
  return any != 0;
}

/* Lists of LANES constants: AT(0, s), AT(1, s), ... */
#define LIST2(AT, s) AT(0, s), AT(1, s)
#define LIST4(AT, s) LIST2(AT, s), AT(2, s), AT(3, s)
#define LIST8(AT, s) LIST4(AT, s), AT(4, s), AT(5, s), AT(6, s), AT(7, s)
#define LIST16(AT, s)                                                                      \
  LIST8(AT, s), AT(8, s), AT(9, s), AT(10, s), AT(11, s), AT(12, s), AT(13, s), AT(14, s), \
      AT(15, s)
#if SIMD_BYTES * 8 / SDF_BITS == 16
#define LIST LIST16
#elif SIMD_BYTES * 8 / SDF_BITS == 8
#define LIST LIST8
#elif SIMD_BYTES * 8 / SDF_BITS == 4
#define LIST LIST4
#else
#define LIST LIST2
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE_OF(list, mask, a, b, AT, s) __builtin_shufflevector(a, b, list(AT, s))
#else
#define SHUFFLE_OF(list, mask, a, b, AT, s) __builtin_shuffle(a, b, (mask){list(AT, s)})
#endif
#define SHUFFLE(a, b, AT, s) SHUFFLE_OF(LIST, ivec, a, b, AT, s)

/* Transposes a LANES x LANES block: step s exchanges bit s of the row and lane numbers. */
#define TAKE_LOW(l, s) (((l) & (s)) ? SIMD_BYTES * 8 / SDF_BITS + (l) - (s) : (l))
#define TAKE_HIGH(l, s) (((l) & (s)) ? SIMD_BYTES * 8 / SDF_BITS + (l) : (l) + (s))
#define TRANSPOSE_STEP(v, s)                                  \
  _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) {  \
    if ((i & (s)) == 0) {                                     \
      const vec low = SHUFFLE(v[i], v[i + (s)], TAKE_LOW, s); \
      v[i + (s)] = SHUFFLE(v[i], v[i + (s)], TAKE_HIGH, s);   \
      v[i] = low;                                             \
    }                                                         \
  }
static inline void transpose_(vec v[LANES]) {
  TRANSPOSE_STEP(v, 1)
#if SIMD_BYTES * 8 / SDF_BITS > 2
  TRANSPOSE_STEP(v, 2)
#endif
#if SIMD_BYTES * 8 / SDF_BITS > 4
  TRANSPOSE_STEP(v, 4)
#endif
#if SIMD_BYTES * 8 / SDF_BITS > 8
  TRANSPOSE_STEP(v, 8)
#endif
}

#endif
