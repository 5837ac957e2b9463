// Depthwise convolution between two batch norms: checks sizes, cuts the scratch memory, splits the passes over threads.
#include "split.h"

namespace {

int32_t check_sizes(const lc_channelwise* p) {
  if (const int32_t bad = check_head(p)) return bad;
  lc_depthwise conv = p->conv;
  conv.size = sizeof conv, conv.isa = p->isa;
  if (const int32_t bad = lc_depthwise_check(&conv)) return bad;
  const bool good = conv.multiplier == 1 && conv.channels > 0 && conv.channels < ((int64_t)1 << 40) && p->threads >= 1 &&
                    p->threads <= 64 && p->measured >= LC_PLAIN && p->measured <= LC_MEASURED_GRADIENT &&
                    p->before.act >= 0 && p->before.act <= 4 && p->after.act >= 0 && p->after.act <= 4;
  return good ? LC_OK : LC_BAD_ARGUMENT;
}

int64_t rows_of(const lc_channelwise* p, bool out) {
  return p->conv.images * (out ? p->conv.out_height * p->conv.out_width : p->conv.height * p->conv.width);
}

bool empty(const lc_channelwise* p) { return rows_of(p, false) == 0 || rows_of(p, true) == 0; }

int64_t scratch_of(lc_channelwise* p, bool backward) {
  if (empty(p)) return 0;
  const int64_t norms = lc_norm_scratch(rows_of(p, false), p->conv.channels) + lc_norm_scratch(rows_of(p, true), p->conv.channels);
  return lc_table_of(p->isa).channelwise_plan(*p, 0, backward) + norms;
}

int32_t prepare(lc_channelwise* p, bool backward) {
  if (const int32_t bad = check_sizes(p)) return bad;
  if (empty(p)) return LC_OK;
  if (p->scratch_size < scratch_of(p, backward)) return LC_BAD_ARGUMENT;
  const lc_table& table = lc_table_of(p->isa);
  char* at = (char*)table.channelwise_plan(*p, (int64_t)p->scratch, backward);
  *p->plan.busy = 0;
  lc_norm* norms[] = {&p->before, &p->after};
  for (int i = 0; i < 2; ++i) {
    lc_norm* n = norms[i];
    n->size = sizeof *n, n->isa = p->isa, n->dtype = p->conv.bf16 ? LC_BF16 : LC_F32;
    n->rows = rows_of(p, i), n->channels = p->conv.channels, n->scratch = at, n->parallel_for = p->parallel_for;
    n->x = i ? p->conv.y : p->conv.x, n->dy = i ? p->dy : p->dx, n->y = nullptr, n->dx = p->dx;
    if (const int32_t bad = lc_norm_prepare(n)) return bad;
    at += lc_norm_scratch(n->rows, n->channels);
  }
  if (p->normed) table.norm_factors(p->before, 0, p->conv.channels);
  table.channelwise_pack(*p, backward);
  return LC_OK;
}

// One chunk stands for all of them, which have been added up.
void as_one(const lc_channelwise* p, lc_norm* n) {
  n->plan.width = n->channels, n->plan.rows = n->rows;
  n->plan.chunks = 1, n->plan.per_chunk = n->rows, n->plan.sums = p->plan.sums;
}

}  // namespace

int64_t lc_channelwise_scratch(const lc_channelwise* p, int32_t backward) {
  if (const int32_t bad = check_sizes(p)) return -bad;
  lc_channelwise copy = *p;
  return scratch_of(&copy, backward);
}

int32_t lc_channelwise_forward(lc_channelwise* p) {
  if (const int32_t bad = prepare(p, false)) return bad;
  if (empty(p)) return LC_OK;
  const lc_table& table = lc_table_of(p->isa);
  if (const int32_t bad = split(p, table.channelwise_forward, p->plan.chunks, 1)) return bad;
  if (!p->measured) return LC_OK;
  table.channelwise_merge(*p);
  as_one(p, &p->after);
  table.norm_settle(p->after, 0, p->conv.channels);
  return LC_OK;
}

int32_t lc_channelwise_backward(lc_channelwise* p) {
  if (const int32_t bad = prepare(p, true)) return bad;
  if (empty(p)) return LC_OK;
  const lc_table& table = lc_table_of(p->isa);
  if (p->measured == LC_MEASURED)
    if (const int32_t bad = lc_norm_slopes(&p->after)) return bad;
  if (p->measured == LC_MEASURED_GRADIENT) {
    table.norm_factors(p->after, 0, p->conv.channels);
    table.norm_regain(p->after, 0, p->conv.channels);
  }
  if (const int32_t bad = split(p, table.channelwise_backward, p->plan.groups, 1)) return bad;
  table.channelwise_sum(*p);
  if (!p->normed) return LC_OK;
  as_one(p, &p->before);
  p->before.plan.chunks = p->plan.chunks;
  table.norm_add(p->before, 0, p->conv.channels);
  table.norm_slopes(p->before, 0, p->conv.channels);
  if (p->raw) return LC_OK;
  p->before.act = 0;  // dx is already what comes through the activation
  return lc_norm_gradient(&p->before);
}
