// Finds steps that run as one, row by row: maps between them are never in memory as a whole.
#include <stdlib.h>

#include "engine_steps.h"

namespace {

enum {
  kCacheFloats = 128 << 10,  // rings and weights of a chain: half of a second-level cache of a megabyte
  kLargeFloats = 96 << 10,   // of a map that is worth it: smaller ones stay in the cache anyway
};

bool joins(const lc_prepared& s) {
  return s.op == LC_BLOCK || s.op == LC_DEPTHWISE || (s.op == LC_CONV && s.layers[0].groups == 1);
}

bool overlap(const lc_places& p, int64_t i, int64_t j) {
  const bool caller = i == p.input || i == p.output || j == p.input || j == p.output;
  const lc_value &a = p.values[i], &b = p.values[j];
  return !caller && a.offset < b.offset + lc_map_floats(b) && b.offset < a.offset + lc_map_floats(a);
}

// The first step's input is read until the last row of the last step's result is written.
bool part_from(lc_places* p, int64_t x, int64_t y) {
  if (!overlap(*p, x, y)) return true;
  const int64_t size = (lc_map_floats(p->values[y]) + 31) / 32 * 32;
  if (p->memory > kLcMost - size) return false;
  p->values[y].offset = p->memory;
  p->memory += size;
  return true;
}

}  // namespace

int32_t lc_find_chains(lc_prepared* steps, int64_t count, lc_places* places, const lc_runners& runners) {
  int64_t* const readers = (int64_t*)calloc((size_t)places->count, sizeof(int64_t));
  if (!readers) return LC_NO_MEMORY;
  readers[places->output] = 1;
  for (int64_t i = 0; i < count; ++i) {
    const lc_prepared& s = steps[i];
    if (s.op != LC_CONCAT) ++readers[s.x];
    if (s.second >= 0) ++readers[s.second];
    for (int64_t k = 0; k < s.count; ++k) ++readers[s.inputs[k]];
  }
  for (int64_t i = 0; i < count; i += steps[i].chain) {
    lc_work w = {};
    const lc_runs& runs = runners.of(steps[i].layers[0]);
    w.layer = steps[i].layers, w.images = 1;
    int64_t length = 0, weights = 0;
    while (i + length < count) {
      const lc_prepared& s = steps[i + length];
      if (!joins(s) || w.stages_count + s.parts > LC_STAGES) break;
      if (length) {
        const lc_layer& x = s.layers[0];
        const lc_prepared& before = steps[i + length - 1];
        if (s.x != before.y || readers[s.x] != 1 || before.second >= 0 || x.height * x.width * x.channels < kLargeFloats) break;
        if (x.quantized) break;  // maps of bytes are small enough: row by row was slower
      }
      for (int64_t j = 0; j < s.parts; ++j) {
        w.stages[w.stages_count++] = s.layers + j;
        weights += runs.packed(s.layers[j]);
      }
      if (length && (w.stages_count < 2 || weights + runs.scratch(w) > kCacheFloats)) break;
      ++length;
    }
    steps[i].chain = length > 1 && part_from(places, steps[i].x, steps[i + length - 1].y) ? length : 1;
  }
  free(readers);
  return LC_OK;
}
