// Rows of a depthwise convolution over bytes, one block of N channels. A window's taps are cut into dwords of four (taps_of in
// bytes_depthwise.inl.h): columns are unpacked once, and wait in registers for the outputs that share them. Columns and rows
// that are not there read as the zero point.
//
// Packed: N sums to start from, N factors, then weights [dword][quarter of the channels][N].

enum { kDwordsThree = 3, kDwordsFive = 8, kDwordsFiveTwo = 7, kMostRows = 6 };

// Rows of x under one row of y, or two, and where that goes.
struct Line {
  const uint8_t* const* rows;  // a row of zero points where there is none
  int64_t x_pixel;
  uint8_t* y;
  int64_t y_row, y_pixel;  // numbers
};

// The columns of R rows, one after the other.
template <int N, int R>
struct Columns {
  const uint8_t* rows[R];
  int64_t at, step, end;  // places in all of them
  Ints<N> zero;

  LC_INLINE_MEMBER Columns(const lc_layer& l, const Line& t, int64_t channel, int64_t first)
      : at(first * t.x_pixel), step(t.x_pixel), end(l.width * t.x_pixel), zero(splat_byte<N>(l.zero)) {
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k) rows[k] = t.rows[k] + channel;
  }
  LC_INLINE_MEMBER void next(Ints<N>* v) {
    if ((uint64_t)at < (uint64_t)end) {
#pragma GCC unroll 8
      for (int k = 0; k < R; ++k) v[k] = load_ints<N>(rows[k] + at);
    } else {
#pragma GCC unroll 8
      for (int k = 0; k < R; ++k) v[k] = zero;
    }
    at += step;
    __asm__("" : "+r"(at));  // one place, or the compiler would move a pointer for each row, in vectors
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
LC_INLINE Floats<N> factor_of(const int8_t* packed, int q) {
  return (Floats<N>)load_ints<N>(packed + (4 + q) * N);
}

template <int N>
LC_INLINE Four<N> weights(const int8_t* packed, int dword, int q) {
  return load_weights<N>(packed + (8 + (dword * 4 + q) * kParts) * N);
}

// What waits until all four quarters are there: sums that are `real`, else the nearest integers in units of y.
template <int N, int form>
LC_INLINE Ints<N> settled(Ints<N> sum, Floats<N> factor) {
  return form == kReal ? sum : nearest(floats<N>(sum) * factor);
}
template <int N, int form>
LC_INLINE Ints<N> settled(Ints<N> sum, const int8_t* packed, int q) {
  return settled<N, form>(sum, factor_of<N>(packed, q));
}

// Four quarters as results of y from number `at` on: N of them, `count` where the form is kReal.
template <int N, int form>
LC_INLINE void write_settled(const lc_layer& l, const Limits<N>& to, const Ints<N>* v, const int8_t* packed, uint8_t* y,
                             int64_t at, int64_t count) {
  if constexpr (form == kReal) {
    alignas(64) int32_t sums[N];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q)
      for (int lane = 0; lane < N / 16; ++lane)
        __builtin_memcpy(sums + 16 * lane + 4 * q, (const char*)&v[q] + 16 * lane, 16);
    finish_sums(l, sums, (const float*)(packed + 4 * N), nullptr, y + (l.y_quantized ? at : at * 4), count);
  } else {
    const Ints<N> all = words_to_bytes<form, N>(to, words(v[0], v[1]), words(v[2], v[3]));
    __builtin_memcpy(y + at, &all, N);
  }
}

// Dwords of three rows, and a fourth for the second row of y: its weights stand one byte further.
template <int N, int form, int Rows>
static void three_by_three(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  const Limits<N> to = limits_of<N>(l);
  Four<N> a[4], b[4], d[4];
  Columns<N, 4> columns(l, t, c, -l.pad_left);
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
        add_dot<N>(sum[q], a[q], weights<N>(packed, r * kDwordsThree, q));
        add_dot<N>(sum[q], b[q], weights<N>(packed, r * kDwordsThree + 1, q));
        add_dot<N>(sum[q], d[q], weights<N>(packed, r * kDwordsThree + 2, q));
        sum[q] = settled<N, form>(sum[q], packed, q);
      }
      write_settled<N, form>(l, to, sum, packed, t.y, at + r * t.y_row, N);
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
  Columns<N, 3> columns(l, t, c, -l.pad_left);
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
      add_dot<N>(sum[q], a[q], weights<N>(packed, 0, q));
      add_dot<N>(sum[q], b[q], weights<N>(packed, 1, q));
      add_dot<N>(sum[q], d[q], weights<N>(packed, 2, q));
      a[q] = d[q], b[q] = e[q];
      sum[q] = settled<N, form>(sum[q], packed, q);
    }
    write_settled<N, form>(l, to, sum, packed, t.y, at, N);
  }
}

// --- half of the channels at a time, weights in registers --------------------------------------------------------------

// The first half of the results waits as words, or as sums where they are real, for at most so many columns.
enum { kHeld = 28 };

template <int N>
struct Half {  // what both quarters of a half start from and are multiplied by
  Ints<N> start[2];
  Floats<N> factor[2];
  LC_INLINE_MEMBER Half(const int8_t* packed, int q0) {
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      start[q] = kept_ints<N>(start_of<N>(packed, q0 + q));
      factor[q] = (Floats<N>)kept_ints<N>((Ints<N>)factor_of<N>(packed, q0 + q));
    }
  }
};

template <int N, int form, bool High>
LC_INLINE void write_half(const lc_layer& l, const Limits<N>& to, const Ints<N>* v, const int8_t* packed, Ints<N>* held,
                          uint8_t* y, int64_t at) {
  if constexpr (form == kReal) {
    const Ints<N> all[] = {held[0], held[1], v[0], v[1]};
    if (High)
      write_settled<N, form>(l, to, all, packed, y, at, N);
    else
      held[0] = v[0], held[1] = v[1];
  } else if constexpr (High) {
    const Ints<N> all = words_to_bytes<form, N>(to, held[0], words(v[0], v[1]));
    __builtin_memcpy(y + at, &all, N);
  } else {
    held[0] = words(v[0], v[1]);
  }
}

template <int N, int form, int Rows, bool High>
LC_INLINE void half_three(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c, int64_t first, int64_t count,
                          Ints<N> (*held)[2]) {
  constexpr int q0 = High ? 2 : 0;
  const Limits<N> to = limits_of<N>(l);
  const Half<N> half(packed, q0);
  Four<N> w[Rows * 3][2], a[2], b[2], d[2];
#pragma GCC unroll 6
  for (int i = 0; i < Rows * 3; ++i)
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) w[i][q] = kept_weights<N>(weights<N>(packed, i, q0 + q));
  Columns<N, 4> columns(l, t, c, first - l.pad_left);
  const auto next = [&](Four<N>* four) {
    Ints<N> v[4];
    columns.next(v);
    pair_words<N>(four, unpacked_bytes<High, N>(v[0], v[1]), unpacked_bytes<High, N>(v[2], v[3]));
  };
  next(a), next(b);
  int64_t at = c + first * t.y_pixel;
  for (int64_t x = 0; x < count; ++x, at += t.y_pixel) {
    next(d);
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      Ints<N> sum[2];
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        sum[q] = half.start[q];
        add_dot<N>(sum[q], a[q], w[r * 3][q]);
        add_dot<N>(sum[q], b[q], w[r * 3 + 1][q]);
        add_dot<N>(sum[q], d[q], w[r * 3 + 2][q]);
        sum[q] = settled<N, form>(sum[q], half.factor[q]);
      }
      write_half<N, form, High>(l, to, sum, packed, held[x * Rows + r], t.y, at + r * t.y_row);
    }
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) a[q] = b[q], b[q] = d[q];
  }
}

// Calls f(first column, how many) for parts of a row of y, of nearly one length.
template <int Most, typename F>
LC_INLINE void each_part(const lc_layer& l, F f) {
  const int64_t parts = ceil_div(l.out_width, Most);
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t first = l.out_width * p / parts;
    f(first, l.out_width * (p + 1) / parts - first);
  }
}
template <int N, int form, int Rows>
static void three_by_three_held(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  Ints<N> held[kHeld * Rows][2];
  each_part<kHeld>(l, [&](int64_t first, int64_t count) {
    half_three<N, form, Rows, false>(l, t, packed, c, first, count, held);
    half_three<N, form, Rows, true>(l, t, packed, c, first, count, held);
  });
}
// --- 5x5 -------------------------------------------------------------------------------------------------------------

// Columns of four rows, and of the fifth and sixth: these two beside those of the next column.
template <int N, int form, int Rows>
static void five_by_five(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  const Limits<N> to = limits_of<N>(l);
  Four<N> four[5][4], two[4][4];
  Columns<N, 6> columns(l, t, c, -l.pad_left);
  Ints<N> low = {}, high = {};
  const auto next = [&](Four<N>* f, Four<N>* pair) {
    Ints<N> v[6];
    columns.next(v);
    pair_words<N>(f, low_bytes(v[0], v[1]), low_bytes(v[2], v[3]));
    pair_words<N>(f + 2, high_bytes(v[0], v[1]), high_bytes(v[2], v[3]));
    const Ints<N> l2 = low_bytes(v[4], v[5]), h2 = high_bytes(v[4], v[5]);
    pair_words<N>(pair, low, l2), pair_words<N>(pair + 2, high, h2);
    low = l2, high = h2;
  };
  next(four[0], two[0]), next(four[1], two[0]), next(four[2], two[1]), next(four[3], two[2]);
  int64_t at = c;
  for (int64_t x = l.out_width; x > 0; --x, at += t.y_pixel) {
    next(four[4], two[3]);
    packed = read_again(packed);
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      Ints<N> sum[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        sum[q] = start_of<N>(packed, q);
#pragma GCC unroll 5
        for (int i = 0; i < 5; ++i) add_dot<N>(sum[q], four[i][q], weights<N>(packed, r * kDwordsFive + i, q));
        add_dot<N>(sum[q], two[0][q], weights<N>(packed, r * kDwordsFive + 5, q));
        add_dot<N>(sum[q], two[2][q], weights<N>(packed, r * kDwordsFive + 6, q));
        add_dot<N>(sum[q], two[3][q], weights<N>(packed, r * kDwordsFive + 7, q));
        sum[q] = settled<N, form>(sum[q], packed, q);
      }
      write_settled<N, form>(l, to, sum, packed, t.y, at + r * t.y_row, N);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) four[i][q] = four[i + 1][q];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) two[i][q] = two[i + 1][q];
    }
  }
}

// Stride 2: columns of four rows, and of the fifth row four columns, of which two are the next output's.
template <int N, int form, int Rows>
static void five_by_five_two(const lc_layer& l, const Line& t, const int8_t* packed, int64_t c) {
  const Limits<N> to = limits_of<N>(l);
  Four<N> four[6][4], now[4], next[4];
  Columns<N, 5> columns(l, t, c, -l.pad_left);
  Ints<N> low = {}, high = {};
  const auto two_columns = [&](Four<N>* f, Four<N>* g, Four<N>* row) {
    Ints<N> u[5], v[5];
    columns.next(u), columns.next(v);
    pair_words<N>(f, low_bytes(u[0], u[1]), low_bytes(u[2], u[3]));
    pair_words<N>(f + 2, high_bytes(u[0], u[1]), high_bytes(u[2], u[3]));
    pair_words<N>(g, low_bytes(v[0], v[1]), low_bytes(v[2], v[3]));
    pair_words<N>(g + 2, high_bytes(v[0], v[1]), high_bytes(v[2], v[3]));
    const Ints<N> l2 = low_bytes(u[4], v[4]), h2 = high_bytes(u[4], v[4]);
    pair_words<N>(row, low, l2), pair_words<N>(row + 2, high, h2);
    low = l2, high = h2;
  };
  two_columns(four[0], four[1], now), two_columns(four[2], four[3], now);
  int64_t at = c;
  for (int64_t x = l.out_width; x > 0; --x, at += t.y_pixel) {
    two_columns(four[4], four[5], next);
    packed = read_again(packed);
    Ints<N> sum[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      sum[q] = start_of<N>(packed, q);
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) add_dot<N>(sum[q], four[i][q], weights<N>(packed, i, q));
      add_dot<N>(sum[q], now[q], weights<N>(packed, 5, q));
      add_dot<N>(sum[q], next[q], weights<N>(packed, 6, q));
      sum[q] = settled<N, form>(sum[q], packed, q);
      now[q] = next[q];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) four[i][q] = four[i + 2][q];
    }
    write_settled<N, form>(l, to, sum, packed, t.y, at, N);
  }
}
