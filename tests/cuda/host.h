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

/* A coroutine starts by its context, which costs system calls, and then changes by jumps,
 * which do not. */
struct host_coroutine {
  ucontext_t context;
  jmp_buf where;
  bool started, done;
  std::vector<char> stack;
};
static std::vector<host_coroutine> host_threads;
static ucontext_t host_home;
static jmp_buf host_scheduler;
static const std::function<void()> *host_body;
static unsigned host_current;

static void host_yield() {
  if (_setjmp(host_threads[host_current].where) == 0) _longjmp(host_scheduler, 1);
}

static inline void __syncthreads() { host_yield(); }

static void host_thread() {
  for (;;) { /* one block after the other */
    (*host_body)();
    host_threads[host_current].done = true;
    host_yield();
  }
}

static void host_resume(unsigned t) {
  host_current = t;
  threadIdx = {t, 0, 0};
  if (_setjmp(host_scheduler) != 0) return;
  if (host_threads[t].started) _longjmp(host_threads[t].where, 1);
  host_threads[t].started = true;
  swapcontext(&host_home, &host_threads[t].context);
}

/* Returns 0, or 1 where some threads of a block wait at a barrier that others never reach. */
static int host_launch(unsigned gx, unsigned gy, unsigned threads,
                       const std::function<void()> &body) {
  host_body = &body;
  if (host_threads.size() < threads) {
    host_threads = std::vector<host_coroutine>(threads);
    for (host_coroutine &thread : host_threads) {
      thread.stack.resize(64 << 10);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size();
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, host_thread, 0);
    }
  }
  gridDim = {gx, gy, 1};
  blockDim = {threads, 1, 1};
  for (unsigned by = 0; by < gy; by++) {
    for (unsigned bx = 0; bx < gx; bx++) {
      blockIdx = {bx, by, 0};
      for (unsigned t = 0; t < threads; t++) host_threads[t].done = false;
      for (unsigned left = threads; left > 0;) {
        unsigned finished = 0;
        for (unsigned t = 0; t < threads; t++) {
          host_resume(t);
          finished += host_threads[t].done;
        }
        if (finished != 0 && finished != left) { /* the coroutines are in disorder */
          host_threads.clear();
          return 1;
        }
        left -= finished;
      }
    }
  }
  return 0;
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
