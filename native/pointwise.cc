// Pointwise convolution between two batch norms: checks sizes, cuts the scratch memory, splits the passes over threads.
#include "split.h"

namespace {

const int64_t kMost = (int64_t)1 << 56;

int32_t check_sizes(const lc_pointwise* p) {
  if (const int32_t bad = check_head(p)) return bad;
  const int64_t in = p->in_channels, out = p->out_channels;
  const bool good = p->rows >= 0 && in >= 1 && out >= 1 && in < kMost / 4096 && out < kMost / 4096 &&
                    in <= kMost / out / 64 && p->rows <= kMost / (in + out) / 64 && p->threads >= 1 && p->threads <= 64 &&
                    p->measured >= LC_PLAIN && p->measured <= LC_MEASURED_GRADIENT && p->dtype >= LC_F32 && p->dtype <= LC_BF16 && p->before.act >= 0 && p->before.act <= 4 &&
                    p->after.act >= 0 && p->after.act <= 4;
  return good ? LC_OK : LC_BAD_ARGUMENT;
}

int64_t scratch_of(lc_pointwise* p, bool backward) {
  if (p->rows == 0) return 0;
  const lc_table& table = lc_table_of(p->isa);
  const int64_t from = table.pointwise_plan(*p, 0, backward);
  return from + lc_norm_scratch(p->rows, p->in_channels) + lc_norm_scratch(p->rows, p->out_channels);
}

// Both norms get their factors, and the one whose sums come from the product gets the product's chunks.
int32_t prepare(lc_pointwise* p, bool backward) {
  if (const int32_t bad = check_sizes(p)) return bad;
  if (p->rows == 0) return LC_OK;
  if (p->scratch_size < scratch_of(p, backward)) return LC_BAD_ARGUMENT;
  const lc_table& table = lc_table_of(p->isa);
  char* at = (char*)table.pointwise_plan(*p, (int64_t)p->scratch, backward);
  *p->plan.busy = 0;
  lc_norm* norms[] = {&p->before, &p->after};
  const int64_t channels[] = {p->in_channels, p->out_channels};
  for (int i = 0; i < 2; ++i) {
    lc_norm* n = norms[i];
    n->size = sizeof *n, n->isa = p->isa, n->dtype = p->dtype, n->rows = p->rows, n->channels = channels[i];
    n->scratch = at, n->parallel_for = p->parallel_for;
    n->x = i ? p->y : p->x, n->dy = i ? p->dy : p->dx, n->y = nullptr, n->dx = p->dx;
    if (const int32_t bad = lc_norm_prepare(n)) return bad;
    at += lc_norm_scratch(p->rows, channels[i]);
  }
  if (p->normed) table.norm_factors(p->before, 0, p->in_channels);
  return LC_OK;
}

void by_chunks(const lc_pointwise* p, lc_norm* n) {
  n->plan.width = n->channels, n->plan.rows = p->rows;
  n->plan.chunks = p->plan.chunks, n->plan.per_chunk = p->plan.held, n->plan.sums = p->plan.sums;
}

}  // namespace

int64_t lc_pointwise_scratch(const lc_pointwise* p, int32_t backward) {
  if (const int32_t bad = check_sizes(p)) return -bad;
  lc_pointwise copy = *p;
  return scratch_of(&copy, backward);
}

int32_t lc_pointwise_forward(lc_pointwise* p) {
  if (const int32_t bad = prepare(p, false)) return bad;
  if (p->rows == 0) return LC_OK;
  const lc_table& table = lc_table_of(p->isa);
  if (const int32_t bad = split(p, table.pointwise_pack, table.pointwise_panels(*p, 0), 2)) return bad;
  if (const int32_t bad = split(p, table.pointwise_forward, p->plan.chunks, 1)) return bad;
  if (!p->measured) return LC_OK;
  by_chunks(p, &p->after);
  table.norm_merge(p->after, 0, p->out_channels);
  table.norm_settle(p->after, 0, p->out_channels);
  return LC_OK;
}

int32_t lc_pointwise_backward(lc_pointwise* p) {
  if (const int32_t bad = prepare(p, true)) return bad;
  if (p->rows == 0) return LC_OK;
  const lc_table& table = lc_table_of(p->isa);
  if (p->measured == LC_MEASURED)
    if (const int32_t bad = lc_norm_slopes(&p->after)) return bad;
  if (p->measured == LC_MEASURED_GRADIENT) {
    table.norm_factors(p->after, 0, p->out_channels);
    table.norm_regain(p->after, 0, p->out_channels);
  }
  if (const int32_t bad = split(p, table.pointwise_pack_flipped, table.pointwise_panels(*p, 1), 2)) return bad;
  if (const int32_t bad = split(p, table.pointwise_backward, p->plan.kept ? p->plan.chunks : p->plan.groups, 1)) return bad;
  if (const int32_t bad = split(p, table.pointwise_sum, table.pointwise_tiles(*p), 2)) return bad;
  if (!p->normed) return LC_OK;
  by_chunks(p, &p->before);
  table.norm_add(p->before, 0, p->in_channels);
  table.norm_slopes(p->before, 0, p->in_channels);
  if (p->raw) return LC_OK;
  p->before.act = 0;  // dx is already what comes through the activation
  return lc_norm_gradient(&p->before);
}
