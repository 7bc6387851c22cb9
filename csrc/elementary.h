/* elementary.h: exp and asin of a vector, without a branch. Coefficients: csrc/minimax.py.
 *
 *   exp    e^(a x) = 2^n 2^f with n = the rounded a x log2(e) and 2^f = 1 + f P(f). The rate
 *          a is folded into the constant log2(e) a = high + low, and with FMA
 *          f = fma(x, high, -n) + x low loses nothing; without FMA, f comes from Cody and
 *          Waite's two-part ln 2. AVX-512: n is a multiple of 1/8 (1/16 in float32), 2^n's
 *          fraction is looked up in a register, and scalef applies the rest. Elsewhere 2^n
 *          is applied as two powers of two, so that results in the denormals round once.
 *          exp(x) is within 2 ulp everywhere; overflow gives inf, underflow goes through
 *          the denormals to 0, NaN stays NaN, exp(0) = 1 exactly.
 *   asin   on [0, 1/2]: t + t y P(y), y = t^2. Within 2 ulp.
 */
#ifndef SDF_ELEMENTARY_H
#define SDF_ELEMENTARY_H

#include "simd.h"

#if SDF_BITS == 64
#define MANTISSA 52
#define BIAS 1023
#define MAGIC 0x1.8p52 /* adding it rounds to an integer, kept in the low bits */
#define EXP_LOWEST (-746.0)
#define EXP_HIGHEST 710.0
#define N_SPLIT 1000 /* |n| up to here is applied at once, the rest by a second factor */
#define LOG2_E 0x1.71547652b82fep+0
#define LOG2_E_LOW 0x1.777d0ffda0d24p-56
#define LN2_HIGH 0x1.62e42fefa3800p-1 /* n * LN2_HIGH is exact for every n that occurs */
#define LN2_LOW 0x1.ef35793c76730p-45
#else
#define MANTISSA 23
#define BIAS 127
#define MAGIC 0x1.8p23f
#define EXP_LOWEST (-104.0f)
#define EXP_HIGHEST 89.0f
#define N_SPLIT 100
#define LOG2_E 0x1.715476p+0f
#define LOG2_E_LOW 0x1.4ae0cp-26f
#define LN2_HIGH 0x1.62e400p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#endif

#if SDF_BITS == 64 && defined(__AVX512F__)
enum { ENTRIES = 8 };
static const real EXP_P[] = {0x1.62e42fefa39efp-1, 0x1.ebfbdff82c6c4p-3,  0x1.c6b08d704a1e0p-5,
                             0x1.3b2ab6f1f4dd8p-7, 0x1.5d87fe6ef1950p-10, 0x1.430debcdf0aa1p-13,
                             0x1.ffd31cfbc4e1ep-17};
static const real POWERS[] __attribute__((aligned(64))) = {
    0x1.0000000000000p+0, 0x1.172b83c7d517bp+0, 0x1.306fe0a31b715p+0, 0x1.4bfdad5362a27p+0,
    0x1.6a09e667f3bcdp+0, 0x1.8ace5422aa0dbp+0, 0x1.ae89f995ad3adp+0, 0x1.d5818dcfba487p+0};
#elif SDF_BITS == 64
enum { ENTRIES = 1 };
static const real EXP_P[] = {
    0x1.62e42fefa39efp-1,  0x1.ebfbdff82c598p-3,  0x1.c6b08d704a0cap-5,  0x1.3b2ab6fba1dfap-7,
    0x1.5d87fe78a2f56p-10, 0x1.4309130967616p-13, 0x1.ffcbfc7339b0cp-17, 0x1.62bfd4915ce51p-20,
    0x1.b524df5c04573p-24, 0x1.e6060b774ed1fp-28, 0x1.e9ff9b4fa1394p-32};
#elif defined(__AVX512F__)
enum { ENTRIES = 16 };
static const real EXP_P[] = {0x1.62e42fp-1f, 0x1.ebff90p-3f, 0x1.c6b3c0p-5f};
static const real POWERS[] __attribute__((aligned(64))) = {
    0x1.0000000000000p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,
    0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
    0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
    0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0};
#else
enum { ENTRIES = 1 };
static const real EXP_P[] = {0x1.62e430p-1f, 0x1.ebfbe0p-3f,  0x1.c6af6dp-5f,
                             0x1.3b29e7p-7f, 0x1.5f0854p-10f, 0x1.446988p-13f};
#endif

#if SDF_BITS == 64
static const real ASIN_P[] = {
    0x1.555555555554ep-3, 0x1.3333333337519p-4, 0x1.6db6db67ba5f6p-5,  0x1.f1c71fdb13b0dp-6,
    0x1.6e8b228a9de37p-6, 0x1.1c59de14fa842p-6, 0x1.c863bebe31f23p-7,  0x1.8590230b3a26ap-7,
    0x1.fb48954090042p-8, 0x1.09c4dfebaaed8p-6, -0x1.6a75f45301e90p-7, 0x1.d13dcd0df7cfbp-6};
#else
static const real ASIN_P[] = {0x1.55555ep-3f, 0x1.332636p-4f, 0x1.70ce15p-5f, 0x1.b119dcp-6f,
                              0x1.39f61ep-5f};
#endif

#define LENGTH(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* p[0] + p[1] x + ...: pairs of terms, then Horner's rule in x^2 over the pairs, which
 * halves the length of the chain of dependent operations. `count` is a constant. */
static inline vec polynomial_(const real *p, int count, vec x) {
  const vec xx = x * x;
  vec sum = splat_(p[count - 1]);
  if (count % 2 == 0) sum = sum * x + p[count - 2];
#pragma GCC unroll 8
  for (int j = count - 2 - (count + 1) % 2; j > 0; j -= 2)
    sum = sum * xx + (p[j] * x + p[j - 1]);
  return sum;
}

/* The rate a of e^(a x), prepared by rate_of in loops.c. */
typedef struct {
  real a, high, low; /* a log2(e) = high + low */
  real furthest;     /* |x| is clipped here; e^(a x) is 0 long before */
} rate;

/* 2^n for integer-valued n within the normal exponents. */
static inline vec power_of_2_(vec n) { return (vec)((uvec)(n + (MAGIC + BIAS)) << MANTISSA); }

/* e^(a x) for x that neither overflows n nor is infinite. */
static inline vec exp_of_(vec x, rate k) {
#if SIMD_FMA
  const vec rounded = x * k.high + MAGIC / ENTRIES;
  const vec n = rounded - MAGIC / ENTRIES;
  const vec f = fma_(x, splat_(k.high), -n) + x * k.low;
#else
  const vec y = x * k.a;
  const vec n = (y * LOG2_E + MAGIC) - MAGIC;
  const vec f = ((y - n * LN2_HIGH) - n * LN2_LOW) * LOG2_E;
#endif
  const vec p = f * polynomial_(EXP_P, LENGTH(EXP_P), f);
#if defined(__AVX512F__)
  const vec fraction = SIMD(permutexvar)((__m512i)rounded, load_(POWERS));
  return SIMD(scalef)(p * fraction + fraction, n); /* scalef floors n */
#else
  const vec most = max_(splat_(-N_SPLIT), min_(splat_(N_SPLIT), n));
  return (p + 1) * power_of_2_(most) * power_of_2_(n - most);
#endif
}

/* e^(a x) for a < 0, x >= 0 (inf included) or NaN. */
static inline vec decay_(vec x, rate k) { return exp_of_(min_(splat_(k.furthest), x), k); }

/* e^x for every x. */
static inline vec exp_(vec x) {
  const rate one = {1, LOG2_E, LOG2_E_LOW, 0};
  return exp_of_(max_(splat_(EXP_LOWEST), min_(splat_(EXP_HIGHEST), x)), one);
}

static inline vec asin_(vec t) {
  const vec y = t * t;
  return t + t * (y * polynomial_(ASIN_P, LENGTH(ASIN_P), y));
}

#endif
