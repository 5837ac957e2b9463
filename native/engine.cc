// The runtime: makes an engine of a plan, holds its memory, and goes through the steps of a batch.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine_pool.h"
#include "engine_steps.h"
#include "split.h"

struct lc_engine {
  lc_pool pool;
  pthread_mutex_t mutex;
  const lc_table* table;
  lc_prepared* steps;
  int64_t steps_count;
  lc_value* values;
  int64_t values_count, input, output, memory;
  int64_t images;  // that steps are cut for; 0: none
  lc_room room;    // of the largest step
  float* floats;   // arena, scratch memories, shared memory
  int64_t floats_size;
  double* seconds;
};

namespace {

enum { kPages = 1 << 21, kApart = 32 };  // kApart: floats, so that threads write to cache lines of their own

float* allocate(int64_t floats) {
  void* p = nullptr;
  const size_t align = floats * 4 >= 2 * kPages ? (size_t)kPages : 128;
  if (floats > INT64_MAX / 8 || posix_memalign(&p, align, (size_t)(floats + kApart) * 4)) return nullptr;
  return (float*)p;
}

int32_t pack(lc_engine* e) {
  for (int64_t i = 0; i < e->steps_count; ++i)
    for (int64_t j = 0; j < e->steps[i].parts; ++j) {
      lc_layer& l = e->steps[i].layers[j];
      const int64_t floats = e->table->engine_packed(l);
      if (floats == 0) continue;
      l.packed = allocate(floats);
      if (!l.packed) return LC_NO_MEMORY;
      e->table->engine_pack(l);
      l.weight = l.shift = nullptr;
    }
  return LC_OK;
}

int32_t build(lc_engine* e, lc_plan* plan) {
  e->table = &lc_table_of(plan->isa);
  e->steps = (lc_prepared*)calloc((size_t)plan->steps_count, sizeof(lc_prepared));
  e->values = (lc_value*)malloc((size_t)plan->values_count * sizeof(lc_value));
  e->seconds = (double*)calloc((size_t)plan->steps_count, sizeof(double));
  if (!e->steps || !e->values || !e->seconds) return LC_NO_MEMORY;
  e->steps_count = plan->steps_count, e->values_count = plan->values_count;
  if (const int32_t bad = lc_check_plan(plan, e->steps)) return bad;
  memcpy(e->values, plan->values, (size_t)plan->values_count * sizeof(lc_value));
  e->input = plan->input, e->output = plan->output, e->memory = plan->memory;
  return pack(e);
}

void release(lc_engine* e) {
  if (e->steps) lc_release_steps(e->steps, e->steps_count);
  free(e->steps), free(e->values), free(e->seconds), free(e->floats), free(e);
}

// Cuts the steps for a batch and makes sure of the memory.
int32_t cut(lc_engine* e, int64_t images) {
  if (e->images == images) return LC_OK;
  e->images = 0;
  const int64_t threads = e->pool.threads();
  lc_room all = {};
  for (int64_t i = 0; i < e->steps_count; ++i) {
    lc_room room;
    if (!lc_cut_step(e->steps[i], *e->table, images, threads, &room)) return LC_BAD_ARGUMENT;
    if (room.scratch > all.scratch) all.scratch = room.scratch;
    if (room.shared > all.shared) all.shared = room.shared;
  }
  all.scratch = (all.scratch / kApart + 1) * kApart;
  int64_t arena, scratch, size;
  if (all.scratch > kLcMost || __builtin_mul_overflow(e->memory, images, &arena) ||
      __builtin_mul_overflow(all.scratch, threads, &scratch) || __builtin_add_overflow(arena, scratch, &size) ||
      __builtin_add_overflow(size, all.shared + kApart, &size) || size > 4 * kLcMost) return LC_BAD_ARGUMENT;
  if (size > e->floats_size) {
    free(e->floats);
    e->floats_size = 0;
    e->floats = allocate(size);
    if (!e->floats) return LC_NO_MEMORY;
    e->floats_size = size;
  }
  e->room = all, e->images = images;
  return LC_OK;
}

struct Turn {
  const lc_phase* phase;
  float* scratch;
  int64_t apart;
};
void work(void* context, int64_t task, int64_t thread) {
  const Turn& t = *(const Turn*)context;
  t.phase->task(t.phase->work, task, t.scratch + thread * t.apart);
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void go(lc_engine* e, const lc_batch* b) {
  float* const scratch = e->floats + e->memory * b->images;
  float* const shared = scratch + e->room.scratch * e->pool.threads();
  double before = now();
  for (int64_t i = 0; i < e->steps_count; ++i) {
    lc_prepared& s = e->steps[i];
    const auto map = [&](int64_t number) {
      return number == e->input ? b->in : number == e->output ? b->out : number >= 0 ? e->floats + e->values[number].offset * b->images
             : number == LC_SHARED ? shared : number == LC_SHARED_TOO ? shared + s.first : nullptr;
    };
    for (int64_t k = 0; k < s.count; ++k) s.maps[k] = map(s.inputs[k]);
    for (int64_t j = 0; j < s.phases_count; ++j) {
      lc_phase& p = s.phases[j];
      p.work.x = map(p.x), p.work.second = map(p.second), p.work.y = map(p.y);
      Turn turn = {&p, scratch, e->room.scratch};
      e->pool.run(work, &turn, p.tasks);
    }
    const double after = now();
    e->seconds[i] = after - before;
    before = after;
  }
}

}  // namespace

int32_t lc_engine_new(lc_plan* plan, lc_engine** engine) {
  *engine = nullptr;
  if (const int32_t bad = check_head(plan)) return bad;
  plan->refused = -1;
  if (plan->steps_count < 1 || plan->steps_count > LC_MOST_STEPS || plan->values_count < 1 || plan->values_count > LC_MOST_STEPS)
    return LC_BAD_ARGUMENT;
  lc_engine* e = (lc_engine*)calloc(1, sizeof(lc_engine));
  if (!e) return LC_NO_MEMORY;
  int32_t bad = build(e, plan);
  if (!bad && !e->pool.start(plan->threads)) bad = LC_PARALLEL_FAILED;
  if (bad) {
    release(e);
    return bad;
  }
  pthread_mutex_init(&e->mutex, nullptr);
  *engine = e;
  return LC_OK;
}

int32_t lc_engine_run(const lc_batch* b) {
  if (b->size != sizeof(lc_batch)) return LC_BAD_SIZE;
  lc_engine* const e = b->engine;
  int64_t in, out;
  if (!e || b->images < 1 || !b->in || !b->out ||
      __builtin_mul_overflow(lc_map_size(e->values[e->input]), b->images, &in) || in != b->in_size ||
      __builtin_mul_overflow(lc_map_size(e->values[e->output]), b->images, &out) || out != b->out_size) return LC_BAD_ARGUMENT;
  pthread_mutex_lock(&e->mutex);
  const int32_t bad = cut(e, b->images);
  if (!bad) {
    FlushToZero flush;
    e->pool.begin();
    go(e, b);
    e->pool.end();
  }
  pthread_mutex_unlock(&e->mutex);
  return bad;
}

int32_t lc_engine_times(lc_engine* e, double* seconds, int64_t steps) {
  if (!e || !seconds || steps != e->steps_count) return LC_BAD_ARGUMENT;
  pthread_mutex_lock(&e->mutex);
  memcpy(seconds, e->seconds, (size_t)steps * sizeof(double));
  pthread_mutex_unlock(&e->mutex);
  return LC_OK;
}

void lc_engine_free(lc_engine* e) {
  if (!e) return;
  e->pool.stop();
  pthread_mutex_destroy(&e->mutex);
  release(e);
}
