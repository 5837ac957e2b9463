// A plan's steps once they are checked (engine_check.cc) and cut into tasks (engine_cut.cc).
#pragma once
#include "engine.h"
#include "table.h"

enum { LC_PHASES = 3, LC_MOST_STEPS = 16384, LC_MOST_THREADS = 64 };
const int64_t kLcMost = (int64_t)1 << 40;  // floats of anything

enum { LC_SHARED = -2, LC_SHARED_TOO = -3 };  // in place of a value: maps inside a step, one behind the other

// Tasks that may run at once; what reads their result is the next phase.
struct lc_phase {
  lc_work work;
  lc_task task;
  int64_t tasks;
  int64_t x, second, y;  // numbers of values, -1: none, or one of the above
  int32_t joined;        // the whole chain
};

struct lc_prepared {
  int32_t op;
  int64_t parts;
  lc_layer layers[LC_PARTS];
  lc_layer spread;        // add, multiply: the shape of the second operand
  int64_t x, second, y;   // numbers of values, -1: none
  int64_t count;          // concat: of inputs
  int64_t *inputs, *channels;
  const float** maps;
  lc_operand* operands;   // concat of bytes
  lc_phase phases[LC_PHASES];
  int64_t phases_count;
  int64_t first;  // where LC_SHARED_TOO begins in the shared memory
  int64_t chain;  // steps that may run as one, row by row, from this one on; 1: this one alone
};

inline int64_t lc_map_size(const lc_value& v) { return v.height * v.width * v.channels; }
inline bool lc_is_bytes(const lc_value& v) { return v.scale != 0; }
inline int64_t lc_map_floats(const lc_value& v) { return lc_is_bytes(v) ? (lc_map_size(v) + 3) / 4 : lc_map_size(v); }

// What runs steps over floats, and over bytes.
struct lc_runners {
  const lc_runs *floats, *bytes;
  const lc_runs& of(const lc_layer& l) const { return l.quantized || l.y_quantized ? *bytes : *floats; }
};
const lc_runs& lc_bytes_of(int32_t path);  // of one that lc_path_supported

// Checks everything that a plan says, and fills in the steps: shapes, places of tensors, geometry. Nothing is allocated but
// what lc_release_steps frees, which is called whatever the result is. `steps` is zeroed, plan->steps_count long.
int32_t lc_check_plan(lc_plan* plan, lc_prepared* steps);
void lc_release_steps(lc_prepared* steps, int64_t count);

// Floats that a batch needs: of each thread's scratch memory and of what threads share. False: too many.
struct lc_room {
  int64_t scratch, shared;
};
// Cuts a step, or its whole chain; how many steps that were is in *steps.
bool lc_cut_step(lc_prepared* step, const lc_runners& runners, int64_t images, int64_t threads, lc_room* room, int64_t* steps);

// Values and the arena of one image, as an engine keeps them.
struct lc_places {
  lc_value* values;
  int64_t count, input, output, memory;
};

// Which steps may run as one: each is read by the next one alone, and what is held at a time fits into a cache. Where the
// plan puts the last one's result upon the first one's input, it gets a place of its own behind the arena.
int32_t lc_find_chains(lc_prepared* steps, int64_t count, lc_places* places, const lc_runners& runners);
