// Products of the runtime over bytes: rows of pixels times packed weights in int32, which is exact, in registers.

template <int R, int V>
static void tile_sums(const Panel& p, const uint8_t* x, int32_t* sums, const char* ahead, int64_t stride) {
  vi sum[R][V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const vi s = load_ints<LC_BYTES>(p.starts + v * kFloats);
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
      for (int v = 0; v < V; ++v) w[v] = weights_of(load_ints<LC_BYTES>(b + v * LC_BYTES));
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
    for (int v = 0; v < V; ++v) __builtin_memcpy(sums + i * kPanel + v * kFloats, &sum[i][v], LC_BYTES);
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

// --- rows -----------------------------------------------------------------------------------------------------------

// Output channels of panels [begin, end) of all rows.
static void multiply_rows(const lc_layer& l, const Pixels& r, const int64_t* offsets, int64_t begin, int64_t end) {
#if defined(LC_PATH_amx)
  if (in_tiles(l, r)) return multiply_tiles(l, r, offsets, begin, end);
#endif
  const int64_t out = l.out_channels / l.groups, in = l.channels / l.groups;
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
    pick_finish(l, p.columns, r.second)(l, p, sums, count, (uint8_t*)moved(l, r.y, at), (const uint8_t*)moved(l, r.second, at));
  };
  each_tile(r, {(const char*)packed, length, l.groups, wide, out}, begin, end, length * (end - begin) * kPanel <= kManyWeights, tile);
}
