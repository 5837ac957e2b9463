// The threads of an engine: tasks of one kind at a time, [0, count).
//
// The caller works too and never waits for a thread to begin, only for tasks that one has taken: a thread that the machine
// does not run now, or that a fork left behind, costs nothing. Each thread has a stretch of tasks of its own, so that it
// meets the same rows of one map after the other, and takes from the ends of others' when that is done.
#pragma once
#include <pthread.h>
#include <stdint.h>

class lc_pool {
 public:
  typedef void (*Task)(void* context, int64_t task, int64_t thread);

  bool start(int64_t threads);  // false: no memory or no thread
  void stop();
  void begin();  // a run: threads that sleep are woken
  void end();
  void run(Task task, void* context, int64_t count);  // between begin and end, from one thread at a time
  int64_t threads() const { return threads_; }

 private:
  struct Slot {  // on cache lines of its own: tasks [low half, high half)
    uint64_t tasks;
    lc_pool* pool;
    int64_t number;
    pthread_t thread;
    char apart[128 - 24 - sizeof(pthread_t)];
  };
  static void* enter(void* slot);
  void serve(int64_t thread);
  void work(int64_t thread);
  bool take(Slot& slot, bool own, int64_t* task);

  Slot* slots_;
  int64_t threads_, started_, owner_;
  Task task_;
  void* context_;
  pthread_mutex_t mutex_;
  pthread_cond_t wake_;
  uint32_t sleepers_, running_, quit_;
  alignas(128) uint64_t turn_;
  alignas(128) int64_t left_;
  char apart_[128];
};
