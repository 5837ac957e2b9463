// Forward pass and input gradient of the depthwise convolution: loop over rows, tiles of columns, blocks of channels.
//
// With multiplier 1 both passes are the same loop over different weights. Template parameters: P taps of a row at a time,
// S stride (P = 1: any stride), Border: some inputs are missing, Rows: output rows of a tile.

enum { kAlign = 64 };

struct Direct {  // how an input vector is loaded: as it stands
  template <typename T>
  LC_INLINE_MEMBER vf operator()(const T* p) const {
    return load(p);
  }
};
struct Plane {  // one of two interleaved planes
  int64_t plane;
  template <typename T>
  LC_INLINE_MEMBER vf operator()(const T* p) const {
    return plane ? odd(load(p), load(p + kFloats)) : even(load(p), load(p + kFloats));
  }
};
struct Lanes {  // lane by lane, any multiplier and any number of channels
  int64_t plane, planes, lanes;
  template <typename T>
  LC_INLINE_MEMBER vf operator()(const T* p) const {
    return gather(p, plane, planes, lanes);
  }
};

// Adds P taps of one input row to the sums of one output row (w0) or of a second one too (w1); either may be null.
template <int P, int S, bool Border, bool First, bool Second, typename T, typename Load>
LC_INLINE void add_taps(vf (*sum)[kTile], const T* x, int64_t column, const float* w0, const float* w1, int64_t low,
                        int64_t high, int64_t stride, Load load_input) {
  constexpr int inputs = P == 1 ? (int)kTile : (kTile - 1) * S + P;
  const int64_t jump = P == 1 ? stride * column : column, unit = P == 1 ? stride : 1;
  vf k0[P], k1[P];
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) {
    k0[q] = First ? load(w0 + q * kFloats) : vf{};
    k1[q] = Second ? load(w1 + q * kFloats) : vf{};
  }
#pragma GCC unroll 32
  for (int i = 0; i < inputs; ++i, x += jump) {
    if (Border && missing(i * unit, low, high)) continue;
    const vf v = P == 1 ? load_input(x) : held(load_input(x));
#pragma GCC unroll 8
    for (int q = 0; q < P; ++q) {
      const int o = P == 1 ? i : (i - q) / S;
      if (P > 1 && (i < q || (i - q) % S || o >= kTile)) continue;
      if (First) sum[0][o] += v * k0[q];
      if (Second) sum[1][o] += v * k1[q];
    }
  }
}

// All taps of one output row. Exact: the row of the kernel has P taps; else P at a time and the rest one by one.
template <int P, int S, bool Border, bool Exact, typename T, typename Load>
LC_INLINE void add_row(vf (*sum)[kTile], const Tile<T>& t, const T* x, const float* w, Load load_input) {
  const int64_t w_row = t.conv->kernel_width * kFloats, column = t.x_column;
  w += t.first * w_row;
  for (int64_t r = t.first; r < t.last; ++r, x += t.x_row, w += w_row) {
    if (Exact) {
      add_taps<P, S, Border, true, false>(sum, x, column, w, w, t.low, t.high, t.stride, load_input);
      continue;
    }
    int64_t q = 0;
    for (; P > 1 && q + P <= t.taps_w; q += P)
      add_taps<P, S, Border, true, false>(sum, x + q * column, column, w + q * kFloats, w, t.low - q, t.high - q,
                                          t.stride, load_input);
    for (; q < t.taps_w; ++q)
      add_taps<1, 1, Border, true, false>(sum, x + q * column, column, w + q * kFloats, w, t.low - q, t.high - q,
                                          t.stride, load_input);
  }
}

// All taps of two output rows: input row r is under tap r of the first and tap r - 1 of the second.
template <int P, bool Border, typename T, typename Load>
LC_INLINE void add_two_rows(vf (*sum)[kTile], const Tile<T>& t, const T* x, const float* w, Load load_input) {
  const int64_t w_row = t.conv->kernel_width * kFloats, column = t.x_column;
  int64_t r = t.first;
  if (r == 0 && r < t.last) {
    add_taps<P, 1, Border, true, false>(sum, x, column, w, w, t.low, t.high, 1, load_input);
    ++r, x += t.x_row;
  }
  for (const int64_t both = least(t.last, t.taps_h); r < both; ++r, x += t.x_row)
    add_taps<P, 1, Border, true, true>(sum, x, column, w + r * w_row, w + (r - 1) * w_row, t.low, t.high, 1,
                                       load_input);
  if (r < t.last) add_taps<P, 1, Border, false, true>(sum, x, column, w, w + (r - 1) * w_row, t.low, t.high, 1, load_input);
}

template <int P, int S, bool Border, bool Exact, int Rows, typename T, typename Load>
LC_INLINE void add_all(vf (*sum)[kTile], const Tile<T>& t, const T* x, const float* w, Load load_input) {
  if constexpr (Rows == 2)
    add_two_rows<P, Border>(sum, t, x, w, load_input);
  else
    add_row<P, S, Border, Exact>(sum, t, x, w, load_input);
}

template <int Rows>
LC_INLINE void set_all(vf (*sum)[kTile], vf v) {
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) sum[r][i] = v;
}

template <int Rows, bool Border, typename T>
LC_INLINE void store_all(vf (*sum)[kTile], const Tile<T>& t, T* y) {
#pragma GCC unroll 2
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i)
      if (!Border || i < t.count) store(y + r * t.y_row + i * t.y_column, sum[r][i]);
}

// Stores one plane of several from `sums`, a tile in memory. The first of two waits in `even_plane` for the second.
template <int Rows, typename T>
static void store_plane(const float* sums, const Tile<T>& t, T* y, int64_t plane, float* even_plane) {
  const int64_t m = t.conv->multiplier, lanes = least(t.conv->channels, kFloats);
  if (m == 2 && lanes == kFloats && plane == 0) {
    __builtin_memcpy(even_plane, sums, Rows * kTile * sizeof(vf));
    return;
  }
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t i = 0; i < t.count; ++i) {
      T* const to = y + r * t.y_row + i * t.y_column;
      const int64_t at = (r * kTile + i) * kFloats;
      if (m != 2 || lanes < kFloats) {
        scatter(to, load(sums + at), plane, m, lanes);
      } else {
        store(to, interleave_low(load(even_plane + at), load(sums + at)));
        store(to + kFloats, interleave_high(load(even_plane + at), load(sums + at)));
      }
    }
}

// Each plane of the output from one input. Serves the input gradient too, where the multiplier is 1.
template <typename T, int P, int S, bool Border, bool Exact, int Rows>
static void tile(const Tile<T>& t) {
  const lc_depthwise& d = *t.conv;
  const int64_t m = d.multiplier, blocks = depthwise_blocks(d), size = plane_size(d);
  alignas(kAlign) float even_plane[Rows * kTile * kFloats], sums[Rows * kTile * kFloats];
  const float* w = d.scratch;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t c = block_channel(d, b);
    for (int64_t plane = 0; plane < m; ++plane, w += size) {
      vf sum[Rows][kTile];
      set_all<Rows>(sum, load(w));
      add_all<P, S, Border, Exact, Rows>(sum, t, t.x + c, w + t.weight, Direct{});
      if (m == 1) {
        store_all<Rows, Border>(sum, t, t.y + c);
        continue;
      }
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r)  // in registers until here: whatever takes the array's address moves it to memory
#pragma GCC unroll 8
        for (int i = 0; i < kTile; ++i) store(sums + (r * kTile + i) * kFloats, sum[r][i]);
      store_plane<Rows>(sums, t, t.y + c * m, plane, even_plane);
    }
  }
}

// Input gradient, multiplier 2: both planes of the gradient are summed.
template <typename T, int P, bool Border, bool Exact, int Rows>
static void tile_of_planes(const Tile<T>& t) {
  const lc_depthwise& d = *t.conv;
  const int64_t blocks = depthwise_blocks(d), size = plane_size(d);
  const float* w = d.scratch;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t c = block_channel(d, b);
    vf sum[Rows][kTile];
    set_all<Rows>(sum, vf{});
    for (int64_t plane = 0; plane < 2; ++plane, w += size)
      add_all<P, 1, Border, Exact, Rows>(sum, t, t.x + c * 2, w + t.weight, Plane{plane});
    store_all<Rows, Border>(sum, t, t.y + c);
  }
}

// Anything: fewer channels than a vector, any multiplier.
template <typename T, bool Flipped>
static void tile_of_lanes(const Tile<T>& t) {
  const lc_depthwise& d = *t.conv;
  const int64_t m = d.multiplier, blocks = depthwise_blocks(d), lanes = least(d.channels, kFloats);
  const float* w = d.scratch;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t c = block_channel(d, b);
    vf sum[1][kTile] = {};
    for (int64_t plane = 0; plane < m; ++plane, w += plane_size(d)) {
      if (!Flipped) set_all<1>(sum, load(w));
      const Lanes from = Flipped ? Lanes{plane, m, lanes} : Lanes{0, 1, lanes};
      add_row<1, 1, true, false>(sum, t, t.x + (Flipped ? c * m : c), w + t.weight, from);
      if (Flipped && plane < m - 1) continue;
      for (int64_t i = 0; i < t.count; ++i)
        scatter(t.y + (Flipped ? c : c * m) + i * t.y_column, sum[0][i], Flipped ? 0 : plane, Flipped ? 1 : m, lanes);
    }
  }
}

template <typename T>
struct TileKernels {
  void (*whole)(const Tile<T>&);
  void (*border)(const Tile<T>&);
  void (*two_whole)(const Tile<T>&);  // of two output rows, null: there is none
  void (*two_border)(const Tile<T>&);
};

template <typename T, int P, int S>
static TileKernels<T> kernels_of() {
  if constexpr (S == 1 && P % 2 == 1)
    return {tile<T, P, 1, false, true, 1>, tile<T, P, 1, true, true, 1>, tile<T, P, 1, false, true, 2>,
            tile<T, P, 1, true, true, 2>};
  else
    return {tile<T, P, S, false, true, 1>, tile<T, P, S, true, true, 1>, nullptr, nullptr};
}

template <typename T, int P>
static TileKernels<T> kernels_of_planes() {
  return {tile_of_planes<T, P, false, true, 1>, tile_of_planes<T, P, true, true, 1>,
          tile_of_planes<T, P, false, true, 2>, tile_of_planes<T, P, true, true, 2>};
}

template <typename T, bool Flipped>
static TileKernels<T> pick_kernels(const lc_depthwise& d, const Class& c) {
  if (d.channels < kFloats || (Flipped && d.multiplier > 2))
    return {tile_of_lanes<T, Flipped>, tile_of_lanes<T, Flipped>, nullptr, nullptr};
  if (Flipped && d.multiplier == 2) {
    if (c.taps == 3) return kernels_of_planes<T, 3>();
    if (c.taps == 5) return kernels_of_planes<T, 5>();
    if (c.taps == 7) return kernels_of_planes<T, 7>();
    return {tile_of_planes<T, 1, true, false, 1>, tile_of_planes<T, 1, true, false, 1>, nullptr, nullptr};
  }
  if (c.stride == 2) {
    if (c.taps == 3) return kernels_of<T, 3, 2>();
    if (c.taps == 5) return kernels_of<T, 5, 2>();
    if (c.taps == 7) return kernels_of<T, 7, 2>();
  }
  if (c.stride == 1) {
    if (c.taps == 2) return kernels_of<T, 2, 1>();
    if (c.taps == 3) return kernels_of<T, 3, 1>();
    if (c.taps == 4) return kernels_of<T, 4, 1>();
    if (c.taps == 5) return kernels_of<T, 5, 1>();
    if (c.taps == 7) return kernels_of<T, 7, 1>();
    if (c.taps > 7) return {tile<T, 7, 1, false, false, 1>, tile<T, 7, 1, true, false, 1>, nullptr, nullptr};
  }
  return {tile<T, 1, 1, false, false, 1>, tile<T, 1, 1, true, false, 1>, nullptr, nullptr};
}

// How many rows go together from `row` on: 1 or 2; 0: it went with an earlier one of [begin, end).
LC_INLINE int64_t rows_together(const Side& rows, int64_t row, int64_t begin, int64_t end) {
  const int64_t o = row % rows.out, t = o / rows.step;
  if (t % 2) return row - rows.step >= begin ? 0 : 1;
  return o + rows.step < rows.out && row + rows.step < end ? 2 : 1;
}

// Output rows [begin, end), counted over all images. The last tile is shifted back where the row is long enough.
template <typename T, bool Flipped>
static void tiled_rows(const lc_depthwise& d, const T* x, T* y, int64_t begin, int64_t end) {
  const Axis axis_h = axis_of_rows(d), axis_w = axis_of_columns(d);
  const Side rows = side_of(axis_h, Flipped), columns = side_of(axis_w, Flipped);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t r = 0; r < least(columns.step, columns.out); ++r) {
      const Class c = class_of(axis_w, Flipped, r);
      const TileKernels<T> kernels = pick_kernels<T, Flipped>(d, c);
      const bool pairs = kernels.two_whole && (Flipped || axis_h.unit == 1);
      const int64_t together = pairs ? rows_together(rows, row, begin, end) : 1;
      if (together == 0) continue;
      const Tile<T> start = tile_of(d, x, y, rows, columns, c, row, together);
      for (int64_t done = 0; done < c.count; done += kTile) {
        const int64_t at = most(0, least(done, c.count - kTile));
        const Tile<T> t = place(start, c, at, least(c.count, kTile), columns.in);
        if (together == 2)
          (whole(t) ? kernels.two_whole : kernels.two_border)(t);
        else
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
