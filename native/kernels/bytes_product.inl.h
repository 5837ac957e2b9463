// Products of the runtime over bytes: rows of pixels times packed weights in int32, which is exact; then factors, second
// input and activation.
//
// Weights lie in panels of kPanel output channels of one group, [tap][four bytes of the sum][kPanel][4], stretches filled up
// with zeros; a last panel of at most kFloats channels is half as wide. Sums start at what makes up for the zero point.

#include "bytes_vectors.inl.h"

#if defined(LC_PATH_vnni) || defined(LC_PATH_amx)
enum { kTall = 14 };
#elif LC_BYTES == 64
enum { kTall = 10 };
#elif defined(LC_PATH_avxvnni)
enum { kTall = 6 };
#else
enum { kTall = 4 };
#endif
enum {
  kPanel = 2 * kFloats,
  kLine = 64,                // bytes
  kManyWeights = 192 << 10,  // bytes beyond which weights are read once for many rows, else rows once for all weights
  kHeldMany = 224 << 10,     // bytes of rows that a thread holds for one reading of many weights
  kHeldFew = 24 << 10,       // and of few
  kBehind = 16,              // floats behind a copy, which are read and count for nothing
};

LC_INLINE const uint8_t* numbers(const float* x) { return (const uint8_t*)x; }
LC_INLINE float* moved(const lc_layer& l, const float* y, int64_t n) {
  return y ? (float*)((char*)y + (l.y_quantized ? n : n * 4)) : nullptr;
}
LC_INLINE int64_t floats_of(int64_t numbers) { return ceil_div(numbers, 64) * 16 + kBehind; }

// --- weights --------------------------------------------------------------------------------------------------------

LC_INLINE int64_t panels_of(int64_t channels) { return ceil_div(channels, kPanel); }
LC_INLINE int64_t padded(int64_t channels) { return ceil_div(channels, kFloats) * kFloats; }
LC_INLINE int64_t group_panels(const lc_layer& l) { return panels_of(l.out_channels / l.groups); }
static int64_t engine_panels(const lc_layer& l) { return l.groups * group_panels(l); }
LC_INLINE int64_t stretch(const lc_layer& l) { return ceil_div(l.length, 4) * 4; }  // bytes of one tap's weights of a channel
LC_INLINE int64_t sum_length(const lc_layer& l) { return l.taps * stretch(l); }

// Floats of the packed weights, of the starts and of the factors, one behind the other.
static int64_t conv_packed(const lc_layer& l) { return l.groups * padded(l.out_channels / l.groups) * (sum_length(l) / 4 + 2); }

// The weight of output channel `channel` that byte k of tap t is multiplied by.
static int8_t weight_at(const lc_layer& l, int64_t channel, int64_t t, int64_t k) {
  const int64_t in = l.channels / l.groups;
  const bool whole = l.taps != l.kernel_height * l.kernel_width || l.length != in;
  const int64_t at = whole ? k % l.pixel : k;
  if (at >= in || k >= l.length) return 0;
  const int64_t tap = whole ? t * l.kernel_width + k / l.pixel : t;
  return l.bytes[(channel * l.kernel_height * l.kernel_width + tap) * in + at];
}

static void conv_pack(lc_layer& l) {
  const int64_t out = l.out_channels / l.groups, each = stretch(l), length = sum_length(l), wide = padded(out);
  int8_t* const packed = (int8_t*)l.packed;
  l.starts = (int32_t*)(packed + l.groups * wide * length);
  l.factors = (float*)(l.starts + l.groups * wide);
  for (int64_t g = 0; g < l.groups; ++g)
    for (int64_t n = 0; n < wide; ++n) {
      const int64_t panel = n / kPanel, width = least(kPanel, wide - panel * kPanel), channel = g * out + n;
      int8_t* to = packed + (g * wide + panel * kPanel) * length + n % kPanel * 4;
      int64_t sum = 0;
      for (int64_t t = 0; t < l.taps; ++t)
        for (int64_t k = 0; k < each; ++k) {
          const int8_t w = n < out ? weight_at(l, channel, t, k) : (int8_t)0;
          to[(t * each + k) / 4 * width * 4 + k % 4] = w;
          sum += w;
        }
      l.starts[g * wide + n] = n < out ? (int32_t)(l.sums[channel] - l.zero * sum) : 0;
      l.factors[g * wide + n] = n < out ? lc_factor_of(l, l.scales[channel]) : 0.0f;
    }
}

// --- sums -----------------------------------------------------------------------------------------------------------

// One panel and where its results go; the same for all tiles of rows.
struct Panel {
  const int8_t* weights;
  const int32_t* starts;
  const float* factors;
  const int64_t* offsets;
  int64_t taps, quads;  // of a stretch
  int64_t step;         // bytes from a row of x to the next
  int64_t y_row;
  int64_t columns;
};

template <int R, int V>
static void tile_sums(const Panel& p, const uint8_t* x, int32_t* sums, const char* ahead, int64_t stride) {
  vi sum[R][V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const vi s = load_ints(p.starts + v * kFloats);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) sum[i][v] = s;
  }
  const int8_t* b = p.weights;
  const int64_t step = p.step;
  for (int64_t tap = 0; tap < p.taps; ++tap) {
    const uint8_t *x0 = x + p.offsets[tap], *x1 = x0 + 5 * step, *x2 = x1 + 5 * step;
    for (int64_t k = p.quads; k > 0; --k, b += V * LC_BYTES) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += stride;
      Quads w[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) w[v] = weights_of(load_ints(b + v * LC_BYTES));
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const Quads a = inputs_of((i < 5 ? x0 : i < 10 ? x1 : x2) + i % 5 * step);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[i][v] = add_products(sum[i][v], a, w[v]);
      }
      x0 += 4, x1 += 4, x2 += 4;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store_ints(sums + i * kPanel + v * kFloats, sum[i][v]);
}

template <int V>
LC_INLINE void sums_of_rows(int rows, const Panel& p, const uint8_t* x, int32_t* sums, const char* ahead, int64_t stride) {
  switch (rows) {
#define LC_ROWS(r) \
  case r: return tile_sums<r, V>(p, x, sums, ahead, stride);
    LC_ROWS(1) LC_ROWS(2) LC_ROWS(3) LC_ROWS(4)
#if LC_BYTES == 64 || defined(LC_PATH_avxvnni)
    LC_ROWS(5) LC_ROWS(6)
#endif
#if LC_BYTES == 64
    LC_ROWS(7) LC_ROWS(8) LC_ROWS(9) LC_ROWS(10)
#endif
#if defined(LC_PATH_vnni) || defined(LC_PATH_amx)
    LC_ROWS(11) LC_ROWS(12) LC_ROWS(13) LC_ROWS(14)
#endif
#undef LC_ROWS
    default: return;
  }
}

// --- from sums to results -------------------------------------------------------------------------------------------

template <bool Second>
static void finish_bytes(const lc_layer& l, const Panel& p, const int32_t* sums, int rows, uint8_t* y, const uint8_t* second) {
  const Bounds bounds = bounds_of(l);
  const vf a = splat_f(l.second_factor);
  for (int64_t c = 0; c < p.columns; c += kFloats) {
    const int64_t part = least(p.columns - c, kFloats);
    const vf m = load(p.factors + c);
    for (int i = 0; i < rows; ++i) {
      vf t = as_floats(load_ints(sums + i * kPanel + c)) * m;
      if (Second) t += as_floats(load_bytes(second + i * p.y_row + c, part) - l.second_zero) * a;
      store_bytes(y + i * p.y_row + c, rounded(t), bounds, part);
    }
  }
}

// The numbers themselves, `to` [rows][apart], before activations that are more than bounds.
static void finish_floats(const lc_layer& l, const Panel& p, const int32_t* sums, int rows, float* to, int64_t apart, const float* second) {
  const vf a = splat_f(l.second_factor);
  for (int64_t c = 0; c < p.columns; c += kFloats) {
    const int64_t part = least(p.columns - c, kFloats);
    const vf m = load(p.factors + c);
    for (int i = 0; i < rows; ++i) {
      const int64_t at = i * p.y_row + c;
      vf t = as_floats(load_ints(sums + i * kPanel + c)) * m;
      if (second && l.y_quantized) t += as_floats(load_bytes((const uint8_t*)second + at, part) - l.second_zero) * a;
      if (second && !l.y_quantized) t += load_part(second + at, part);
      store_part(to + i * apart + c, bounded(t, l.low, l.high), part);
    }
  }
  finish(l.act, to, rows, apart, p.columns);
}

static void finish_tile(const lc_layer& l, const Panel& p, const int32_t* sums, int rows, float* y, const float* second) {
  if (!l.real) {
    const uint8_t* const other = (const uint8_t*)second;
    return other ? finish_bytes<true>(l, p, sums, rows, (uint8_t*)y, other) : finish_bytes<false>(l, p, sums, rows, (uint8_t*)y, other);
  }
  if (!l.y_quantized) return finish_floats(l, p, sums, rows, y, p.y_row, second);
  float some[kTall * kPanel];
  finish_floats(l, p, sums, rows, some, kPanel, second);
  for (int i = 0; i < rows; ++i) quantize_row(l, some + i * kPanel, (uint8_t*)y + i * p.y_row, p.columns);
}

// --- rows -----------------------------------------------------------------------------------------------------------

// Rows of pixels: `lines` of `count`; in x and y a line and a pixel are so many numbers apart.
struct Pixels {
  const uint8_t* x;
  int64_t x_line, step;
  float* y;
  const float* second;
  int64_t y_line, y_row;
  int64_t lines, count;
};

// Weights [from, to) of a panel's successors, fetched from afar while tiles are multiplied.
struct Fetch {
  const char *at, *end;
  LC_INLINE_MEMBER const char* take(int64_t lines, int64_t* stride) {
    const bool some = at < end;
    const char* from = at;
    at += some ? lines * kLine : 0;
    *stride = some ? (int64_t)kLine : 0;
    return from;
  }
};

// Output channels of panels [begin, end) of all rows.
static void multiply_rows(const lc_layer& l, const Pixels& r, const int64_t* offsets, int64_t begin, int64_t end) {
  const int64_t out = l.out_channels / l.groups, in = l.channels / l.groups, per_group = group_panels(l);
  const int64_t length = sum_length(l), wide = padded(out);
  const int8_t* const packed = (const int8_t*)l.packed;
  Panel p = {nullptr, nullptr, nullptr, offsets, l.taps, stretch(l) / 4, r.step, r.y_row, 0};
  const auto tile = [&](int64_t group, int64_t n, int64_t line, int64_t from, int count, Fetch& fetch) {
    alignas(64) int32_t sums[kTall * kPanel];
    p.weights = packed + (group * wide + n) * length;
    p.starts = l.starts + group * wide + n, p.factors = l.factors + group * wide + n;
    p.columns = least(kPanel, out - n);
    const uint8_t* x = r.x + line * r.x_line + from * r.step + group * in;
    const int64_t at = line * r.y_line + from * r.y_row + group * out + n;
    int64_t stride;
    const char* ahead = fetch.take(length / 4, &stride);
    if (p.columns > kFloats)
      sums_of_rows<2>(count, p, x, sums, ahead, stride);
    else
      sums_of_rows<1>(count, p, x, sums, ahead, stride);
    finish_tile(l, p, sums, count, moved(l, r.y, at), moved(l, r.second, at));
  };
  const int64_t group = begin / per_group, first = begin % per_group * kPanel;
  if (length * (end - begin) * kPanel <= kManyWeights) {
    Fetch fetch = {(const char*)packed, (const char*)packed};
    for (int64_t line = 0; line < r.lines; ++line)
      each_height<kTall>(r.count, [&](int64_t from, int count) {
        for (int64_t left = end - begin, g = group, n = first; left > 0; --left) {
          tile(g, n, line, from, count, fetch);
          n += kPanel;
          if (n >= out) n = 0, ++g;
        }
      });
    return;
  }
  const char* last = (const char*)(packed + l.groups * wide * length);
  for (int64_t left = end - begin, g = group, n = first; left > 0; --left) {
    const char* next = (const char*)(packed + (g * wide + n + kPanel) * length);
    Fetch fetch = {next, next + length * kPanel};
    if (fetch.end > last) fetch.end = last;
    for (int64_t line = 0; line < r.lines; ++line)
      each_height<kTall>(r.count, [&](int64_t from, int count) { tile(g, n, line, from, count, fetch); });
    n += kPanel;
    if (n >= out) n = 0, ++g;
  }
}
