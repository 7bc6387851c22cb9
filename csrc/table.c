/* table.c: the loops of one instruction set and one precision; see sdf.h. */
#include "loops.h"

void LOOP(exp)(const void *x, void *y, ptrdiff_t n) {
  const real *from = x;
  real *to = y;
  ptrdiff_t i = 0;
  for (; i + LANES <= n; i += LANES) store_any_(to + i, exp_(load_any_(from + i)));
  for (; i < n; i++) to[i] = exp_(splat_(from[i]))[0];
}

#define ID_JOINED(isa) SDF_##isa
#define ID_OF(isa) ID_JOINED(isa)
#define ENTRY(name) .name = LOOP(name),
/* clang-format off */
const sdf_loops LOOP(loops) = {
    .isa = ID_OF(SDF_ISA_ID),
    .real_size = sizeof(real),
    .mr = MR,
    .nr = NR,
    .tile = TILE,
    .line = LINE,
    .direct = DIRECT,
    LOOPS(ENTRY)
};
/* clang-format on */
