/* dispatch.c: the tables of loops in this build, and those that this processor can run. The
 * build defines SDF_HAVE_<ISA> for each instruction set that it compiled. Unlike the loops,
 * this file is compiled without instruction set flags. */
#include "sdf.h"

/* __builtin_cpu_supports also checks whether the operating system saves the wide registers. */
static int supported_GENERIC(void) { return 1; }
#if defined(__x86_64__)
static int supported_AVX2(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int supported_AVX512(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("fma");
}
#endif

#define DECLARE(id) extern const sdf_loops sdf_loops_f32_##id, sdf_loops_f64_##id;
#define ENTRY(id) [SDF_##id] = {&sdf_loops_f32_##id, &sdf_loops_f64_##id, supported_##id},

DECLARE(GENERIC)
#ifdef SDF_HAVE_AVX2
DECLARE(AVX2)
#endif
#ifdef SDF_HAVE_AVX512
DECLARE(AVX512)
#endif

/* clang-format off */
static const struct {
  const sdf_loops *f32, *f64;
  int (*supported)(void);
} TABLES[SDF_N_ISAS] = {
    ENTRY(GENERIC)
#ifdef SDF_HAVE_AVX2
    ENTRY(AVX2)
#endif
#ifdef SDF_HAVE_AVX512
    ENTRY(AVX512)
#endif
};
/* clang-format on */

const sdf_loops *sdf_loops_of(int isa, int real_size) {
  if (isa < 0 || isa >= SDF_N_ISAS || TABLES[isa].supported == NULL) return NULL;
  if (!TABLES[isa].supported()) return NULL;
  return real_size == 8 ? TABLES[isa].f64 : real_size == 4 ? TABLES[isa].f32 : NULL;
}

#define NAME(id, name, ...) name,
const char *sdf_message(sdf_status status) {
  static const char *const messages[] = {SDF_STATUSES(NAME)};
  return (unsigned)status < SDF_N_STATUSES ? messages[status] : "unknown status";
}

const char *sdf_kernel_name(int kernel) {
  static const char *const names[] = {SDF_KERNELS(NAME)};
  return (unsigned)kernel < SDF_N_KERNELS ? names[kernel] : NULL;
}

const char *sdf_isa_name(int isa) {
  static const char *const names[] = {SDF_ISAS(NAME)};
  return (unsigned)isa < SDF_N_ISAS ? names[isa] : NULL;
}
