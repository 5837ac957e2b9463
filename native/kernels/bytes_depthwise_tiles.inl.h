// Rows of a depthwise convolution over bytes, one block of N channels. A window's taps are cut into dwords of four (taps_of in
// bytes_depthwise.inl.h): columns are unpacked once, and wait in registers for the outputs that share them. Columns and rows
// that are not there read as the zero point.
//
// Packed: N sums to start from, N factors, then weights [dword][quarter of the channels][N].

enum Form { kPlain, kBounds, kReal };  // kPlain: y's zero is 0 and its bounds are those of a byte
enum { kDwordsThree = 3, kDwordsFive = 8, kDwordsFiveTwo = 7, kMostRows = 6 };

// Rows of x under one row of y, or two, and where that goes.
struct Line {
  const uint8_t* const* rows;  // `none` where there is none
  const uint8_t* none;         // a pixel of zero points
  int64_t x_pixel;
  uint8_t* y;
  int64_t y_row, y_pixel;  // numbers
};

// The columns of R rows, one after the other.
template <int N, int R>
struct Columns {
  const uint8_t* at[R];
  int64_t step[R];
  int64_t column, width;
  Ints<N> zero;

  LC_INLINE_MEMBER Columns(const lc_layer& l, const Line& t, int64_t first_row, int64_t channel, int64_t first)
      : column(first), width(l.width), zero(splat_byte<N>(l.zero)) {
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k) {
      const uint8_t* row = t.rows[first_row + k];
      step[k] = row == t.none ? 0 : t.x_pixel;
      at[k] = row + channel + first * step[k];
    }
  }
  LC_INLINE_MEMBER void next(Ints<N>* v) {
    if ((uint64_t)column < (uint64_t)width) {
#pragma GCC unroll 8
      for (int k = 0; k < R; ++k) v[k] = load_ints<N>(at[k]);
    } else {
#pragma GCC unroll 8
      for (int k = 0; k < R; ++k) v[k] = zero;
    }
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k) at[k] += step[k];
    ++column;
  }
};

// The packed weights as the compiler must read them again: it would move them all out of the loop, into memory.
LC_INLINE const int8_t* read_again(const int8_t* p) {
  __asm__("" : "+r"(p));
  return p;
}
template <int N>
LC_INLINE Ints<N> start_of(const int8_t* packed, int q) {
  return load_ints<N>(packed + q * N);
}
template <int N>
LC_INLINE Floats<N> scaled(Ints<N> sum, const int8_t* packed, int q) {
  return floats<N>(sum) * (Floats<N>)load_ints<N>(packed + (4 + q) * N);
}
template <int N>
LC_INLINE const int8_t* weights_of(const int8_t* packed, int dword, int q) {
  return packed + (8 + (dword * 4 + q) * kParts) * N;
}

// N sums in lane order as results of y from number `at` on; kReal: not bounded, or fewer than N of them.
template <int N, int form>
LC_INLINE void write_sums(const lc_layer& l, const Limits<N>& to, const Ints<N>* sum, const int8_t* packed, uint8_t* y,
                          int64_t at, int64_t count) {
  if constexpr (form == kReal) {
    alignas(64) int32_t sums[N];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q)
      for (int lane = 0; lane < N / 16; ++lane)
        __builtin_memcpy(sums + 16 * lane + 4 * q, (const char*)&sum[q] + 16 * lane, 16);
    finish_sums(l, sums, (const float*)(packed + 4 * N), nullptr, y + (l.y_quantized ? at : at * 4), count);
  } else {
    const Ints<N> all = to_bytes<form == kPlain, N>(to, scaled<N>(sum[0], packed, 0), scaled<N>(sum[1], packed, 1),
                                                    scaled<N>(sum[2], packed, 2), scaled<N>(sum[3], packed, 3));
    __builtin_memcpy(y + at, &all, N);
  }
}

// Dwords of three rows, and a fourth for the second row of y: its weights stand one byte further.
template <int N, int form, int Rows>
static void three_by_three(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  const Limits<N> to = limits_of<N>(l);
  Four<N> a[4], b[4], d[4];
  Columns<N, 4> columns(l, t, 0, c, -l.pad_left);
  const auto next = [&](Four<N>* four) {
    Ints<N> v[4];
    columns.next(v);
    pair_words<N>(four, low_bytes(v[0], v[1]), low_bytes(v[2], v[3]));
    pair_words<N>(four + 2, high_bytes(v[0], v[1]), high_bytes(v[2], v[3]));
  };
  next(a), next(b);
  int64_t at = c;
  for (int64_t x = l.out_width; x > 0; --x, at += t.y_pixel) {
    next(d);
    packed = read_again(packed);
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      Ints<N> sum[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        sum[q] = start_of<N>(packed, q);
        add_dot<N>(sum[q], a[q], weights_of<N>(packed, r * kDwordsThree, q));
        add_dot<N>(sum[q], b[q], weights_of<N>(packed, r * kDwordsThree + 1, q));
        add_dot<N>(sum[q], d[q], weights_of<N>(packed, r * kDwordsThree + 2, q));
      }
      write_sums<N, form>(l, to, sum, packed, t.y, at + r * t.y_row, N);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) a[q] = b[q], b[q] = d[q];
  }
}

// Stride 2. Of columns a, b under an output: dwords (a0 a1 a2 b2), (b0 b1 a2 b2), and the first of the next ones.
template <int N, int form, int Rows>
static void three_by_three_two(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  const Limits<N> to = limits_of<N>(l);
  Four<N> a[4], b[4], d[4], e[4];
  Columns<N, 3> columns(l, t, 0, c, -l.pad_left);
  const auto next = [&](Four<N>* first, Four<N>* second) {
    Ints<N> u[3], v[3];
    columns.next(u), columns.next(v);
    const Ints<N> low = low_bytes(u[2], v[2]), high = high_bytes(u[2], v[2]);
    pair_words<N>(first, low_bytes(u[0], u[1]), low), pair_words<N>(first + 2, high_bytes(u[0], u[1]), high);
    pair_words<N>(second, low_bytes(v[0], v[1]), low), pair_words<N>(second + 2, high_bytes(v[0], v[1]), high);
  };
  next(a, b);
  int64_t at = c;
  for (int64_t x = l.out_width; x > 0; --x, at += t.y_pixel) {
    next(d, e);
    packed = read_again(packed);
    Ints<N> sum[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      sum[q] = start_of<N>(packed, q);
      add_dot<N>(sum[q], a[q], weights_of<N>(packed, 0, q));
      add_dot<N>(sum[q], b[q], weights_of<N>(packed, 1, q));
      add_dot<N>(sum[q], d[q], weights_of<N>(packed, 2, q));
      a[q] = d[q], b[q] = e[q];
    }
    write_sums<N, form>(l, to, sum, packed, t.y, at, N);
  }
}

// 5x5: half of the channels at a time, as there are registers for no more. The first half of the results waits as words, or
// as sums where they are real, for at most so many columns.
enum { kHeld = 28 };

template <int N, int form, bool High>
LC_INLINE void write_half(const lc_layer& l, const Limits<N>& to, const Ints<N>* sum, const int8_t* packed, Ints<N>* held,
                          uint8_t* y, int64_t at) {
  if constexpr (form == kReal) {
    if (!High) {
      held[0] = sum[0], held[1] = sum[1];
    } else {
      const Ints<N> all[] = {held[0], held[1], sum[0], sum[1]};
      write_sums<N, form>(l, to, all, packed, y, at, N);
    }
  } else {
    constexpr int q = High ? 2 : 0;
    Ints<N> all = words(nearest(scaled<N>(sum[0], packed, q)), nearest(scaled<N>(sum[1], packed, q + 1)));
    if (form == kBounds) all = add_words(all, to.zero);
    if (!High) {
      held[0] = all;
      return;
    }
    all = bytes(held[0], all);
    if (form == kBounds) all = lesser_bytes(greater_bytes(all, to.low), to.high);
    __builtin_memcpy(y + at, &all, N);
  }
}

// Columns of four rows, and of the fifth and sixth: these two beside those of the next column.
template <int N, int form, int Rows, bool High>
LC_INLINE void half_five(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c, int64_t first, int64_t count,
                         Ints<N> (*held)[2]) {
  constexpr int q0 = High ? 2 : 0;
  const Limits<N> to = limits_of<N>(l);
  Four<N> four[5][2], two[5][2];
  Columns<N, 4> above(l, t, 0, c, first - l.pad_left);
  Columns<N, 2> below(l, t, 4, c, first - l.pad_left);
  Ints<N> last;
  const auto next_four = [&](Four<N>* f) {
    Ints<N> v[4];
    above.next(v);
    pair_words<N>(f, unpacked_bytes<High, N>(v[0], v[1]), unpacked_bytes<High, N>(v[2], v[3]));
  };
  const auto next_two = [&](Four<N>* f) {
    Ints<N> v[2];
    below.next(v);
    const Ints<N> now = unpacked_bytes<High, N>(v[0], v[1]);
    pair_words<N>(f, last, now);
    last = now;
  };
  Ints<N> v[2];
  below.next(v);
  last = unpacked_bytes<High, N>(v[0], v[1]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) next_four(four[i]), next_two(two[i]);
  int64_t at = c + first * t.y_pixel;
  for (int64_t x = 0; x < count; ++x, at += t.y_pixel) {
    next_four(four[4]), next_two(two[4]);
    packed = read_again(packed);
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      Ints<N> sum[2];
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        sum[q] = start_of<N>(packed, q0 + q);
#pragma GCC unroll 5
        for (int i = 0; i < 5; ++i) add_dot<N>(sum[q], four[i][q], weights_of<N>(packed, r * kDwordsFive + i, q0 + q));
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) add_dot<N>(sum[q], two[2 * i][q], weights_of<N>(packed, r * kDwordsFive + 5 + i, q0 + q));
      }
      write_half<N, form, High>(l, to, sum, packed, held[x * Rows + r], t.y, at + r * t.y_row);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) four[i][q] = four[i + 1][q], two[i][q] = two[i + 1][q];
  }
}

// Stride 2: columns of four rows, and of the fifth row four columns, of which two are the next output's.
template <int N, int form, int Rows, bool High>
LC_INLINE void half_five_two(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c, int64_t first, int64_t count,
                             Ints<N> (*held)[2]) {
  constexpr int q0 = High ? 2 : 0;
  const Limits<N> to = limits_of<N>(l);
  Four<N> four[5][2], now[2], next[2];
  Columns<N, 4> above(l, t, 0, c, first * 2 - l.pad_left);
  Columns<N, 1> below(l, t, 4, c, first * 2 - l.pad_left);
  Ints<N> last;
  const auto next_four = [&](Four<N>* f) {
    Ints<N> v[4];
    above.next(v);
    pair_words<N>(f, unpacked_bytes<High, N>(v[0], v[1]), unpacked_bytes<High, N>(v[2], v[3]));
  };
  const auto next_pair = [&] {
    Ints<N> u, v;
    below.next(&u), below.next(&v);
    return unpacked_bytes<High, N>(u, v);
  };
  const auto next_fifth = [&](Four<N>* f) {
    const Ints<N> pair = next_pair();
    pair_words<N>(f, last, pair);
    last = pair;
  };
  last = next_pair();
  next_fifth(now);
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) next_four(four[i]);
  int64_t at = c + first * t.y_pixel;
  for (int64_t x = 0; x < count; ++x, at += t.y_pixel) {
    next_four(four[3]), next_four(four[4]), next_fifth(next);
    packed = read_again(packed);
    Ints<N> sum[2];
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      sum[q] = start_of<N>(packed, q0 + q);
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) add_dot<N>(sum[q], four[i][q], weights_of<N>(packed, i, q0 + q));
      add_dot<N>(sum[q], now[q], weights_of<N>(packed, 5, q0 + q));
      add_dot<N>(sum[q], next[q], weights_of<N>(packed, 6, q0 + q));
      now[q] = next[q];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) four[i][q] = four[i + 2][q];
    }
    write_half<N, form, High>(l, to, sum, packed, held[x], t.y, at);
  }
}

template <int N, int form, int Rows>
static void five_by_five(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  Ints<N> held[kHeld * Rows][2];
  const int64_t parts = ceil_div(l.out_width, kHeld);
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t first = l.out_width * p / parts, count = l.out_width * (p + 1) / parts - first;
    half_five<N, form, Rows, false>(l, t, packed, c, first, count, held);
    half_five<N, form, Rows, true>(l, t, packed, c, first, count, held);
  }
}
template <int N, int form, int Rows>
static void five_by_five_two(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  Ints<N> held[kHeld][2];
  const int64_t parts = ceil_div(l.out_width, kHeld);
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t first = l.out_width * p / parts, count = l.out_width * (p + 1) / parts - first;
    half_five_two<N, form, Rows, false>(l, t, packed, c, first, count, held);
    half_five_two<N, form, Rows, true>(l, t, packed, c, first, count, held);
  }
}

// --- any window: four rows of it at a time, column by column ----------------------------------------------------------

struct WholeLanes {
  template <int N>
  LC_INLINE_MEMBER Ints<N> load(const uint8_t* p) const {
    return load_ints<N>(p);
  }
};
struct SomeLanes {  // lane v is the input of output channel first + v
  int64_t first, lanes, multiplier;
  template <int N>
  LC_INLINE_MEMBER Ints<N> load(const uint8_t* p) const {
    uint8_t some[N] = {};
    for (int64_t v = 0; v < lanes; ++v) some[v] = p[(first + v) / multiplier];
    return load_ints<N>(some);
  }
};

// Outputs of `count` channels: N, or fewer.
template <int N, int form, typename Lanes>
LC_INLINE void any_window(const lc_layer& l, const Line& t, const int8_t* packed, int64_t channel, int64_t c, int64_t count,
                          Lanes lanes) {
  constexpr int together = N == 64 ? 4 : 2;
  const Limits<N> to = limits_of<N>(l);
  const Ints<N> zero = splat_byte<N>(l.zero);
  for (int64_t first = 0; first < l.out_width; first += together) {
    Ints<N> sum[together][4];
#pragma GCC unroll 4
    for (int i = 0; i < together; ++i)
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) sum[i][q] = start_of<N>(packed, q);
    const int8_t* w = weights_of<N>(packed, 0, 0);
    for (int64_t k = 0; k < l.kernel_height; k += 4) {
      const uint8_t* rows[4];
      for (int64_t i = 0; i < 4; ++i) rows[i] = k + i < l.kernel_height ? t.rows[k + i] : t.none;
      for (int64_t j = 0; j < l.kernel_width; ++j, w += 4 * kParts * N) {
#pragma GCC unroll 4
        for (int i = 0; i < together; ++i) {
          const int64_t column = (first + i) * l.stride_width - l.pad_left + j * l.dilation_width;
          Ints<N> v[4] = {zero, zero, zero, zero};
          if ((uint64_t)column < (uint64_t)l.width) {
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n)
              v[n] = lanes.template load<N>(rows[n] + (rows[n] == t.none ? 0 : column * t.x_pixel) + channel);
          }
          Four<N> four[4];
          pair_words<N>(four, low_bytes(v[0], v[1]), low_bytes(v[2], v[3]));
          pair_words<N>(four + 2, high_bytes(v[0], v[1]), high_bytes(v[2], v[3]));
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) add_dot<N>(sum[i][q], four[q], w + q * kParts * N);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < together; ++i)
      if (first + i < l.out_width) write_sums<N, form>(l, to, sum[i], packed, t.y, (first + i) * t.y_pixel + c, count);
  }
}
template <int N, int form, int Rows>
static void any_window_whole(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  any_window<N, form>(l, t, packed, c, c, N, WholeLanes{});
}
template <int N>
static void any_window_some(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  const int64_t count = least(N, l.out_channels - c);
  any_window<N, kReal>(l, t, packed, 0, c, count, SomeLanes{c, count, l.groups});
}
