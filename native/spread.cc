// Rows or columns spread out between zeros: checks, and the work split over threads.
#include "split.h"

namespace {

enum { kGrain = 1 << 15 };  // elements that are worth a thread's waking

bool fits(const lc_spread* s) {
  const int64_t flags = s->by_rows ? s->rows : s->columns;
  if (s->rows < 0 || s->columns < 0 || (s->columns > 0 && s->rows > INT64_MAX / 16 / s->columns)) return false;
  int64_t kept = 0;
  for (int64_t i = 0; i < flags; ++i) {
    if (s->keep[i] > 1) return false;
    kept += s->keep[i];
  }
  return kept == s->kept;
}

}  // namespace

int32_t lc_spread_out(const lc_spread* s) {
  if (const int32_t bad = check_head(s)) return bad;
  if (!fits(s)) return LC_BAD_ARGUMENT;
  if (s->rows == 0 || s->columns == 0) return LC_OK;
  return split<kDenormals>(s, lc_table_of(s->isa).spread_rows, s->rows, s->columns >= kGrain ? 1 : kGrain / s->columns);
}
