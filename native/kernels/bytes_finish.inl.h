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

// Any layer: activations that are more than bounds, and floats.
static void finish_real(const lc_layer& l, const Panel& p, const int32_t* sums, int64_t rows, uint8_t* y, const uint8_t* second) {
  for (int64_t i = 0; i < rows; ++i)
    finish_sums(l, sums + i * kPanel, p.factors, moved(l, (const float*)second, i * p.y_row), moved(l, (float*)y, i * p.y_row), p.columns);
}

typedef void (*Finish)(const lc_layer&, const Panel&, const int32_t*, int64_t, uint8_t*, const uint8_t*);
template <int V>
static Finish finish_of(const lc_layer& l, int64_t columns, bool second) {
  if (columns < V * kFloats) return second ? finish_rows<V, true, false, false> : finish_rows<V, false, false, false>;
  if (second) return is_plain(l) ? finish_rows<V, true, true, true> : finish_rows<V, true, false, true>;
  return is_plain(l) ? finish_rows<V, false, true, true> : finish_rows<V, false, false, true>;
}
static Finish pick_finish(const lc_layer& l, int64_t columns, bool second) {
  return l.real ? finish_real : columns > kFloats ? finish_of<2>(l, columns, second) : finish_of<1>(l, columns, second);
}
