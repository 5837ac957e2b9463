#include "engine_pool.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "split.h"

namespace {

enum { kSpins = 2000 };          // pauses before the processor is offered to others: some ten microseconds
const int64_t kAwake = 2000000;  // nanoseconds that a thread stays awake after a run, for the next one

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
void relax() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}
uint64_t stretch(int64_t begin, int64_t end) { return (uint64_t)begin << 32 | (uint64_t)end; }

}  // namespace

bool lc_pool::start(int64_t threads) {
  threads_ = threads, started_ = 0, owner_ = getpid();
  sleepers_ = running_ = quit_ = 0, turn_ = 0, left_ = 0;
  void* p = nullptr;
  if (posix_memalign(&p, 128, (size_t)threads * sizeof(Slot))) return false;
  memset(p, 0, (size_t)threads * sizeof(Slot));
  slots_ = (Slot*)p;
  pthread_mutex_init(&mutex_, nullptr);
  pthread_cond_init(&wake_, nullptr);
  for (int64_t i = 1; i < threads; ++i) {
    slots_[i].pool = this, slots_[i].number = i;
    if (pthread_create(&slots_[i].thread, nullptr, enter, &slots_[i])) {
      stop();
      return false;
    }
    started_ = i;
  }
  return true;
}

void lc_pool::stop() {
  if (getpid() == owner_) {  // a forked child has the memory alone
    pthread_mutex_lock(&mutex_);
    __atomic_store_n(&quit_, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&wake_);
    pthread_mutex_unlock(&mutex_);
    for (int64_t i = 1; i <= started_; ++i) pthread_join(slots_[i].thread, nullptr);
    pthread_cond_destroy(&wake_);
    pthread_mutex_destroy(&mutex_);
  }
  free(slots_);
}

void lc_pool::begin() {
  if (threads_ == 1 || getpid() != owner_) return;
  __atomic_store_n(&running_, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&sleepers_, __ATOMIC_SEQ_CST) == 0) return;
  pthread_mutex_lock(&mutex_);
  pthread_cond_broadcast(&wake_);
  pthread_mutex_unlock(&mutex_);
}
void lc_pool::end() { __atomic_store_n(&running_, 0, __ATOMIC_RELEASE); }

// A task from the front of the thread's own stretch, or from the end of another's.
bool lc_pool::take(Slot& slot, bool own, int64_t* task) {
  uint64_t seen = __atomic_load_n(&slot.tasks, __ATOMIC_RELAXED);
  for (;;) {
    const int64_t begin = (int64_t)(seen >> 32), end = (int64_t)(seen & 0xFFFFFFFFu);
    if (begin >= end) return false;
    const uint64_t rest = own ? stretch(begin + 1, end) : stretch(begin, end - 1);
    // What was seen may be of an earlier turn; what is taken belongs to the turn that runs, which cannot end before it.
    if (__atomic_compare_exchange_n(&slot.tasks, &seen, rest, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
      *task = own ? begin : end - 1;
      return true;
    }
  }
}

void lc_pool::work(int64_t thread) {
  for (int64_t i = 0; i < threads_; ++i) {
    Slot& slot = slots_[(thread + i) % threads_];
    for (int64_t task; take(slot, i == 0, &task);) {
      task_(context_, task, thread);
      __atomic_fetch_sub(&left_, 1, __ATOMIC_ACQ_REL);
    }
  }
}

void lc_pool::run(Task task, void* context, int64_t count) {
  if (threads_ == 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i, 0);
    return;
  }
  task_ = task, context_ = context;
  __atomic_store_n(&left_, count, __ATOMIC_RELEASE);
  for (int64_t i = 0; i < threads_; ++i)
    __atomic_store_n(&slots_[i].tasks, stretch(count * i / threads_, count * (i + 1) / threads_), __ATOMIC_RELEASE);
  __atomic_fetch_add(&turn_, 1, __ATOMIC_RELEASE);
  work(0);
  for (int64_t spins = 0; __atomic_load_n(&left_, __ATOMIC_ACQUIRE) != 0; ++spins) {
    relax();
    if (spins > kSpins) sched_yield();
  }
}

void* lc_pool::enter(void* slot) {
  FlushToZero flush;
  ((Slot*)slot)->pool->serve(((Slot*)slot)->number);
  return nullptr;
}

void lc_pool::serve(int64_t thread) {
  uint64_t turn = 0;
  int64_t spins = 0, since = 0;
  while (!__atomic_load_n(&quit_, __ATOMIC_ACQUIRE)) {
    const uint64_t seen = __atomic_load_n(&turn_, __ATOMIC_ACQUIRE);
    if (seen != turn) {
      turn = seen, spins = since = 0;
      work(thread);
      continue;
    }
    relax();
    if (++spins <= kSpins) continue;
    sched_yield();
    if (spins % 64 || __atomic_load_n(&running_, __ATOMIC_RELAXED)) continue;
    if (since == 0) since = now();
    if (now() - since < kAwake) continue;
    pthread_mutex_lock(&mutex_);
    __atomic_fetch_add(&sleepers_, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&running_, __ATOMIC_SEQ_CST) && !__atomic_load_n(&quit_, __ATOMIC_RELAXED))
      pthread_cond_wait(&wake_, &mutex_);
    __atomic_fetch_sub(&sleepers_, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&mutex_);
    spins = since = 0;
  }
}
