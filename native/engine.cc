// The runtime: makes an engine of a plan, holds its memory, and goes through the steps of a batch.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "engine_pool.h"
#include "engine_steps.h"
#include "split.h"

struct lc_engine {
  lc_pool pool;
  pthread_mutex_t mutex;
  lc_runners runners;
  lc_prepared* steps;
  int64_t steps_count;
  lc_places places;
  int64_t images;  // that steps are cut for; 0: none
  lc_room room;    // of the largest step
  float* floats;   // arena, scratch memories, shared memory
  int64_t floats_size;
  float* weights;  // packed
  lc_layer** packing;
  double* seconds;
};

namespace {

enum {
  kPages = 1 << 21,
  kApart = 32,       // floats, so that threads write to cache lines of their own
  kMaps = 2 << 20,  // bytes of maps for each thread
};

float* allocate(int64_t floats) {
  void* p = nullptr;
  const size_t align = floats * 4 >= 2 * kPages ? (size_t)kPages : 128;
  if (floats > INT64_MAX / 8 || posix_memalign(&p, align, (size_t)(floats + kApart) * 4)) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (align == (size_t)kPages) madvise(p, (size_t)(floats * 4) / kPages * kPages, MADV_HUGEPAGE);
#endif
  return (float*)p;
}

template <typename F>
void each_layer(lc_engine* e, F f) {
  for (int64_t i = 0; i < e->steps_count; ++i)
    for (int64_t j = 0; j < e->steps[i].parts; ++j) f(e->steps[i].layers[j]);
}

void pack_layer(void* context, int64_t task, int64_t) {
  lc_engine* const e = (lc_engine*)context;
  lc_layer& l = *e->packing[task];
  e->runners.of(l).pack(l);
}

// All weights in one piece of memory, large pages where there are such: panels are read from one end to the other. Packed
// by all threads, because most of the time goes into the pages of fresh memory.
int32_t pack(lc_engine* e) {
  int64_t size = 0;
  bool fits = true;
  const auto floats_of = [&](const lc_layer& l) { return (e->runners.of(l).packed(l) + kApart - 1) / kApart * kApart; };
  each_layer(e, [&](lc_layer& l) { fits = fits && !__builtin_add_overflow(size, floats_of(l), &size); });
  e->weights = fits ? allocate(size) : nullptr;
  if (!e->weights) return LC_NO_MEMORY;
  e->packing = (lc_layer**)malloc((size_t)e->steps_count * LC_PARTS * sizeof(lc_layer*));
  if (!e->packing) return LC_NO_MEMORY;
  float* at = e->weights;
  int64_t count = 0;
  each_layer(e, [&](lc_layer& l) {
    l.packed = at;
    at += floats_of(l);
    if (floats_of(l) > 0) e->packing[count++] = &l;
  });
  e->pool.begin();
  e->pool.run(pack_layer, e, count);
  e->pool.end();
  free(e->packing);
  each_layer(e, [&](lc_layer& l) {
    l.weight = l.shift = nullptr, l.bytes = nullptr, l.sums = nullptr, l.scales = nullptr;
  });
  return LC_OK;
}

int32_t build(lc_engine* e, lc_plan* plan) {
  const int32_t path = plan->path < 0 ? lc_path_of(plan->isa) : plan->path;
  if (!lc_path_supported(path)) return LC_BAD_ISA;
  e->runners = {&lc_table_of(plan->isa).engine, &lc_bytes_of(path)};
  e->steps = (lc_prepared*)calloc((size_t)plan->steps_count, sizeof(lc_prepared));
  e->places.values = (lc_value*)malloc((size_t)plan->values_count * sizeof(lc_value));
  e->seconds = (double*)calloc((size_t)plan->steps_count, sizeof(double));
  if (!e->steps || !e->places.values || !e->seconds) return LC_NO_MEMORY;
  e->steps_count = plan->steps_count;
  if (const int32_t bad = lc_check_plan(plan, e->steps)) return bad;
  memcpy(e->places.values, plan->values, (size_t)plan->values_count * sizeof(lc_value));
  e->places.count = plan->values_count, e->places.memory = (plan->memory + kApart - 1) / kApart * kApart;
  e->places.input = plan->input, e->places.output = plan->output;
  return lc_find_chains(e->steps, e->steps_count, &e->places, e->runners);
}

void release(lc_engine* e) {
  if (e->steps) lc_release_steps(e->steps, e->steps_count);
  free(e->steps), free(e->places.values), free(e->seconds), free(e->floats), free(e->weights), free(e);
}

// Cuts the steps for a batch and makes sure of the memory.
int32_t cut(lc_engine* e, int64_t images) {
  if (e->images == images) return LC_OK;
  e->images = 0;
  const int64_t threads = e->pool.threads();
  lc_room all = {};
  for (int64_t i = 0, steps; i < e->steps_count; i += steps) {
    lc_room room;
    if (!lc_cut_step(e->steps + i, e->runners, images, threads, &room, &steps)) return LC_BAD_ARGUMENT;
    for (int64_t k = 1; k < steps; ++k) e->steps[i + k].phases_count = 0;
    if (room.scratch > all.scratch) all.scratch = room.scratch;
    if (room.shared > all.shared) all.shared = room.shared;
  }
  all.scratch = (all.scratch / kApart + 1) * kApart;
  int64_t arena, scratch, size;
  if (all.scratch > kLcMost || __builtin_mul_overflow(e->places.memory, images, &arena) ||
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

// Images that go through all steps together: as many as leave their maps in a cache, a whole number for each thread.
int64_t together(const lc_engine* e) {
  const int64_t each = kMaps / (e->places.memory * 4 + 1);
  return e->pool.threads() * (each > 1 ? each : 1);
}

void go(lc_engine* e, int64_t images, float* in, float* out) {
  const lc_places& p = e->places;
  float* const scratch = e->floats + p.memory * images;
  float* const shared = scratch + e->room.scratch * e->pool.threads();
  double before = now();
  for (int64_t i = 0; i < e->steps_count; ++i) {
    lc_prepared& s = e->steps[i];
    const auto map = [&](int64_t number) {
      if (number == LC_SHARED) return shared;
      if (number == LC_SHARED_TOO) return shared + s.first;
      if (number < 0) return (float*)nullptr;
      return number == p.input ? in : number == p.output ? out : e->floats + p.values[number].offset * images;
    };
    for (int64_t k = 0; k < s.count; ++k) s.maps[k] = map(s.inputs[k]);
    for (int64_t j = 0; j < s.phases_count; ++j) {
      lc_phase& phase = s.phases[j];
      phase.work.x = map(phase.x), phase.work.second = map(phase.second), phase.work.y = map(phase.y);
      Turn turn = {&phase, scratch, e->room.scratch};
      e->pool.run(work, &turn, phase.tasks);
    }
    const int64_t last = i + (s.phases_count && s.phases[0].joined ? s.chain - 1 : 0);
    const double after = now();
    if (s.phases_count) e->seconds[last] += after - before;
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
  if (!bad && (bad = pack(e))) e->pool.stop();
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
      __builtin_mul_overflow(lc_map_size(e->places.values[e->places.input]), b->images, &in) || in != b->in_size ||
      __builtin_mul_overflow(lc_map_size(e->places.values[e->places.output]), b->images, &out) || out != b->out_size) return LC_BAD_ARGUMENT;
  pthread_mutex_lock(&e->mutex);
  FlushToZero flush;
  e->pool.begin();
  memset(e->seconds, 0, (size_t)e->steps_count * sizeof(double));
  int32_t bad = LC_OK;
  for (int64_t done = 0, most = together(e), now; !bad && done < b->images; done += now) {
    now = b->images - done < most ? b->images - done : most;
    bad = cut(e, now);
    if (!bad) go(e, now, b->in + in / b->images * done, b->out + out / b->images * done);
  }
  e->pool.end();
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
