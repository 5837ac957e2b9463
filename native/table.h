// What every instruction set provides: ranges of work, so that the threads are the dispatcher's matter.
#pragma once
#include "leanconv.h"

struct lc_table {
  void (*mask_blocks)(const lc_mask& mask, int64_t begin, int64_t end);  // blocks of 8 elements over all rows
  void (*mask_revive)(const lc_mask& mask, int64_t begin, int64_t end);  // rows
  void (*exact_rows)(const lc_mask& mask, int64_t begin, int64_t end);   // rows
};
