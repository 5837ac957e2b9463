// Rows or columns of a matrix spread out between zeros.

static void spread_columns(float* full, const float* part, const uint8_t* keep, int64_t columns) {
#if LC_BYTES == 64 && defined(__AVX512F__) && defined(__AVX512BW__)
  for (int64_t c = 0; c < columns; c += 16) {
    const __mmask16 there = columns - c < 16 ? (__mmask16)((1u << (columns - c)) - 1) : (__mmask16)-1;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, keep + c);
    const __mmask16 kept = _mm_test_epi8_mask(bytes, bytes);
    _mm512_mask_storeu_ps(full + c, there, _mm512_maskz_expandloadu_ps(kept, part));
    part += __builtin_popcount(kept);
  }
#else
  for (int64_t c = 0; c < columns; ++c) full[c] = keep[c] ? *part++ : 0.0f;
#endif
}

// Rows [begin, end) of the full matrix.
static void spread_rows(const lc_spread& s, int64_t begin, int64_t end) {
  const size_t bytes = (size_t)s.columns * sizeof(float);
  int64_t at = 0;
  for (int64_t row = 0; s.by_rows && row < begin; ++row) at += s.keep[row];
  for (int64_t row = begin; row < end; ++row) {
    float* full = s.full + row * s.columns;
    if (!s.by_rows)
      spread_columns(full, s.part + row * s.kept, s.keep, s.columns);
    else if (s.keep[row])
      __builtin_memcpy(full, s.part + at++ * s.columns, bytes);
    else
      __builtin_memset(full, 0, bytes);
  }
}
