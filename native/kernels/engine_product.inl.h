// Products of the runtime: rows of pixels times packed weights, with bias, second input and activation in the epilogue.
//
// Weights lie in panels of kPanel output channels of one group, [tap][in channel][kPanel]; a last panel of at most kFloats
// channels is half as wide. A tile of at most kTall rows stays in registers over about kTerms terms of the sum, which
// runs in the order of memory: how rows and panels are cut, by threads or by the batch, never changes a bit of a result.

enum {
  kTerms = 256,              // of a sum before it is put aside: a long one would round more than torch's
  kManyWeights = 192 << 10,  // bytes beyond which weights are read once for many rows, else rows once for all weights
  kHeldMany = 224 << 10,         // bytes of rows that a thread holds for one reading of many weights
  kHeldFew = 48 << 10,       // and of few
};

template <int act>
static void finish_of(float* y, int64_t rows, int64_t row, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r, y += row)
    columns<1>(channels, [&](int64_t c, int64_t part) { write(y + c, finished<act>(some(y + c, part)), part); });
}

// What is left of an activation after `bounded`: nothing where it is none, ReLU or ReLU6.
static void finish(int32_t act, float* y, int64_t rows, int64_t row, int64_t channels) {
  switch (act) {
    case kHardswish: return finish_of<kHardswish>(y, rows, row, channels);
    case kSilu: return finish_of<kSilu>(y, rows, row, channels);
    case kSigmoid: return finish_of<kSigmoid>(y, rows, row, channels);
    case kHardsigmoid: return finish_of<kHardsigmoid>(y, rows, row, channels);
    default: return;
  }
}

// Maps of numbers, and n numbers further on in one that a layer makes; null stays null.
LC_INLINE const float* numbers(const float* x) { return x; }
LC_INLINE float* moved(const lc_layer&, const float* y, int64_t n) { return y ? (float*)y + n : nullptr; }
LC_INLINE int64_t copy_threes(const lc_layer&, const float*, float*, int64_t) { return 0; }
LC_INLINE int64_t floats_of(int64_t numbers) { return ceil_div(numbers, 16) * 16; }

// --- weights --------------------------------------------------------------------------------------------------------

LC_INLINE int64_t padded(int64_t channels) { return ceil_div(channels, kFloats) * kFloats; }
LC_INLINE int64_t group_panels(const lc_layer& l) { return panels_of(l.out_channels / l.groups); }
static int64_t engine_panels(const lc_layer& l) { return l.groups * group_panels(l); }
LC_INLINE int64_t sum_length(const lc_layer& l) { return l.kernel_height * l.kernel_width * (l.channels / l.groups); }

// Floats of the packed weights and of the packed bias, which follows them.
static int64_t conv_packed(const lc_layer& l) { return l.groups * padded(l.out_channels / l.groups) * (sum_length(l) + 1); }

static void conv_pack(lc_layer& l) {
  const int64_t out = l.out_channels / l.groups, length = sum_length(l), wide = padded(out);
  l.bias = l.packed + l.groups * wide * length;
  for (int64_t g = 0; g < l.groups; ++g) {
    for (int64_t n = 0; n < wide; n += kPanel) {
      const int64_t width = least(kPanel, wide - n), there = least(width, out - n);
      const float* from = l.weight + (g * out + n) * length;
      float* to = l.packed + (g * wide + n) * length;
      for (int64_t k = 0; k < length; ++k, to += width) {
        for (int64_t i = 0; i < there; ++i) to[i] = from[i * length + k];
        for (int64_t i = there; i < width; ++i) to[i] = 0.0f;
      }
    }
    for (int64_t n = 0; n < wide; ++n) l.bias[g * wide + n] = n < out ? l.shift[g * out + n] : 0.0f;
  }
}

// --- tiles ----------------------------------------------------------------------------------------------------------

// One panel and where its results go; the same for all tiles of rows.
struct Panel {
  const float *weights, *bias;
  const int64_t* offsets;
  int64_t taps, length;
  int64_t step;  // floats from a row of x to the next
  int64_t y_row;
  int64_t columns;
  float low, high;
};

// `before` is read from the second turn on, which the compiler does not see.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
// Not inlined: among all the other tiles its pointers would not stay in registers. With every term a cache line is fetched,
// from `ahead` on, `stride` further each time; a twin that fetches nothing made whole networks slower.
template <int R, int V>
static __attribute__((noinline)) void tile_product(const Panel& p, const float* x, float* y, const float* second,
                                                   const char* ahead, int64_t stride) {
  vf sum[R][V];
  float before[R][V][kFloats], none[V * kFloats];
  const float *b = p.weights, *start = p.bias;
  const int64_t step = p.step, together = p.length < kTerms ? kTerms / p.length : 1;
  for (int64_t first = 0, from = 0;;) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const vf s = load(start + v * kFloats);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) sum[i][v] = s;
    }
    const int64_t end = least(p.taps, first + together), some = least(kTerms, p.length - from);
    for (int64_t tap = first; tap < end; ++tap) {
      const float *x0 = x + p.offsets[tap] + from, *x1 = x0 + 5 * step, *x2 = x1 + 5 * step;
      for (int64_t k = some; k > 0; --k, b += V * kFloats) {
        __builtin_prefetch(ahead, 0, 2);
        ahead += stride;
        vf w[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) w[v] = load(b + v * kFloats);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
          const float* row = i < 5 ? x0 : i < 10 ? x1 : x2;
          const vf a = held(splat_f(row[i % 5 * step]));
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) sum[i][v] += a * w[v];
        }
        ++x0, ++x1, ++x2;
      }
    }
    const bool all = from + some == p.length, again = start == none;
    if (again) {
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[i][v] += load(before[i][v]);
    }
    if (all && end == p.taps) break;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) store(before[i][v], sum[i][v]);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(none + v * kFloats, vf{});
    start = none;
    first = all ? end : first;
    from = all ? 0 : from + some;
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const int64_t part = p.columns - v * kFloats;
    if (part >= kFloats) {
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const int64_t at = i * p.y_row + v * kFloats;
        store(y + at, bounded(second ? sum[i][v] + load(second + at) : sum[i][v], p.low, p.high));
      }
    } else if (part > 0) {
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const int64_t at = i * p.y_row + v * kFloats;
        const vf s = second ? sum[i][v] + load_part(second + at, part) : sum[i][v];
        store_part(y + at, bounded(s, p.low, p.high), part);
      }
    }
  }
}

#pragma GCC diagnostic pop

template <int V>
LC_INLINE void tile_of_rows(int rows, const Panel& p, const float* x, float* y, const float* second, const char* ahead,
                            int64_t stride) {
  switch (rows) {
#define LC_ROWS(r) \
  case r: return tile_product<r, V>(p, x, y, second, ahead, stride);
    LC_ROWS(1) LC_ROWS(2) LC_ROWS(3) LC_ROWS(4) LC_ROWS(5) LC_ROWS(6)
#if LC_BYTES == 64 || (defined(__aarch64__) && !defined(LC_BASELINE))
    LC_ROWS(7) LC_ROWS(8) LC_ROWS(9) LC_ROWS(10) LC_ROWS(11) LC_ROWS(12) LC_ROWS(13) LC_ROWS(14)
#endif
#undef LC_ROWS
    default: return;
  }
}

// Output channels of panels [begin, end) of all rows.
static void multiply_rows(const lc_layer& l, const Pixels& r, const int64_t* offsets, int64_t begin, int64_t end) {
  const int64_t out = l.out_channels / l.groups, in = l.channels / l.groups;
  const int64_t length = sum_length(l), wide = padded(out);
  Panel p = {nullptr, nullptr, offsets, l.taps, l.length, r.step, r.y_row, 0, l.low, l.high};
  const auto tile = [&](int64_t group, int64_t n, int64_t line, int64_t from, int count, Fetch& fetch) {
    p.weights = l.packed + (group * wide + n) * length;
    p.bias = l.bias + group * wide + n;
    p.columns = least(kPanel, out - n);
    const float* x = r.x + line * r.x_line + from * r.step + group * in;
    const int64_t at = line * r.y_line + from * r.y_row + group * out + n;
    int64_t stride;
    const char* ahead = fetch.take(length, &stride);
    if (p.columns > kFloats)
      tile_of_rows<2>(count, p, x, r.y + at, r.second ? r.second + at : nullptr, ahead, stride);
    else
      tile_of_rows<1>(count, p, x, r.y + at, r.second ? r.second + at : nullptr, ahead, stride);
    if (l.act > kRelu6) finish(l.act, r.y + at, count, r.y_row, p.columns);
  };
  each_tile(r, {(const char*)l.packed, length * 4, l.groups, wide, out}, begin, end,
            length * (end - begin) * kPanel * 4 <= kManyWeights, tile);
}
