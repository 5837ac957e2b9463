// Activations of the runtime: bounds, and what is left of the others.

LC_INLINE vf bounded(vf v, float low, float high) {  // not a number passes
  const vf l = splat_f(low), h = splat_f(high);
#if LC_BYTES == 64 && defined(__AVX512F__)
  return (vf)_mm512_maskz_min_ps(0xFFFF, (__m512)h, _mm512_maskz_max_ps(0xFFFF, (__m512)l, (__m512)v));
#elif LC_BYTES == 32 && defined(__AVX__)
  return (vf)_mm256_min_ps((__m256)h, _mm256_max_ps((__m256)l, (__m256)v));
#elif LC_BYTES == 16 && defined(__SSE2__)
  return (vf)_mm_min_ps((__m128)h, _mm_max_ps((__m128)l, (__m128)v));
#elif LC_BYTES == 16 && defined(__ARM_NEON) && !defined(LC_BASELINE)
  return (vf)vminq_f32((float32x4_t)h, vmaxq_f32((float32x4_t)l, (float32x4_t)v));
#else
  const vf raised = select(v < l, l, v);
  return select(raised > h, h, raised);
#endif
}

// --- activations that are no bounds ---------------------------------------------------------------------------------

enum { kSigmoid = 5, kHardsigmoid = 6 };

template <int act>
LC_INLINE vf finished(vf z) {
  if (act == kSigmoid) return 1.0f / (exp_f(-z) + 1.0f);
  if (act == kHardsigmoid) return bounded(z + 3.0f, 0.0f, 6.0f) * (1.0f / 6);
  if (act == kHardswish) return z * (bounded(z + 3.0f, 0.0f, 6.0f) * (1.0f / 6));
  return z / (exp_f(-z) + 1.0f);
}
template <int act>
static void finish_of(float* y, int64_t rows, int64_t row, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r, y += row)
    columns<1>(channels, [&](int64_t c, int64_t part) { write(y + c, finished<act>(some(y + c, part)), part); });
}

// What is left of an activation after `bounded`: nothing where it is none, ReLU or ReLU6.
static void finish(int32_t act, float* y, int64_t rows, int64_t row, int64_t channels) {
  switch (act) {
    case kHardswish: return finish_of<kHardswish>(y, rows, row, channels);
    case kSilu: return finish_of<kSilu>(y, rows, row, channels);
    case kSigmoid: return finish_of<kSigmoid>(y, rows, row, channels);
    case kHardsigmoid: return finish_of<kHardsigmoid>(y, rows, row, channels);
    default: return;
  }
}
