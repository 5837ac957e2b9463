// Depthwise convolutions over bytes of any window and multiplier: four rows of the window at a time, column
// by column.

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
    const int8_t* w = packed + 8 * N;
    for (int64_t k = 0; k < l.kernel_height; k += 4) {
      const uint8_t* rows[4];
      for (int64_t i = 0; i < 4; ++i) rows[i] = t.rows[least(k + i, l.kernel_height - 1)];
      for (int64_t j = 0; j < l.kernel_width; ++j, w += 4 * kParts * N) {
#pragma GCC unroll 4
        for (int i = 0; i < together; ++i) {
          const int64_t column = (first + i) * l.stride_width - l.pad_left + j * l.dilation_width;
          Ints<N> v[4] = {zero, zero, zero, zero};
          if ((uint64_t)column < (uint64_t)l.width) {
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n)
              v[n] = lanes.template load<N>(rows[n] + column * t.x_pixel + channel);
          }
          Four<N> four[4];
          pair_words<N>(four, low_bytes(v[0], v[1]), low_bytes(v[2], v[3]));
          pair_words<N>(four + 2, high_bytes(v[0], v[1]), high_bytes(v[2], v[3]));
#pragma GCC unroll 4
          for (int q = 0; q < 4; ++q) add_dot<N>(sum[i][q], four[q], load_weights<N>(w + q * kParts * N));
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < together; ++i) {
      if (first + i >= l.out_width) continue;
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) sum[i][q] = settled<N, form>(sum[i][q], packed, q);
      write_settled<N, form>(l, to, sum[i], packed, t.y, (first + i) * t.y_pixel + c, count);
    }
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
