// Dropout whose mask is made while it is used: checks, and the work split over threads.
#include "split.h"

namespace {

enum { kMostChannels = 1 << 12, kGrain = 1 << 16 };

bool fits(const lc_dropout* d) {
  if (d->samples < 0 || d->elements < 0 || (d->elements > 0 && d->samples > INT64_MAX / 16 / d->elements)) return false;
  if (d->limit < 0 || d->limit > (d->exact ? d->elements : 65535)) return false;
  if (d->channels < 0 || d->channels > kMostChannels || (d->channels > 1 && d->elements % d->channels)) return false;
  if (d->exact && d->elements > LC_DROPOUT_ROW && !d->cuts) return false;
  return d->dtype == LC_F32 || d->dtype == LC_BF16;
}

}  // namespace

int32_t lc_dropout_apply(const lc_dropout* d) {
  if (const int32_t bad = check_head(d)) return bad;
  if (!fits(d)) return LC_BAD_ARGUMENT;
  if (d->samples == 0 || d->elements == 0) return LC_OK;
  const lc_table& table = lc_table_of(d->isa);
  if (d->exact && d->elements > LC_DROPOUT_ROW)
    if (const int32_t bad = split<kDenormals>(d, table.dropout_cuts, d->batch ? 1 : d->samples, 1)) return bad;
  const int64_t tasks = table.dropout_tasks(*d), elements = d->samples * d->elements;
  const int64_t grain = elements <= kGrain ? tasks : (tasks + elements / kGrain - 1) / (elements / kGrain);
  return split<kDenormals>(d, table.dropout_tiles, tasks, grain);
}
