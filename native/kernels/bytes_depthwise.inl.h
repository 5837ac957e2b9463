// Depthwise convolution of the runtime over bytes, a row of y or two at a time, over rows that lie anywhere: blocks of channels,
// their packed weights, and which way (bytes_depthwise_tiles.inl.h) a window goes.
//
// Blocks are as wide as a vector, the last one perhaps half as wide, and shifted back so that it is full: its first channels
// are computed twice, to the same bits. Behind all blocks stands a row of zero points, for rows that are not there.

enum Way { kAny, kThree, kThreeTwo, kFive, kFiveTwo };

LC_INLINE bool in_vectors(const lc_layer& l) { return l.groups == 1 && l.channels >= kNarrow; }

static Way way_of(const lc_layer& l) {
  const int64_t k = l.kernel_width, s = l.stride_width;
  if (!in_vectors(l) || l.kernel_height != k || l.dilation_height != 1 || l.dilation_width != 1 || s > 2) return kAny;
  return k == 3 ? (s == 1 ? kThree : kThreeTwo) : k == 5 ? (s == 1 ? kFive : kFiveTwo) : kAny;
}
LC_INLINE bool two_rows(const lc_layer& l) {
  const Way way = way_of(l);
  return l.stride_height == 1 && (way == kThree || way == kFive);
}

static int64_t dwords_of(const lc_layer& l) {
  switch (way_of(l)) {
    case kThree: return 2 * kDwordsThree;
    case kThreeTwo: return kDwordsThree;
    case kFive: return 2 * kDwordsFive;
    case kFiveTwo: return kDwordsFiveTwo;
    default: return ceil_div(l.kernel_height, 4) * l.kernel_width;
  }
}

// The taps of a dword, row * kernel_width + column; -1: none, the weight is 0.
static void taps_of(const lc_layer& l, int64_t dword, int64_t* taps) {
  const auto tap = [&](int64_t row, int64_t column) {
    const bool inside = row >= 0 && row < l.kernel_height && column < l.kernel_width;
    return inside ? row * l.kernel_width + column : (int64_t)-1;
  };
  for (int64_t b = 0; b < 4; ++b) {
    int64_t row = b, column = dword, second = 0;
    switch (way_of(l)) {
      case kThree: second = dword / kDwordsThree, row = b - second, column = dword % kDwordsThree; break;
      case kThreeTwo:
        if (b > 1) row = 2, column = dword + b - 2;
        if (dword == 1 && b > 1) row = -1;
        if (dword == 2 && b > 2) row = -1;
        break;
      case kFive:
        second = dword / kDwordsFive, column = dword % kDwordsFive, row = b - second;
        if (column == 7)
          row = b < 2 ? -1 : 4 + b % 2 - second, column = 4;
        else if (column >= 5)
          row = 4 + b % 2 - second, column = (column - 5) * 2 + b / 2;
        break;
      case kFiveTwo:
        if (dword == 5) row = 4, column = b;
        if (dword == 6) row = b == 2 ? 4 : -1, column = 4;
        break;
      default: row = dword / l.kernel_width * 4 + b, column = dword % l.kernel_width;
    }
    taps[b] = tap(row, column);
  }
}

LC_INLINE int64_t block_bytes(const lc_layer& l, int64_t width) { return (8 + dwords_of(l) * 4 * kParts) * width; }

// Calls f(first channel, width, place of the packed weights).
template <typename F>
LC_INLINE void each_block(const lc_layer& l, F f) {
  const int64_t channels = l.out_channels;
  int64_t at = 0;
  for (int64_t c = 0; c < channels;) {
    const int64_t left = channels - c;
    const bool wide = in_vectors(l) && channels >= LC_BYTES && left > (kNarrow < LC_BYTES ? (int64_t)kNarrow : 0);
    const int64_t width = wide ? (int64_t)LC_BYTES : (int64_t)kNarrow;
    f(in_vectors(l) ? least(c, channels - width) : c, width, at);
    at += block_bytes(l, width), c += width;
  }
}
static int64_t blocks_bytes(const lc_layer& l) {
  if (of_few(l)) return few_bytes(l);
  int64_t size = 0;
  each_block(l, [&](int64_t, int64_t width, int64_t at) { size = at + block_bytes(l, width); });
  return size;
}

LC_INLINE int64_t row_of_zeros(const lc_layer& l) { return l.width * most(l.channels, l.pixel); }

static int64_t channels_packed(const lc_layer& l) { return ceil_div(blocks_bytes(l) + row_of_zeros(l), 4); }

static void channels_pack(lc_layer& l) {
  const int64_t taps = l.kernel_height * l.kernel_width, out = l.out_channels, dwords = dwords_of(l);
  int8_t* const packed = (int8_t*)l.packed;
  __builtin_memset(packed + blocks_bytes(l), l.zero, (size_t)row_of_zeros(l));
  if (of_few(l)) return few_pack(l, packed);
  each_block(l, [&](int64_t first, int64_t width, int64_t place) {
    int32_t* const starts = (int32_t*)(packed + place);
    float* const factors = (float*)(starts + width);
    int8_t* const weights = (int8_t*)(factors + width);
    for (int64_t v = 0; v < width; ++v) {
      const int64_t c = first + v, lane = v / 16, q = v / 4 % 4, dword = 4 * lane + v % 4, at = q * (width / 4) + dword;
      const bool there = c < out;
      int32_t sum = 0;
      for (int64_t k = 0; there && k < taps; ++k) sum += l.bytes[k * out + c];
      starts[at] = there ? l.sums[c] - l.zero * sum : 0;
      factors[l.real || !in_vectors(l) ? v : at] = there ? lc_factor_of(l, l.scales[c]) : 0.0f;
      for (int64_t d = 0; d < dwords; ++d) {
        int64_t tap[4];
        int8_t four[4];
        taps_of(l, d, tap);
        for (int64_t b = 0; b < 4; ++b) four[b] = there && tap[b] >= 0 ? l.bytes[tap[b] * out + c] : (int8_t)0;
        pack_four(weights + (d * 4 + q) * kParts * width + dword * 4, width, four);
      }
    }
  });
}

// Floats of scratch memory behind the table of rows.
static int64_t channels_scratch(const lc_layer& l) { return of_few(l) ? few_scratch(l) : 0; }

typedef void (*Tiles)(const lc_layer&, const Line&, const int8_t*, int64_t channel);

template <int N, int form>
static Tiles tiles_of(Way way, bool two) {
  if constexpr (N == 64 && kParts == 1)  // registers enough
    if (way == kThree) return two ? three_by_three_held<N, form, 2> : three_by_three_held<N, form, 1>;
  switch (way) {
    case kThree: return two ? three_by_three<N, form, 2> : three_by_three<N, form, 1>;
    case kThreeTwo: return three_by_three_two<N, form, 1>;
    case kFive: return two ? five_by_five<N, form, 2> : five_by_five<N, form, 1>;
    case kFiveTwo: return five_by_five_two<N, form, 1>;
    default: return any_window_whole<N, form, 1>;
  }
}
template <int N>
static Tiles pick_tiles(const lc_layer& l, bool two) {
  if (!in_vectors(l)) return any_window_some<N>;
  const Way way = way_of(l);
  switch (form_of(l)) {
    case kPlain: return tiles_of<N, kPlain>(way, two);
    case kRaised: return tiles_of<N, kRaised>(way, two);
    case kReal: return tiles_of<N, kReal>(way, two);
    default: return tiles_of<N, kShifted>(way, two);
  }
}

enum { kTogether = 8 };  // rows of y that a block of channels goes through, as its weights are near then

// Rows [row, row + count) of y, `y_row` numbers apart, of an image whose row r is at x + r % ring * x_row. In pairs where that
// is less work. `table` has room for kernel_height pointers.
static void channels_rows(const lc_layer& l, const uint8_t* x, int64_t x_row, int64_t x_pixel, int64_t ring, int64_t row,
                          int64_t count, uint8_t* y, int64_t y_row, int64_t y_pixel, const uint8_t** table) {
  const int8_t* const packed = (const int8_t*)l.packed;
  const uint8_t *const none = (const uint8_t*)packed + blocks_bytes(l), *few[2 * kTogether + kMostRows];
  if (of_few(l))
    return few_rows(l, none, x, x_row, x_pixel, ring, row, count, y, y_row, y_pixel, (float*)table + table_floats(l));
  const bool any = way_of(l) == kAny, pairs = two_rows(l);
  const int64_t together = any || l.stride_height > 2 ? 1 : (int64_t)kTogether, number = l.y_quantized ? 1 : 4;
  const uint8_t** const rows = any ? table : few;
  const Tiles wide[] = {pick_tiles<LC_BYTES>(l, false), pick_tiles<LC_BYTES>(l, true)};
  const Tiles narrow[] = {pick_tiles<kNarrow>(l, false), pick_tiles<kNarrow>(l, true)};
  for (int64_t done = 0, some; done < count; done += some) {
    some = least(together, count - done);
    const int64_t top = (row + done) * l.stride_height - l.pad_top, reach = (some - 1) * l.stride_height + l.kernel_height;
    for (int64_t k = 0; k < (any ? l.kernel_height : reach + 1); ++k) {
      const int64_t r = top + k * l.dilation_height;
      rows[k] = k < reach && r >= 0 && r < l.height ? x + r % ring * x_row : none;
    }
    each_block(l, [&](int64_t c, int64_t width, int64_t place) {
      for (int64_t i = 0, now; i < some; i += now) {
        now = pairs && i + 1 < some ? 2 : 1;
        const Line t = {rows + i * l.stride_height, x_pixel, y + (done + i) * y_row * number, y_row, y_pixel};
        (width == LC_BYTES ? wide : narrow)[now - 1](l, t, packed + place, c);
      }
    });
  }
}
