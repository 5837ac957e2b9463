// Depthwise convolution of the runtime, a row of y at a time, with bias and activation: the tiles of depthwise_rows.inl.h
// over rows that lie anywhere, so that they may come from a scratch memory.
//
// Weights are packed [block of output channels][bias, then taps][kFloats]. With multiplier 1 the last block is shifted back
// so that it is full, and its first channels are computed twice, to the same bits.

LC_INLINE bool in_vectors(const lc_layer& l) { return l.groups == 1 && l.channels >= kFloats; }
LC_INLINE int64_t channel_blocks(const lc_layer& l) { return ceil_div(l.out_channels, kFloats); }
LC_INLINE int64_t block_size(const lc_layer& l) { return (1 + l.kernel_height * l.kernel_width) * kFloats; }
LC_INLINE int64_t first_channel(const lc_layer& l, int64_t block) {
  return in_vectors(l) ? least(block * kFloats, l.channels - kFloats) : block * kFloats;
}

static int64_t channels_scratch(const lc_layer&) { return 0; }
static int64_t channels_packed(const lc_layer& l) { return channel_blocks(l) * block_size(l); }

static void channels_pack(lc_layer& l) {
  const int64_t taps = l.kernel_height * l.kernel_width, out = l.out_channels;
  for (int64_t b = 0; b < channel_blocks(l); ++b) {
    const int64_t first = first_channel(l, b);
    float* to = l.packed + b * block_size(l);
    for (int64_t v = 0; v < kFloats; ++v) {
      const bool there = first + v < out;
      to[v] = there ? l.shift[first + v] : 0.0f;
      for (int64_t t = 0; t < taps; ++t) to[(1 + t) * kFloats + v] = there ? l.weight[t * out + first + v] : 0.0f;
    }
  }
}

struct SpreadChannels {  // lane v is the input of output channel first + v
  int64_t first, lanes, multiplier;
  LC_INLINE_MEMBER vf operator()(const float* p) const {
    float out[kFloats] = {};
    for (int64_t v = 0; v < lanes; ++v) out[v] = p[(first + v) / multiplier];
    return load(out);
  }
};

// Vectors of all channels, fewer than kFloats: nothing behind them is read or written.
struct Part {
#if LC_BYTES == 64 && defined(__AVX512F__)
  __mmask16 mask;
  LC_INLINE_MEMBER explicit Part(int64_t n) : mask((__mmask16)((1u << n) - 1)) {}
  LC_INLINE_MEMBER vf operator()(const float* p) const { return (vf)_mm512_maskz_loadu_ps(mask, p); }
  LC_INLINE_MEMBER void put(float* p, vf v) const { _mm512_mask_storeu_ps(p, mask, (__m512)v); }
#elif LC_BYTES == 32 && defined(__AVX2__)
  __m256i mask;
  LC_INLINE_MEMBER explicit Part(int64_t n)
      : mask(_mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))) {}
  LC_INLINE_MEMBER vf operator()(const float* p) const { return (vf)_mm256_maskload_ps(p, mask); }
  LC_INLINE_MEMBER void put(float* p, vf v) const { _mm256_maskstore_ps(p, mask, (__m256)v); }
#else
  int64_t n;
  LC_INLINE_MEMBER explicit Part(int64_t count) : n(count) {}
  LC_INLINE_MEMBER vf operator()(const float* p) const {
    vf v = {};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  LC_INLINE_MEMBER void put(float* p, vf v) const {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
#endif
};
struct Whole : Direct {
  LC_INLINE_MEMBER explicit Whole(int64_t) {}
  LC_INLINE_MEMBER void put(float* p, vf v) const { store(p, v); }
};

// One row of y: kernel rows [begin, end) lie inside of x, at rows[k]. Or two rows, where all of both lie inside: the second
// one's kernel begins a row of x later.
struct Line {
  const float* const* rows;
  int64_t begin, end;
  int64_t x_pixel;
  float* y;
  int64_t y_pixel, y_row;
};

// Taps of one block of channels, P at a time; stride S and no dilation, or P = 1: any.
template <int P, int S, bool Border, typename Load>
LC_INLINE void add_line(vf (*sum)[kTile], const lc_layer& l, const Line& t, int64_t base, int64_t channel, const float* w,
                        Load load_input) {
  const int64_t low = -base, high = l.width - base;
  for (int64_t k = t.begin; k < t.end; ++k) {
    const float *x = t.rows[k] + base * t.x_pixel + channel, *taps = w + (1 + k * l.kernel_width) * kFloats;
    if constexpr (P > 1) {
      add_taps<P, S, Border, true, false>(sum, x, t.x_pixel, taps, taps, low, high, 1, load_input);
    } else {
      for (int64_t q = 0; q < l.kernel_width; ++q) {
        const int64_t at = q * l.dilation_width;
        add_taps<1, 1, true, true, false>(sum, x + at * t.x_pixel, t.x_pixel, taps + q * kFloats, taps, low - at, high - at,
                                          l.stride_width, load_input);
      }
    }
  }
}

// Outputs [column, column + count), count <= kTile. `Lot`: how a vector of channels lies in memory, Whole or Part.
template <int P, int S, bool Border, typename Lot>
static void line_tile(const lc_layer& l, const Line& t, int64_t column, int64_t count) {
  const int64_t base = column * l.stride_width - l.pad_left, blocks = channel_blocks(l), size = block_size(l);
  const int64_t y_pixel = t.y_pixel;
  const Lot lot(l.channels);
  const float low = l.low, high = l.high;  // stores could change those of the layer, for all the compiler knows
  const float* w = l.packed;
  float* const to = t.y + column * y_pixel;
  for (int64_t b = 0; b < blocks; ++b, w += size) {
    const int64_t c = first_channel(l, b);
    vf sum[1][kTile];
    set_all<1>(sum, load(w));
    add_line<P, S, Border>(sum, l, t, base, c, w, lot);
    float* y = to + c;
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i, y += y_pixel)
      if (!Border || i < count) lot.put(y, bounded(sum[0][i], low, high));
  }
}
static void line_tile_of_lanes(const lc_layer& l, const Line& t, int64_t column, int64_t count) {
  const int64_t base = column * l.stride_width - l.pad_left, blocks = channel_blocks(l), size = block_size(l);
  const float* w = l.packed;
  for (int64_t b = 0; b < blocks; ++b, w += size) {
    const int64_t c = b * kFloats, lanes = least(kFloats, l.out_channels - c);
    vf sum[1][kTile];
    set_all<1>(sum, load(w));
    add_line<1, 1, true>(sum, l, t, base, 0, w, SpreadChannels{c, lanes, l.groups});
    float* y = t.y + column * t.y_pixel + c;
    for (int64_t i = 0; i < count; ++i) store_part(y + i * t.y_pixel, bounded(sum[0][i], l.low, l.high), lanes);
  }
}

// Two rows of y at once, stride 1: each row of x is read once for both.
template <int P, bool Border, typename Lot>
static void two_lines_tile(const lc_layer& l, const Line& t, int64_t column, int64_t count) {
  const int64_t base = column - l.pad_left, blocks = channel_blocks(l), size = block_size(l), inner = l.kernel_height;
  const int64_t y_pixel = t.y_pixel, y_row = t.y_row, w_row = P * kFloats, low = -base, high = l.width - base, step = t.x_pixel;
  const Lot lot(l.channels);
  const float lowest = l.low, highest = l.high;
  const float* w = l.packed;
  float* const to = t.y + column * y_pixel;
  for (int64_t b = 0; b < blocks; ++b, w += size) {
    const int64_t c = first_channel(l, b), from = base * step + c;
    const float* taps = w + kFloats;
    vf sum[2][kTile];
    set_all<2>(sum, load(w));
    add_taps<P, 1, Border, true, false>(sum, t.rows[0] + from, step, taps, taps, low, high, 1, lot);
    for (int64_t k = 1; k < inner; ++k, taps += w_row)
      add_taps<P, 1, Border, true, true>(sum, t.rows[k] + from, step, taps + w_row, taps, low, high, 1, lot);
    add_taps<P, 1, Border, false, true>(sum, t.rows[inner] + from, step, taps, taps, low, high, 1, lot);
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      float* y = to + r * y_row + c;
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i, y += y_pixel)
        if (!Border || i < count) lot.put(y, bounded(sum[r][i], lowest, highest));
    }
  }
}

typedef void (*LineTile)(const lc_layer&, const Line&, int64_t, int64_t);
struct LineTiles {
  LineTile whole, border;
};
template <int P, int S, typename Lot>
static LineTiles line_tiles() {
  return {line_tile<P, S, false, Lot>, line_tile<P, S, true, Lot>};
}
template <typename Lot>
static LineTiles line_tiles_of(const lc_layer& l) {
  if (l.dilation_width == 1 && l.stride_width == 1) {
    if (l.kernel_width == 3) return line_tiles<3, 1, Lot>();
    if (l.kernel_width == 5) return line_tiles<5, 1, Lot>();
    if (l.kernel_width == 7) return line_tiles<7, 1, Lot>();
  }
  if (l.dilation_width == 1 && l.stride_width == 2) {
    if (l.kernel_width == 3) return line_tiles<3, 2, Lot>();
    if (l.kernel_width == 5) return line_tiles<5, 2, Lot>();
    if (l.kernel_width == 7) return line_tiles<7, 2, Lot>();
  }
  return {line_tile<1, 1, true, Lot>, line_tile<1, 1, true, Lot>};
}
static LineTiles pick_line_tiles(const lc_layer& l) {
  if (l.groups > 1) return {line_tile_of_lanes, line_tile_of_lanes};
  return in_vectors(l) ? line_tiles_of<Whole>(l) : line_tiles_of<Part>(l);
}

// Of two rows; null where one at a time is what there is: so many sums need 32 registers.
template <typename Lot>
static LineTiles two_lines_tiles_of(const lc_layer& l) {
  if (l.kernel_width == 3) return {two_lines_tile<3, false, Lot>, two_lines_tile<3, true, Lot>};
  if (l.kernel_width == 5) return {two_lines_tile<5, false, Lot>, two_lines_tile<5, true, Lot>};
  return {nullptr, nullptr};
}
static LineTiles pick_two_lines_tiles(const lc_layer& l) {
#if LC_BYTES == 64 || (defined(__aarch64__) && !defined(LC_BASELINE))
  if (l.groups == 1 && l.dilation_width == 1 && l.dilation_height == 1 && l.stride_width == 1 && l.stride_height == 1)
    return in_vectors(l) ? two_lines_tiles_of<Whole>(l) : two_lines_tiles_of<Part>(l);
#endif
  (void)l;
  return {nullptr, nullptr};
}

// A row of y, or two. The last tile is shifted back where the row is long enough.
static void channels_line(const lc_layer& l, const Line& t, const LineTiles& tiles) {
  const int64_t reach = (l.kernel_width - 1) * l.dilation_width + 1;
  for (int64_t done = 0; done < l.out_width; done += kTile) {
    const int64_t at = most(0, least(done, l.out_width - kTile)), count = least(l.out_width, kTile);
    const int64_t base = at * l.stride_width - l.pad_left;
    const bool whole = count == kTile && base >= 0 && base + (count - 1) * l.stride_width + reach <= l.width;
    (whole ? tiles.whole : tiles.border)(l, t, at, count);
  }
}

// Kernel rows that lie inside for output row `row`.
LC_INLINE Span kernel_rows(const lc_layer& l, int64_t row) {
  const int64_t top = row * l.stride_height - l.pad_top;
  const int64_t begin = most(0, ceil_div(-top, l.dilation_height));
  return {begin, most(begin, least(l.kernel_height, ceil_div(l.height - top, l.dilation_height)))};
}

// Rows [row, row + count) of y, `y_row` apart, of an image that is at x, or of which row r is at x + r % ring * x_row.
static void channels_rows(const lc_layer& l, const float* x, int64_t x_row, int64_t x_pixel, int64_t ring, int64_t row,
                          int64_t count, float* y, int64_t y_row, int64_t y_pixel, const float** rows) {
  const LineTiles one = pick_line_tiles(l), two = pick_two_lines_tiles(l);
  for (int64_t done = 0, lines; done < count; done += lines, row += lines, y += lines * y_row) {
    const Span inside = kernel_rows(l, row);
    const bool whole = inside.end - inside.begin == l.kernel_height && kernel_rows(l, row + 1).end == l.kernel_height;
    lines = two.whole && whole && done + 1 < count ? 2 : 1;
    for (int64_t k = inside.begin; k < inside.end + lines - 1; ++k) {
      const int64_t r = row * l.stride_height - l.pad_top + k * l.dilation_height;
      rows[k] = x + r % ring * x_row;
    }
    channels_line(l, {rows, inside.begin, inside.end, x_pixel, y, y_pixel, y_row}, lines == 2 ? two : one);
    for (int64_t i = 0; i < lines; ++i) finish(l.act, y + i * y_row, l.out_width, y_pixel, l.out_channels);
  }
}
