/* formulas.h: the kernels and the filters, written once for the C loops and for CUDA.
 *
 * The tables are shared by all (sdf.h includes them). The functions are for the loops, where a
 * `vec` is a vector register, and for _backend/kernels.cu, where it is one number. A file that
 * includes this one a second time must define FORMULA (the qualifiers of a function) and,
 * before that,
 *
 *   real, vec, ivec       a number, the type of operands, the result of a comparison
 *   splat_, select_, min_, max_, abs_, copysign_, negative_ (the sign bit), sqrt_, asin_
 *   rate, decay_(t, k)    e^(k.a t), t >= 0, k.a < 0; beyond k.furthest it is 0
 */
#ifndef SDF_FORMULAS_H
#define SDF_FORMULAS_H

/* X(identifier, name in kernels.py, pair quantity) */
#define SDF_KERNELS(X)                                                              \
  X(RBF, "rbf", SQUARES)             /* exp(-a s),               s = |x - z|^2 */   \
  X(LAPLACIAN, "laplacian", L1)      /* exp(-a s),               s = |x - z|_1 */   \
  X(MATERN12, "matern12", SQUARES)   /* exp(-r),                 r = a sqrt(s) */   \
  X(MATERN32, "matern32", SQUARES)   /* (1 + r) exp(-r),         r = a sqrt(3 s) */ \
  X(MATERN52, "matern52", SQUARES)   /* (1 + r + r^2/3) exp(-r), r = a sqrt(5 s) */ \
  X(POLYNOMIAL, "polynomial", INNER) /* (a s + b)^degree,        s = <x, z> */      \
  X(LINEAR, "linear", INNER)         /* s */                                        \
  X(NTK, "ntk", ANGLE)               /* |x| |z| t_degree(angle), see kernels.py */

/* Decaying kernels are polynomial(r) e^(-r) with r = rate a distance(s).
 * X(identifier, rate, distance, polynomial) */
#define SDF_DECAYS(X)                              \
  X(RBF, 1, s, 1)                                  \
  X(LAPLACIAN, 1, s, 1)                            \
  X(MATERN12, 1, sqrt_(s), 1)                      \
  X(MATERN32, 1.7320508075688772, sqrt_(s), 1 + r) \
  X(MATERN52, 2.2360679774997896, sqrt_(s), 1 + r + r * r * (real)(1.0 / 3.0))

/* A squared distance from norms and inner product below this fraction of the norms' sum has
 * lost digits and is recomputed by differences (error for real_size 8: 1e-13 sqrt(d), 4: 1e-5
 * sqrt(d)). */
#define SDF_CANCELLED(real_size) ((real_size) == 8 ? 1e-3 : 1e-2)

/* 1 - |cos| below this is computed as |u -+ v|^2 / 2 of unit rows: rounding an inner product by
 * eps would change the angle by eps / sqrt(2 SDF_PARALLEL), which is 4 eps, and by more below.
 */
#define SDF_PARALLEL (1.0 / 32)

#endif

#ifdef FORMULA

/* rbf_(s, k), laplacian_(s, k), ...: kappa from the pair quantity, k.a = -rate a. */
#define DECAY_(id, rate_, distance, polynomial)                   \
  FORMULA vec kappa_##id(vec s, rate k) {                         \
    const vec t = distance;                                       \
    const vec r = min_(splat_(k.furthest), t) * -k.a; /* inf 0 */ \
    (void)r;                                                      \
    return (polynomial) * decay_(t, k);                           \
  }
SDF_DECAYS(DECAY_)
#undef DECAY_

/* (a s + b)^degree by squaring, degree >= 1. */
FORMULA vec kappa_POLYNOMIAL(vec s, real a, real b, int degree) {
  vec base = s * a + b, power = splat_(1);
  for (int bits = degree;;) {
    if (bits & 1) power *= base;
    bits >>= 1;
    if (bits == 0) return power;
    base *= base;
  }
}

/* e = +-(1 - |rho|), the sign that of rho -> t_depth of kernels.NTK. With theta the angle,
 *   kappa_0 = 1 - theta / pi,  kappa_1 = rho kappa_0 + sin(theta) / pi,
 *   1 - kappa_1 = (1 - rho) - (sin(theta) - rho theta) / pi,
 * and the last line preserves the digits of the next angle where rho is near 1. */
FORMULA vec kappa_NTK(vec e, int depth) {
  const vec half = splat_((real)0.5), one = splat_(1);
  const real pi = (real)3.14159265358979323846, by_pi = (real)0.31830988618379067154;
  ivec negative = negative_(e); /* e = -0 is rho = -1 */
  vec gap = abs_(e), rho = copysign_(one - gap, e), total = rho;
  for (int h = 0; h < depth; h++) {
    const ivec close = gap <= half;
    const vec a = asin_(select_(close, sqrt_(gap * half), one - gap));
    const vec angle = select_(close, a + a, pi / 2 - a); /* between the lines, <= pi / 2 */
    const vec theta = select_(negative, pi - angle, angle);
    const vec sine = sqrt_(gap * (2 - gap));
    const vec kappa0 = select_(negative, angle * by_pi, one - angle * by_pi);
    const vec kappa1 = rho * kappa0 + sine * by_pi;
    total = total * kappa0 + kappa1;
    gap = select_(negative, one - kappa1, gap + (rho * theta - sine) * by_pi);
    gap = max_(splat_(0), gap);
    rho = one - gap;
    negative = negative_(one);
  }
  return total;
}

/* diag A of an eigenvalue d, and one step of the recursion (12); always in double. */
FORMULA double smoother_(double d, double lam) { return d / (d + lam); }
FORMULA double next_shrinkage_(double a, double b, double alpha) {
  return a * ((1 - alpha) * b + alpha);
}

#endif
