// Activations of the runtime: bounds, and others.

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

// Floats of scratch memory for the rows of x under a depthwise layer's kernel, and one more.
LC_INLINE int64_t table_floats(const lc_layer& l) { return ceil_div((l.kernel_height + 1) * 2, 16) * 16; }
