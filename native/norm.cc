// Batch normalisation: how its rows, chunks and scratch are cut. All of it depends on the shape alone.
#include "split.h"

namespace {

enum {
  kWide = 64,               // columns that a row should have: below, several pixels share one,
  kEven = 16,               // and of which they should be a multiple, the longest vector,
  kFew = 64,                // as long as so many rows are left
  kPerChunk = 1 << 15,      // elements in a chunk of the reductions
  kChunks = 64,             // and how many there are at most
  kGrain = 1 << 14,         // elements that are worth a thread's waking
  kAlign = 64,
};

int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

struct Cut {
  int64_t width, rows, chunks, per_chunk, sums, vector;
};

bool cut(int64_t rows, int64_t channels, Cut* c) {
  if (rows < 0 || channels < 1 || rows > INT64_MAX / 16 / channels || channels > INT64_MAX / (4096 * kChunks)) return false;
  int64_t pixels = 1;
  while (rows > 0 && rows % (2 * pixels) == 0 &&
         (pixels * channels < kWide || (pixels * channels % kEven != 0 && rows >= 2 * pixels * kFew)))
    pixels *= 2;
  c->width = pixels * channels;
  c->rows = rows / pixels;
  int64_t chunks = rows * channels / kPerChunk;
  chunks = chunks < 1 ? 1 : chunks > kChunks ? (int64_t)kChunks : chunks;
  c->per_chunk = (c->rows + chunks - 1) / chunks;
  if (c->per_chunk < 1) c->per_chunk = 1;
  c->chunks = (c->rows + c->per_chunk - 1) / c->per_chunk;
  c->sums = padded(2 * c->chunks * c->width * (int64_t)sizeof(double));
  c->vector = padded(c->width * (int64_t)sizeof(float));
  return true;
}

int64_t grain(const lc_norm* n) { return n->plan.width >= kGrain ? 1 : kGrain / n->plan.width; }

}  // namespace

int32_t lc_norm_prepare(lc_norm* n) {
  if (const int32_t bad = check_head(n)) return bad;
  Cut c;
  if (!cut(n->rows, n->channels, &c)) return LC_BAD_ARGUMENT;
  if (n->dtype < LC_F32 || n->dtype > LC_BF16 || n->act < 0 || n->act > 4) return LC_BAD_ARGUMENT;
  char* at = (char*)n->scratch + c.sums;
  n->plan = {c.width, c.rows, c.chunks, c.per_chunk, (double*)n->scratch, nullptr, nullptr, nullptr, nullptr, nullptr};
  float** vectors[] = {&n->plan.shift, &n->plan.a, &n->plan.b, &n->plan.k, &n->plan.c};
  for (float** v : vectors) *v = (float*)at, at += c.vector;
  return LC_OK;
}

int64_t lc_norm_scratch(int64_t rows, int64_t channels) {
  Cut c;
  return cut(rows, channels, &c) ? c.sums + 5 * c.vector : -1;
}

int32_t lc_norm_forward(lc_norm* n) {
  if (const int32_t bad = lc_norm_prepare(n)) return bad;
  if (n->rows == 0) return LC_OK;
  const lc_table& table = lc_table_of(n->isa);
  if (!n->given) {
    if (const int32_t bad = split(n, table.norm_stats, n->plan.chunks, 1)) return bad;
    table.norm_merge(*n, 0, n->plan.width);
    table.norm_settle(*n, 0, n->channels);
  }
  if (n->y == nullptr) return LC_OK;
  table.norm_factors(*n, 0, n->channels);
  return split(n, table.norm_apply, n->plan.rows, grain(n));
}

int32_t lc_norm_slopes(lc_norm* n) {
  const lc_table& table = lc_table_of(n->isa);
  table.norm_factors(*n, 0, n->channels);
  if (const int32_t bad = split(n, table.norm_sums, n->plan.chunks, 1)) return bad;
  table.norm_add(*n, 0, n->plan.width);
  table.norm_slopes(*n, 0, n->channels);
  return LC_OK;
}

int32_t lc_norm_gradient(lc_norm* n) { return split(n, lc_table_of(n->isa).norm_gradient, n->plan.rows, grain(n)); }

int32_t lc_norm_backward(lc_norm* n) {
  if (const int32_t bad = lc_norm_prepare(n)) return bad;
  if (n->rows == 0) return LC_OK;
  if (const int32_t bad = lc_norm_slopes(n)) return bad;
  return lc_norm_gradient(n);
}
