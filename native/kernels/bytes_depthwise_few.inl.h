// Depthwise convolutions over bytes of fewer channels than a vector has, with multiplier 1: a row of y is one stretch of numbers,
// whatever their channels.
//
// Bytes of four rows of x that stand above each other are woven into dwords, columns of one remainder by the stride behind each
// other, with zero points around: what a tap gives to neighbouring numbers of y are then neighbouring dwords. Packed weights,
// starts and factors repeat from channel to channel, as far as a group of numbers that begins at any channel reaches.

enum { kNarrow = LC_BYTES == 64 ? 32 : LC_BYTES };          // channels of the narrowest block of the other ways
enum { kWoven = 16, kFewMost = 16, kFewTaps = 64 };  // dwords woven at a time; greatest kernel, stride and dilation; dwords of taps

LC_INLINE bool of_few(const lc_layer& l) {
  const int64_t sides = most(most(l.kernel_height, l.kernel_width), most(l.stride_height, l.stride_width));
  return l.groups == 1 && l.channels < kNarrow && most(sides, most(l.dilation_height, l.dilation_width)) <= kFewMost;
}

struct Few {
  int64_t quads;           // fours of rows under the kernel
  int64_t rows;            // of y that one weaving serves
  int64_t planes, plane;   // of columns of one remainder, and dwords of one
  int64_t columns;         // of x with what is around
  int64_t lanes, weights;  // of repeated numbers; bytes of the weights of one row of y
};
static Few few_of(const lc_layer& l) {
  Few f;
  const int64_t reach = (l.kernel_width - 1) * l.dilation_width + 1;
  f.quads = ceil_div(l.kernel_height, 4);
  f.rows = l.dilation_height == 1 ? (4 * f.quads - l.kernel_height) / l.stride_height + 1 : 1;
  f.columns = (l.out_width - 1) * l.stride_width + reach;
  f.planes = least(l.stride_width, reach);
  f.plane = ceil_div(f.columns, l.stride_width) * l.channels + 2 * kWoven + LC_BYTES;
  f.lanes = ceil_div(l.channels + LC_BYTES, 16) * 16;
  f.weights = l.kernel_width * f.quads * kParts * f.lanes * 4;
  return f;
}

static int64_t few_bytes(const lc_layer& l) {
  const Few f = few_of(l);
  return f.lanes * 8 + f.rows * f.weights;
}
// Floats of scratch memory: woven rows, and a row of y as it is before its pixels are moved apart.
static int64_t few_scratch(const lc_layer& l) {
  const Few f = few_of(l);
  return f.quads * f.planes * f.plane + ceil_div(l.out_width * l.channels + LC_BYTES, 16) * 16;
}

static void few_pack(const lc_layer& l, int8_t* packed) {
  const Few f = few_of(l);
  const int64_t taps = l.kernel_height * l.kernel_width, channels = l.channels;
  int32_t* const starts = (int32_t*)packed;
  float* const factors = (float*)(starts + f.lanes);
  int8_t* to = (int8_t*)(factors + f.lanes);
  for (int64_t v = 0; v < f.lanes; ++v) {
    const int64_t c = v % channels;
    int32_t sum = 0;
    for (int64_t k = 0; k < taps; ++k) sum += l.bytes[k * channels + c];
    starts[v] = l.sums[c] - l.zero * sum, factors[v] = lc_factor_of(l, l.scales[c]);
  }
  for (int64_t o = 0; o < f.rows; ++o)
    for (int64_t column = 0; column < l.kernel_width; ++column)
      for (int64_t d = 0; d < f.quads; ++d, to += kParts * f.lanes * 4)
        for (int64_t v = 0; v < f.lanes; ++v) {
          int8_t four[4];
          for (int64_t b = 0; b < 4; ++b) {
            const int64_t row = 4 * d + b - o * l.stride_height;
            const bool there = row >= 0 && row < l.kernel_height;
            four[b] = there ? l.bytes[(row * l.kernel_width + column) * channels + v % channels] : (int8_t)0;
          }
          pack_four(to + v * 4, f.lanes * 4, four);
        }
}

// --- weaving ----------------------------------------------------------------------------------------------------------

LC_INLINE void weave_vector(int32_t* to, const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
#if LC_BYTES == 64
  const Ints<64> all = widened<64>(a) | widened<64>(b) << 8 | widened<64>(c) << 16 | widened<64>(d) << 24;
  __builtin_memcpy(to, &all, sizeof all);
#else
  const Ints<16> p = load_ints<16>(a), q = load_ints<16>(b), r = load_ints<16>(c), s = load_ints<16>(d);
  const Ints<16> l0 = low_bytes(p, q), l1 = low_bytes(r, s), h0 = high_bytes(p, q), h1 = high_bytes(r, s);
  const Ints<16> all[] = {low_words(l0, l1), high_words(l0, l1), low_words(h0, h1), high_words(h0, h1)};
  __builtin_memcpy(to, all, sizeof all);
#endif
}
// `count` dwords, and as many more as make vectors whole; of x no more than `there` bytes are read, count <= there.
static void weave(int32_t* to, const uint8_t* const* rows, int64_t from, int64_t count, int64_t there) {
  for (int64_t i = 0; i < count; i += kWoven, from += kWoven, to += kWoven) {
    if (i + kWoven <= there) {
      weave_vector(to, rows[0] + from, rows[1] + from, rows[2] + from, rows[3] + from);
      continue;
    }
    uint8_t some[4][kWoven] = {};
    for (int64_t k = 0; k < 4; ++k) __builtin_memcpy(some[k], rows[k] + from, (size_t)(there - i));
    weave_vector(to, some[0], some[1], some[2], some[3]);
  }
}

// Four rows of x to all planes, in the order of the columns: what is written behind one is the next one's.
static void weave_rows(const lc_layer& l, const Few& f, const uint8_t* const* rows, int64_t x_pixel, int32_t* to) {
  const int64_t channels = l.channels, stride = l.stride_width, inside = least(l.width, f.columns - l.pad_left);
  const int64_t size = (l.width - 1) * x_pixel + channels;
  const Ints<16> zeros = splat_byte<16>(l.zero);
  const auto around = [&](int32_t* at, int64_t count) {
    for (int64_t i = 0; i < count; i += 4) __builtin_memcpy(at + i, &zeros, sizeof zeros);
  };
  if (stride == 1 && x_pixel == channels) {
    around(to, least(l.pad_left, f.columns) * channels);
    if (inside > 0) weave(to + l.pad_left * channels, rows, 0, inside * channels, size);
    const int64_t behind = l.pad_left + most(inside, 0);
    if (behind < f.columns) around(to + behind * channels, (f.columns - behind) * channels);
    return;
  }
  int32_t* line = to;
  for (int64_t column = 0, plane = 0; column < f.columns; ++column) {
    const int64_t x = column - l.pad_left;
    if (plane < f.planes) {
      int32_t* const at = line + plane * f.plane;
      if (x < 0 || x >= l.width)
        around(at, channels);
      else
        weave(at, rows, x * x_pixel, channels, size - x * x_pixel);
    }
    if (++plane == stride) plane = 0, line += channels;
  }
}

// --- sums -------------------------------------------------------------------------------------------------------------

LC_INLINE Four<LC_BYTES> repeated_weights(const int8_t* w, int64_t part) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  (void)part;
  return {load_ints<LC_BYTES>(w)};
#else
  return {load_ints<LC_BYTES>(w), load_ints<LC_BYTES>(w + part)};
#endif
}

// A row of y. Same: a vector of sums begins with the same channel as the next one. Taps: so many dwords, or 0: any number.
template <bool Real, bool Same, int Taps>
static void few_row(const lc_layer& l, const Few& f, const int8_t* packed, const int8_t* w, const int32_t* x, const int64_t* places,
                    uint8_t* y) {
  constexpr int N = LC_BYTES;
  const Limits<N> to = limits_of<N>(l);
  const int64_t size = l.out_width * l.channels, taps = Taps ? (int64_t)Taps : l.kernel_width * f.quads, part = f.lanes * 4;
  int64_t phase = 0;
  for (int64_t done = 0; done < size; done += N) {
    const bool last = size - done < N && size >= N;
    const int64_t at = last ? size - N : done, count = least(N, size - at);
    if (!Same && last) phase = at % l.channels;
    const int8_t *const starts = packed + phase * 4, *const factors = starts + f.lanes * 4, *v = w + phase * 4;
    Ints<N> sum[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) sum[q] = load_ints<N>(starts + (Same ? 0 : q * N));
#pragma GCC unroll 3
    for (int64_t t = 0; t < taps; ++t, v += kParts * part) {
      const int32_t* from = x + places[t] + at;
      if (Same) {
        const Four<N> k = repeated_weights(v, part);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) add_dot<N>(sum[q], four_of<N>(load_ints<N>(from + q * kFloats)), k);
      } else {
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q)
          add_dot<N>(sum[q], four_of<N>(load_ints<N>(from + q * kFloats)), repeated_weights(v + q * N, part));
      }
    }
    if (Real) {
      alignas(64) int32_t sums[N];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) __builtin_memcpy(sums + q * kFloats, &sum[q], sizeof sum[q]);
      finish_sums(l, sums, (const float*)factors, nullptr, y + (l.y_quantized ? at : at * 4), count);
    } else {
      Floats<N> t[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) t[q] = floats<N>(sum[q]) * (Floats<N>)load_ints<N>(factors + (Same ? 0 : q * N));
      store_some<N>(y + at, in_order(to_bytes<kBounded, N>(to, t[0], t[1], t[2], t[3])), count);
    }
    if (!Same) phase += N % l.channels, phase -= phase >= l.channels ? l.channels : 0;
  }
}

typedef void (*FewRow)(const lc_layer&, const Few&, const int8_t*, const int8_t*, const int32_t*, const int64_t*, uint8_t*);
template <bool Real, bool Same>
static FewRow few_row_of(int64_t taps) {
  return taps == 3 ? few_row<Real, Same, 3> : few_row<Real, Same, 0>;
}

// As channels_rows.
static void few_rows(const lc_layer& l, const uint8_t* none, const uint8_t* x, int64_t x_row, int64_t x_pixel, int64_t ring,
                     int64_t row, int64_t count, uint8_t* y, int64_t y_row, int64_t y_pixel, float* scratch) {
  const Few f = few_of(l);
  const int64_t channels = l.channels, taps = l.kernel_width * f.quads, number = l.y_quantized ? 1 : 4;
  const bool same = kFloats % channels == 0;
  const int8_t* const packed = (const int8_t*)l.packed;
  int32_t* const woven = (int32_t*)scratch;
  uint8_t* const apart = (uint8_t*)(woven + f.quads * f.planes * f.plane);
  const FewRow run = l.real ? (same ? few_row_of<true, true>(taps) : few_row_of<true, false>(taps))
                            : (same ? few_row_of<false, true>(taps) : few_row_of<false, false>(taps));
  int64_t places[kFewTaps];
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t column = t / f.quads * l.dilation_width;
    places[t] = (t % f.quads * f.planes + column % l.stride_width) * f.plane + column / l.stride_width * channels;
  }
  for (int64_t done = 0, some; done < count; done += some) {
    some = least(f.rows, count - done);
    const int64_t top = (row + done) * l.stride_height - l.pad_top, reach = (some - 1) * l.stride_height + l.kernel_height;
    for (int64_t d = 0; d < f.quads; ++d) {
      const uint8_t* rows[4];
      for (int64_t b = 0; b < 4; ++b) {
        const int64_t k = 4 * d + b, r = top + k * l.dilation_height;
        rows[b] = k < reach && r >= 0 && r < l.height ? x + r % ring * x_row : none;
      }
      weave_rows(l, f, rows, x_pixel, woven + d * f.planes * f.plane);
    }
    for (int64_t o = 0; o < some; ++o) {
      uint8_t* const to = y + (done + o) * y_row * number;
      const int8_t* const weights = packed + f.lanes * 8 + o * f.weights;
      run(l, f, packed, weights, woven, places, y_pixel == channels ? to : apart);
      for (int64_t i = 0; y_pixel != channels && i < l.out_width; ++i)
        __builtin_memcpy(to + i * y_pixel * number, apart + i * channels * number, (size_t)(channels * number));
    }
  }
}
