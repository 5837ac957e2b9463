// From the sums of a tile, [row][kPanel] in memory, to bytes and floats.

// Bytes [j Width, (j + 1) Width) of a vector: without a way through memory where the compiler does not find one itself.
template <int Width>
LC_INLINE void store_slice(uint8_t* y, const Ints<LC_BYTES>& all, int j) {
#if LC_BYTES == 64 && defined(__AVX512F__)
  const __m512i v = (__m512i)all;
  if (Width == 32 && j == 1) return _mm256_storeu_si256((__m256i*)y, _mm512_maskz_extracti64x4_epi64(0xF, v, 1));
  if (Width == 16 && j == 1) return _mm_storeu_si128((__m128i*)y, _mm512_maskz_extracti32x4_epi32(0xF, v, 1));
  if (Width == 16 && j == 2) return _mm_storeu_si128((__m128i*)y, _mm512_maskz_extracti32x4_epi32(0xF, v, 2));
  if (Width == 16 && j == 3) return _mm_storeu_si128((__m128i*)y, _mm512_maskz_extracti32x4_epi32(0xF, v, 3));
#elif LC_BYTES == 32 && defined(__AVX2__)
  if (Width == 16 && j == 1) return _mm_storeu_si128((__m128i*)y, _mm256_extracti128_si256((__m256i)all, 1));
#endif
  __builtin_memcpy(y, (const uint8_t*)&all + j * Width, Width);
}

// Rows of V vectors, as many at a time as make a whole vector of bytes. Whole: all columns of the panel are there.
template <int V, bool Second, bool Plain, bool Whole>
static void finish_rows(const lc_layer& l, const Panel& p, const int32_t* sums, int64_t rows, uint8_t* y, const uint8_t* second) {
  constexpr int together = 4 / V;
  constexpr int64_t width = V * kFloats;
  const Limits<LC_BYTES> to = limits_of<LC_BYTES>(l);
  const vf a = splat_f(l.second_factor);
  const vi zero = vi{} + l.second_zero;
  const int64_t columns = p.columns, y_row = p.y_row;
  vf m[V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) m[v] = load(p.factors + v * kFloats);
  const auto group = [&](int64_t i, int64_t last) __attribute__((always_inline)) {
    vf t[4];
#pragma GCC unroll 4
    for (int j = 0; j < together; ++j) {
      const int64_t row = j < last ? j : last;
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) t[j * V + v] = floats<LC_BYTES>(load_ints<LC_BYTES>(sums + (i + row) * kPanel + v * kFloats)) * m[v];
      if (Second) {
        const uint8_t* other = second + (i + row) * y_row;
        uint8_t some[width];
        if (!Whole) {
          __builtin_memset(some, 0, width);
          __builtin_memcpy(some, other, (size_t)columns);
          other = some;
        }
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) t[j * V + v] += floats<LC_BYTES>(widened<LC_BYTES>(other + v * kFloats) - zero) * a;
      }
    }
    const Ints<LC_BYTES> all = in_order(to_bytes<Plain, LC_BYTES>(to, t[0], t[1], t[2], t[3]));
#pragma GCC unroll 4
    for (int j = 0; j < together; ++j) {
      if (j > last) continue;
      uint8_t* const at = y + (i + j) * y_row;
      if (Whole)
        store_slice<width>(at, all, j);
      else
        __builtin_memcpy(at, (const uint8_t*)&all + j * width, (size_t)columns);
    }
  };
  int64_t i = 0;
  for (; i + together <= rows; i += together) group(i, together - 1);
  if (i < rows) group(i, rows - 1 - i);
}

template <int V, bool Second>
LC_INLINE void finish_some(const lc_layer& l, const Panel& p, const int32_t* sums, int64_t rows, uint8_t* y, const uint8_t* second) {
  if (p.columns < V * kFloats) return finish_rows<V, Second, false, false>(l, p, sums, rows, y, second);
  if (is_plain(l)) return finish_rows<V, Second, true, true>(l, p, sums, rows, y, second);
  finish_rows<V, Second, false, true>(l, p, sums, rows, y, second);
}

static void finish_tile(const lc_layer& l, const Panel& p, const int32_t* sums, int64_t rows, float* y, const float* second) {
  if (l.real) {
    for (int64_t i = 0; i < rows; ++i)
      finish_sums(l, sums + i * kPanel, p.factors, moved(l, second, i * p.y_row), moved(l, y, i * p.y_row), p.columns);
    return;
  }
  uint8_t* const to = (uint8_t*)y;
  const uint8_t* const other = (const uint8_t*)second;
  if (p.columns > kFloats) return other ? finish_some<2, true>(l, p, sums, rows, to, other) : finish_some<2, false>(l, p, sums, rows, to, other);
  other ? finish_some<1, true>(l, p, sums, rows, to, other) : finish_some<1, false>(l, p, sums, rows, to, other);
}
