/* host.h: lets kernels.cu be compiled as C++ and run on the host, for the tests.
 *
 * The threads of a block are coroutines that take turns at __syncthreads(); blocks run one
 * after the other, so shared memory is static. Every access of a kernel is what it would be
 * on a device; only the order in time differs.
 */
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3_ {
  unsigned x, y, z;
};
static dim3_ blockIdx, gridDim, threadIdx, blockDim;

static ucontext_t host_scheduler;
static std::vector<ucontext_t> host_threads;
static std::vector<char> host_done;
static std::vector<std::vector<char>> host_stacks;
static const std::function<void()> *host_body;
static unsigned host_current;
static long host_barriers; /* threads that have left before one that still waits: an error */

static inline void __syncthreads() {
  swapcontext(&host_threads[host_current], &host_scheduler);
}

static void host_thread() {
  (*host_body)();
  host_done[host_current] = 1;
  swapcontext(&host_threads[host_current], &host_scheduler);
}

/* Returns 0, or 1 where some threads of a block wait at a barrier that others never reach. */
static int host_launch(unsigned gx, unsigned gy, unsigned threads,
                       const std::function<void()> &body) {
  const size_t stack = 64 << 10;
  host_body = &body;
  host_threads.resize(threads);
  host_done.resize(threads);
  while (host_stacks.size() < threads) host_stacks.emplace_back(stack);
  gridDim = {gx, gy, 1};
  blockDim = {threads, 1, 1};
  int divergent = 0;
  for (unsigned by = 0; by < gy; by++) {
    for (unsigned bx = 0; bx < gx; bx++) {
      blockIdx = {bx, by, 0};
      for (unsigned t = 0; t < threads; t++) {
        getcontext(&host_threads[t]);
        host_threads[t].uc_stack.ss_sp = host_stacks[t].data();
        host_threads[t].uc_stack.ss_size = stack;
        host_threads[t].uc_link = &host_scheduler;
        makecontext(&host_threads[t], host_thread, 0);
        host_done[t] = 0;
      }
      for (unsigned left = threads; left > 0;) {
        unsigned finished = 0;
        for (unsigned t = 0; t < threads; t++) {
          if (host_done[t]) continue;
          host_current = t;
          threadIdx = {t, 0, 0};
          swapcontext(&host_scheduler, &host_threads[t]);
          finished += host_done[t];
        }
        divergent |= finished != 0 && finished != left;
        left -= finished;
      }
    }
  }
  return divergent;
}

/* A kernel called with arguments of 8 bytes each: pointers, integers, doubles. */
template <typename A>
static A host_argument(long long word) {
  static_assert(sizeof(A) == 8, "every argument of a kernel has 8 bytes");
  A value;
  memcpy(&value, &word, 8);
  return value;
}

template <typename... A, size_t... I>
static int host_call(void (*kernel)(A...), const long long *words, std::index_sequence<I...>,
                     unsigned gx, unsigned gy, unsigned threads) {
  return host_launch(gx, gy, threads, [&] { kernel(host_argument<A>(words[I])...); });
}

template <typename... A>
static int host_run(void (*kernel)(A...), const long long *words, size_t count, unsigned gx,
                    unsigned gy, unsigned threads) {
  if (count != sizeof...(A)) return -1;
  return host_call(kernel, words, std::index_sequence_for<A...>{}, gx, gy, threads);
}

#define HOST_EXPORT(name)                                                                    \
  extern "C" int host_##name(const long long *words, size_t count, unsigned gx, unsigned gy, \
                             unsigned threads) {                                             \
    return host_run(name, words, count, gx, gy, threads);                                    \
  }
