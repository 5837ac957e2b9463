// A plan's steps once they are checked (engine_check.cc) and cut into tasks (engine_cut.cc).
#pragma once
#include "engine.h"

enum { LC_PHASES = 3, LC_MOST_STEPS = 16384, LC_MOST_THREADS = 64 };
const int64_t kLcMost = (int64_t)1 << 40;  // floats of anything

enum { LC_SHARED = -2, LC_SHARED_TOO = -3 };  // in place of a value: maps inside a step, one behind the other

// Tasks that may run at once; what reads their result is the next phase.
struct lc_phase {
  lc_work work;
  lc_task task;
  int64_t tasks;
  int64_t x, second, y;  // numbers of values, -1: none, or one of the above
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
  lc_phase phases[LC_PHASES];
  int64_t phases_count;
  int64_t first;  // where LC_SHARED_TOO begins in the shared memory
};

struct lc_table;

inline int64_t lc_map_size(const lc_value& v) { return v.height * v.width * v.channels; }

// Checks everything that a plan says, and fills in the steps: shapes, places of tensors, geometry. Nothing is allocated but
// what lc_release_steps frees, which is called whatever the result is. `steps` is zeroed, plan->steps_count long.
int32_t lc_check_plan(lc_plan* plan, lc_prepared* steps);
void lc_release_steps(lc_prepared* steps, int64_t count);

// Floats that a batch needs: of each thread's scratch memory and of what threads share. False: too many.
struct lc_room {
  int64_t scratch, shared;
};
bool lc_cut_step(lc_prepared& step, const lc_table& table, int64_t images, int64_t threads, lc_room* room);
