// Forward pass and input gradient of the depthwise convolution: loop over rows, tiles of columns, blocks of channels.

// Adds P taps of one input row to the tile's sums. P = 1: any stride, no input is shared.
template <typename T, int P, int S, int M, bool Border>
LC_INLINE void add_taps(vf* sum, const T* x, int64_t column, const float* w, int64_t low, int64_t high, int64_t stride,
                        int64_t plane, int64_t planes, int64_t lanes) {
  constexpr int inputs = P == 1 ? (int)kTile : (kTile - 1) * S + P;
  vf k[P];
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) k[q] = load(w + q * kFloats);
  const int64_t jump = P == 1 ? stride * column : column, unit = P == 1 ? stride : 1;
#pragma GCC unroll 32
  for (int i = 0; i < inputs; ++i, x += jump) {
    if (Border && (i * unit < low || i * unit >= high)) continue;
    vf v;
    if (M == 1)
      v = load(x);
    else if (M == 2)
      v = plane ? odd(load(x), load(x + kFloats)) : even(load(x), load(x + kFloats));
    else
      v = gather(x, plane, planes, lanes);
    if (P == 1) {
      sum[i] += v * k[0];
      continue;
    }
#pragma GCC unroll 8
    for (int q = 0; q < P; ++q)
      if (i >= q && (i - q) % S == 0 && (i - q) / S < kTile) sum[(i - q) / S] += v * k[q];
  }
}

template <typename T, int P, int S, int M, bool Border>
LC_INLINE void add_rows(vf* sum, const Tile<T>& t, const T* x, const float* w, int64_t plane, int64_t planes) {
  const lc_depthwise& d = *t.conv;
  const int64_t lanes = least(d.channels, kFloats);
  for (int64_t r = 0; r < t.rows; ++r, x += t.x_row, w += d.kernel_width * kFloats) {
    int64_t q = 0;
    for (; q + P <= t.taps; q += P)
      add_taps<T, P, S, M, Border>(sum, x + q * t.x_column, t.x_column, w + q * kFloats, t.low - q, t.high - q,
                                   t.stride, plane, planes, lanes);
    if (P > 1)
      for (; q < t.taps; ++q)
        add_taps<T, 1, S, M, Border>(sum, x + q * t.x_column, t.x_column, w + q * kFloats, t.low - q, t.high - q,
                                     t.stride, plane, planes, lanes);
  }
}

// Forward: the planes of a multiplier are outputs. Two of them are interleaved in registers.
template <typename T, int P, int S, int M, bool Border>
static void forward_tile(const Tile<T>& t) {
  const lc_depthwise& d = *t.conv;
  const int64_t m = d.multiplier, blocks = depthwise_blocks(d), count = Border ? t.count : (int64_t)kTile;
  const float* w = d.scratch;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t c = block_channel(d, b);
    T* y = t.y + c * m;
    vf first[kTile] = {};
    for (int64_t plane = 0; plane < m; ++plane, w += plane_size(d)) {
      vf sum[kTile];
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i) sum[i] = load(w);
      add_rows<T, P, S, M, Border>(sum, t, t.x + c, w + t.weight, 0, 1);
      if (M == 1 && m == 1) {
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i)
          if (!Border || i < count) store(y + i * t.y_column, sum[i]);
      } else if (M == 1 && m == 2) {
        if (plane == 0) {
#pragma GCC unroll 8
          for (int i = 0; i < kTile; ++i) first[i] = sum[i];
          continue;
        }
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i) {
          if (Border && i >= count) continue;
          store(y + i * t.y_column, interleave_low(first[i], sum[i]));
          store(y + i * t.y_column + kFloats, interleave_high(first[i], sum[i]));
        }
      } else {
        for (int64_t i = 0; i < count; ++i) scatter(y + i * t.y_column, sum[i], plane, m, least(d.channels, kFloats));
      }
    }
  }
}

// Input gradient: the planes of a multiplier are summed.
template <typename T, int P, int S, int M, bool Border>
static void input_tile(const Tile<T>& t) {
  const lc_depthwise& d = *t.conv;
  const int64_t m = d.multiplier, blocks = depthwise_blocks(d), count = Border ? t.count : (int64_t)kTile;
  const float* w = d.scratch;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t c = block_channel(d, b);
    vf sum[kTile];
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) sum[i] = vf{};
    for (int64_t plane = 0; plane < m; ++plane, w += plane_size(d))
      add_rows<T, P, S, M, Border>(sum, t, t.x + c * m, w + t.weight, plane, m);
    if (d.channels >= kFloats) {
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i)
        if (!Border || i < count) store(t.y + c + i * t.y_column, sum[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) scatter(t.y + i * t.y_column, sum[i], 0, 1, d.channels);
    }
  }
}

template <typename T>
using TileKernel = void (*)(const Tile<T>&);
template <typename T>
struct TileKernels {
  TileKernel<T> whole, border;
};

// How many taps a kernel takes at a time: what divides them, else 7 and the rest one by one.
static int64_t taps_at_once(int64_t taps) {
  const int64_t sizes[] = {7, 5, 4, 3, 2};
  for (const int64_t p : sizes)
    if (taps % p == 0) return p;
  return taps > 7 ? 7 : 1;
}

#define LC_TILES(tile, P, S, M) \
  TileKernels<T> { tile<T, P, S, M, false>, tile<T, P, S, M, true> }

template <typename T>
static TileKernels<T> forward_kernels(const lc_depthwise& d, const Class& c) {
  if (d.channels < kFloats) return {forward_tile<T, 1, 1, 0, true>, forward_tile<T, 1, 1, 0, true>};
  const int64_t p = taps_at_once(c.taps);
  if (c.stride == 2) {
    if (p == 3) return LC_TILES(forward_tile, 3, 2, 1);
    if (p == 5) return LC_TILES(forward_tile, 5, 2, 1);
    if (p == 7) return LC_TILES(forward_tile, 7, 2, 1);
  }
  if (c.stride == 1) {
    if (p == 2) return LC_TILES(forward_tile, 2, 1, 1);
    if (p == 3) return LC_TILES(forward_tile, 3, 1, 1);
    if (p == 4) return LC_TILES(forward_tile, 4, 1, 1);
    if (p == 5) return LC_TILES(forward_tile, 5, 1, 1);
    if (p == 7) return LC_TILES(forward_tile, 7, 1, 1);
  }
  return LC_TILES(forward_tile, 1, 1, 1);
}

template <typename T, int M>
static TileKernels<T> input_kernels_of(const Class& c) {
  const int64_t p = taps_at_once(c.taps);
  if (p == 2) return LC_TILES(input_tile, 2, 1, M);
  if (p == 3) return LC_TILES(input_tile, 3, 1, M);
  if (p == 4) return LC_TILES(input_tile, 4, 1, M);
  if (p == 5) return LC_TILES(input_tile, 5, 1, M);
  if (p == 7) return LC_TILES(input_tile, 7, 1, M);
  return LC_TILES(input_tile, 1, 1, M);
}

template <typename T>
static TileKernels<T> input_kernels(const lc_depthwise& d, const Class& c) {
  if (d.channels < kFloats || d.multiplier > 2)
    return {input_tile<T, 1, 1, 0, true>, input_tile<T, 1, 1, 0, true>};
  return d.multiplier == 1 ? input_kernels_of<T, 1>(c) : input_kernels_of<T, 2>(c);
}

// Output rows [begin, end), counted over all images. The last tile is shifted back where the row is long enough.
template <typename T, bool Flipped>
static void tiled_rows(const lc_depthwise& d, const T* x, T* y, int64_t begin, int64_t end) {
  const Axis rows = axis_of_rows(d), columns = axis_of_columns(d);
  const int64_t channels = Flipped ? d.channels * d.multiplier : d.channels, width = Flipped ? d.out_width : d.width;
  const int64_t out_width = Flipped ? d.width : d.out_width, steps = least(classes(columns, Flipped), out_width);
  const int64_t row_size = out_width * (Flipped ? d.channels : d.channels * d.multiplier);
  for (int64_t row = begin; row < end; ++row) {
    const Line line = line_of(rows, Flipped, row);
    for (int64_t r = 0; r < steps; ++r) {
      const Class c = class_of(columns, Flipped, r);
      const TileKernels<T> kernels = Flipped ? input_kernels<T>(d, c) : forward_kernels<T>(d, c);
      const Tile<T> start = tile_of(d, x, y + row * row_size, Flipped, line, c);
      for (int64_t done = 0; done < c.count; done += kTile) {
        const int64_t at = most(0, least(done, c.count - kTile));
        const Tile<T> t = place(start, c, at, least(c.count, kTile), channels, width);
        (whole(t) ? kernels.whole : kernels.border)(t);
      }
    }
  }
}

static void depthwise_rows(const lc_depthwise& d, int64_t begin, int64_t end) {
  if (d.bf16)
    tiled_rows<bf16, false>(d, (const bf16*)d.x, (bf16*)d.y, begin, end);
  else
    tiled_rows<float, false>(d, (const float*)d.x, (float*)d.y, begin, end);
}
static void depthwise_input_rows(const lc_depthwise& d, int64_t begin, int64_t end) {
  if (d.bf16)
    tiled_rows<bf16, true>(d, (const bf16*)d.y, (bf16*)d.x, begin, end);
  else
    tiled_rows<float, true>(d, (const float*)d.y, (float*)d.x, begin, end);
}
