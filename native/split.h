// What the dispatching files share: the table of an instruction set, and work split over threads.
#pragma once
#include <stddef.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "table.h"

const lc_table& lc_table_of(int32_t isa);  // of one that lc_supported

// Parts of the batch norm for what is fused with it.
int32_t lc_norm_prepare(lc_norm* n);   // checks it and fills in the plan
int32_t lc_norm_slopes(lc_norm* n);    // dgamma, dbeta and the factors of dx, of one that is prepared
int32_t lc_norm_gradient(lc_norm* n);  // dx, once the slopes are there
int32_t lc_depthwise_check(const lc_depthwise* d);  // its sizes

namespace {

// Numbers below the normal range are zero while this lives: one of them costs a hundred normal ones. The caller's setting
// comes back, in whatever thread of whoever's pool the work ran.
class FlushToZero {
 public:
#if defined(__SSE2__)
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushToZero() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"(before_ | (1ull << 24)));
  }
  ~FlushToZero() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;
};

enum Denormals { kFlushed, kDenormals };  // kDenormals: as the thread has them

template <typename Args, Denormals denormals>
struct Job {
  const Args* args;
  void (*work)(const Args&, int64_t, int64_t);

  void run(int64_t begin, int64_t end) const {
    if (denormals == kDenormals) return work(*args, begin, end);
    FlushToZero flush;
    work(*args, begin, end);
  }
  static void call(int64_t begin, int64_t end, void* job) { ((const Job*)job)->run(begin, end); }
};

// Work on [0, count) in parts of at least `grain`; the parts depend on the pool, so what is computed must not.
template <Denormals denormals = kFlushed, typename Args>
int32_t split(const Args* args, void (*work)(const Args&, int64_t, int64_t), int64_t count, int64_t grain) {
  typedef Job<Args, denormals> Part;
  Part job = {args, work};
  if (args->parallel_for == nullptr || count <= grain) {
    job.run(0, count);
    return LC_OK;
  }
  return args->parallel_for(0, count, grain, Part::call, &job) == 0 ? LC_OK : LC_PARALLEL_FAILED;
}

template <typename Args>
int32_t check_head(const Args* args) {
  if (args->size != sizeof(Args)) return LC_BAD_SIZE;
  return lc_supported(args->isa) ? LC_OK : LC_BAD_ISA;
}

}  // namespace
