// Rows or columns of a matrix spread out between zeros, or gathered from between others.

static void spread_columns(float* full, const float* part, const uint8_t* keep, int64_t columns) {
#if LC_BYTES == 64 && defined(__AVX512F__) && defined(__AVX512BW__)
  for (int64_t c = 0; c < columns; c += 16) {
    const __mmask16 there = columns - c < 16 ? (__mmask16)((1u << (columns - c)) - 1) : (__mmask16)-1;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, keep + c);
    const __mmask16 kept = _mm_test_epi8_mask(bytes, bytes);
    const __m512 placed = _mm512_maskz_expandloadu_ps(kept, part);
    if (columns - c >= 16)
      _mm512_storeu_ps(full + c, placed);
    else
      _mm512_mask_storeu_ps(full + c, there, placed);
    part += __builtin_popcount(kept);
  }
#else
  for (int64_t c = 0; c < columns; ++c) full[c] = keep[c] ? *part++ : 0.0f;
#endif
}

// Registers are packed and stored whole, since packing into memory takes tens of cycles on some processors; what a store
// writes behind its numbers the next one overwrites, and the last ones are cut to what is left.
static void gather_columns(float* part, const float* full, const uint8_t* keep, [[maybe_unused]] int64_t columns,
                           int64_t kept) {
#if LC_BYTES == 64 && defined(__AVX512F__) && defined(__AVX512BW__)
  for (int64_t c = 0, at = 0; at < kept; c += 16) {
    const __mmask16 there = columns - c < 16 ? (__mmask16)((1u << (columns - c)) - 1) : (__mmask16)-1;
    const __m128i bytes = _mm_maskz_loadu_epi8(there, keep + c);
    const __mmask16 wanted = _mm_test_epi8_mask(bytes, bytes);
    const __m512 packed = _mm512_maskz_compress_ps(wanted, _mm512_maskz_loadu_ps(there, full + c));
    const int64_t left = kept - at;
    if (left >= 16)
      _mm512_storeu_ps(part + at, packed);
    else
      _mm512_mask_storeu_ps(part + at, (__mmask16)((1u << left) - 1), packed);
    at += __builtin_popcount(wanted);
  }
#else
  for (int64_t c = 0, at = 0; at < kept; ++c) {
    part[at] = full[c];
    at += keep[c];
  }
#endif
}

// How many of the rows before `row` are marked.
LC_INLINE int64_t rows_before(const lc_spread& s, int64_t row) {
  int64_t at = 0;
  for (int64_t r = 0; r < row; ++r) at += s.keep[r];
  return at;
}

// Rows [begin, end) of the full matrix.
static void gather_rows(const lc_spread& s, int64_t begin, int64_t end) {
  int64_t at = s.by_rows ? rows_before(s, begin) : 0;
  for (int64_t row = begin; row < end; ++row) {
    const float* full = s.full + row * s.columns;
    if (!s.by_rows)
      gather_columns(s.part + row * s.stride, full, s.keep, s.columns, s.kept);
    else if (s.keep[row])
      __builtin_memcpy(s.part + at++ * s.stride, full, (size_t)s.columns * sizeof(float));
  }
}

// Rows [begin, end) of the full matrix.
static void spread_rows(const lc_spread& s, int64_t begin, int64_t end) {
  const size_t bytes = (size_t)s.columns * sizeof(float);
  int64_t at = s.by_rows ? rows_before(s, begin) : 0;
  for (int64_t row = begin; row < end; ++row) {
    float* full = s.full + row * s.columns;
    if (!s.by_rows)
      spread_columns(full, s.part + row * s.stride, s.keep, s.columns);
    else if (s.keep[row])
      __builtin_memcpy(full, s.part + at++ * s.stride, bytes);
    else
      __builtin_memset(full, 0, bytes);
  }
}
