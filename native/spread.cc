// Rows or columns spread out between zeros, or gathered: checks, and the work split over threads.
#include "split.h"

namespace {

enum { kGrain = 1 << 15 };  // elements that are worth a thread's waking

bool fits(const lc_spread* s) {
  const int64_t flags = s->by_rows ? s->rows : s->columns;
  if (s->rows < 0 || s->columns < 0 || (s->columns > 0 && s->rows > INT64_MAX / 16 / s->columns)) return false;
  const int64_t width = s->by_rows ? s->columns : s->kept, height = s->by_rows ? s->kept : s->rows;
  if (s->stride < width || (height > 0 && s->stride > INT64_MAX / 16 / height)) return false;
  int64_t kept = 0;
  for (int64_t i = 0; i < flags; ++i) {
    if (s->keep[i] > 1) return false;
    kept += s->keep[i];
  }
  return kept == s->kept;
}

int32_t moved(const lc_spread* s, void (*lc_table::*rows)(const lc_spread&, int64_t, int64_t)) {
  if (const int32_t bad = check_head(s)) return bad;
  if (!fits(s)) return LC_BAD_ARGUMENT;
  if (s->rows == 0 || s->columns == 0) return LC_OK;
  return split<kDenormals>(s, lc_table_of(s->isa).*rows, s->rows, s->columns >= kGrain ? 1 : kGrain / s->columns);
}

}  // namespace

int32_t lc_spread_out(const lc_spread* s) { return moved(s, &lc_table::spread_rows); }

int32_t lc_gather_in(const lc_spread* s) { return moved(s, &lc_table::gather_rows); }
