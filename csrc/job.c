/* job.c: sizes, layout and constants of a job, from its problem; checks of a call. */
#include "loops.h"

#if SDF_BITS == 64
#define LARGEST 1e307
#else
#define LARGEST 1e37f
#endif

static rate rate_of(double a) {
  a = a < -(double)LARGEST ? -(double)LARGEST : a;
  const double log2_e = 0x1.71547652b82fep+0, log2_e_low = 0x1.777d0ffda0d24p-56;
  const double high = a * log2_e;
  const double low = __builtin_fma(a, log2_e, -high) + a * log2_e_low;
  rate k = {(real)a, (real)high, (real)low, (real)LARGEST};
  if (SDF_BITS == 32) k.low = (real)((high - (double)k.high) + low);
  if (-(double)EXP_LOWEST < -a * (double)LARGEST) k.furthest = (real)((double)EXP_LOWEST / a);
  return k;
}

sdf_status LOOP(prepare)(sdf_job *job) {
  static const int8_t pair_of[] = {
#define SQUARES SDF_PAIR_SQUARES
#define L1 SDF_PAIR_L1
#define INNER SDF_PAIR_INNER
#define ANGLE SDF_PAIR_ANGLE
#define PAIR(id, name, pair) pair,
      SDF_KERNELS(PAIR)};
  if (job->problem.kernel < 0 || job->problem.kernel >= SDF_N_KERNELS) return SDF_BAD_KERNEL;
  if (job->problem.n < 0 || job->problem.m < 0 || job->problem.d < 0) return SDF_BAD_SIZE;
  if (job->problem.z == NULL && job->problem.n != job->problem.m) return SDF_BAD_SIZE;
  if (job->problem.out != NULL && job->problem.ld < job->problem.m) return SDF_BAD_SIZE;

  double a = job->problem.a; /* -> the rate of the exponential */
  switch ((sdf_kernel)job->problem.kernel) {
#define RATE(id, rate, distance, polynomial) \
  case SDF_##id: a *= (rate); break;
    SDF_DECAYS(RATE)
    case SDF_POLYNOMIAL:
    case SDF_NTK:
      if (job->problem.degree < 1) return SDF_BAD_PARAMETER;
      break;
    default: break;
  }
  const int decays = pair_of[job->problem.kernel] == SDF_PAIR_SQUARES ||
                     pair_of[job->problem.kernel] == SDF_PAIR_L1;
  if (decays && !(a > 0)) return SDF_BAD_PARAMETER;
  const rate k = rate_of(decays ? -a : -1);
  job->plan.rate[0] = (double)k.a;
  job->plan.rate[1] = (double)k.high;
  job->plan.rate[2] = (double)k.low;
  job->plan.rate[3] = (double)k.furthest;

  job->plan.pair = pair_of[job->problem.kernel];
  if (job->plan.pair == SDF_PAIR_SQUARES && job->problem.d <= DIRECT)
    job->plan.pair = SDF_PAIR_DIFFERENCES;
  job->plan.centred = job->plan.pair == SDF_PAIR_SQUARES;
  job->plan.symmetric = job->problem.z == NULL;

  /* If all rows of `out` have the same alignment, tiles begin at cache lines. Otherwise
   * (`ragged`) all lines except the two at the ends of a tile's row are written in full. */
  const uintptr_t address = (uintptr_t)job->problem.out;
  const int alike = job->problem.ld % LINE == 0;
  job->plan.streaming =
      job->problem.stream && job->problem.out != NULL && address % sizeof(real) == 0;
  job->plan.ragged = job->plan.streaming && !alike;
  job->plan.pad_z = job->plan.streaming && alike ? (ptrdiff_t)(address % 64 / sizeof(real)) : 0;
  job->plan.pad_x = job->plan.symmetric ? job->plan.pad_z : 0;

  const ptrdiff_t rows_x = job->problem.n ? job->problem.n + job->plan.pad_x : 0;
  const ptrdiff_t rows_z = job->problem.m ? job->problem.m + job->plan.pad_z : 0;
  job->plan.panels_x = quotient_up(rows_x, NR);
  job->plan.panels_z = job->plan.symmetric ? 0 : quotient_up(rows_z, NR);
  job->plan.tiles_x = quotient_up(rows_x, TILE);
  job->plan.tiles_z = quotient_up(rows_z, TILE);
  job->plan.tiles = job->plan.symmetric ? job->plan.tiles_x * (job->plan.tiles_x + 1) / 2
                                        : job->plan.tiles_x * job->plan.tiles_z;
  job->plan.norms_size_x = job->plan.panels_x * NR;
  job->plan.norms_size_z = job->plan.panels_z * NR;
  job->plan.packed_size_x = job->plan.norms_size_x * job->problem.d;
  job->plan.packed_size_z = job->plan.norms_size_z * job->problem.d;
  job->plan.pairs_size = job->plan.tiles * TILE * TILE;
  job->plan.scratch_size =
      TILE * (job->problem.d > DEPTH || job->plan.ragged ? TILE + LINE : UNIT);
  return SDF_OK;
}

sdf_status check_job(const sdf_job *job, ptrdiff_t lo, ptrdiff_t hi, ptrdiff_t count) {
  if (lo < 0 || hi < lo || hi > count) return SDF_BAD_RANGE;
  if (unusable(job->buffers.packed_x, job->plan.packed_size_x) ||
      unusable(job->buffers.norms_x, job->plan.norms_size_x) ||
      unusable(job->buffers.packed_z, job->plan.packed_size_z) ||
      unusable(job->buffers.norms_z, job->plan.norms_size_z) ||
      unusable(job->buffers.shift, job->problem.d)) {
    return SDF_NO_MEMORY_GIVEN;
  }
  return SDF_OK;
}
