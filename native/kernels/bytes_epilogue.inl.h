// Vectors of bytes and how sums become bytes or floats: what products, depthwise and the other maps of int8 share.
//
// Four vectors of sums are packed into one of bytes within lanes of 16 bytes. In lane order, which unpacking bytes gives,
// sum q of lane n belongs to byte 16 n + 4 q + its place: packing restores it. In order, sums follow each other.

template <int N>
struct Vector {  // of N bytes
  typedef int32_t I __attribute__((vector_size(N)));
  typedef float F __attribute__((vector_size(N)));
};
template <int N>
using Ints = typename Vector<N>::I;
template <int N>
using Floats = typename Vector<N>::F;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // within the intrinsics of GCC 12
#pragma GCC diagnostic ignored "-Wuninitialized"

#if defined(__SSE2__)
// Unpacking: low and high halves of each lane. `words` and `bytes` pack with saturation. nearest: ties to even.
// above, below: the bound where v is not a number.
#define LC_VECTOR(N, P, T, S, R)                                                                                \
  LC_INLINE Ints<N> low_bytes(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_unpacklo_epi8((R##i)a, (R##i)b); }      \
  LC_INLINE Ints<N> high_bytes(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_unpackhi_epi8((R##i)a, (R##i)b); }     \
  LC_INLINE Ints<N> low_words(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_unpacklo_epi16((R##i)a, (R##i)b); }     \
  LC_INLINE Ints<N> high_words(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_unpackhi_epi16((R##i)a, (R##i)b); }    \
  LC_INLINE Ints<N> words(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_packs_epi32((R##i)a, (R##i)b); }            \
  LC_INLINE Ints<N> bytes(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_packus_epi16((R##i)a, (R##i)b); }           \
  LC_INLINE Ints<N> add_words(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_adds_epi16((R##i)a, (R##i)b); }         \
  LC_INLINE Ints<N> multiply_pairs(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_madd_epi16((R##i)a, (R##i)b); }    \
  LC_INLINE Ints<N> add_bytes(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_adds_epu8((R##i)a, (R##i)b); }          \
  LC_INLINE Ints<N> greater_bytes(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_max_epu8((R##i)a, (R##i)b); }       \
  LC_INLINE Ints<N> lesser_bytes(Ints<N> a, Ints<N> b) { return (Ints<N>)P##_min_epu8((R##i)a, (R##i)b); }        \
  LC_INLINE Ints<N> odd_bytes(Ints<N> a) { return (Ints<N>)P##_srli_epi16((R##i)a, 8); }                          \
  LC_INLINE Ints<N> nearest(Floats<N> v) { return (Ints<N>)P##_cvtps_epi32((R)v); }                               \
  LC_INLINE Floats<N> above(Floats<N> v, Floats<N> low) { return (Floats<N>)P##_max_ps((R)v, (R)low); }           \
  LC_INLINE Floats<N> below(Floats<N> v, Floats<N> high) { return (Floats<N>)P##_min_ps((R)v, (R)high); }
LC_VECTOR(16, _mm, , , __m128)
#if defined(__AVX2__)
LC_VECTOR(32, _mm256, , , __m256)
#endif
#if defined(__AVX512BW__)
LC_VECTOR(64, _mm512, , , __m512)
#endif
#undef LC_VECTOR
#else
typedef int16_t w16 __attribute__((vector_size(16)));
typedef uint8_t b16 __attribute__((vector_size(16)));
#if defined(__clang__)
#define LC_MIX(T, a, b, ...) (Ints<16>)__builtin_shufflevector((T)(a), (T)(b), __VA_ARGS__)
#else
#define LC_MIX(T, a, b, ...) (Ints<16>)__builtin_shuffle((T)(a), (T)(b), (T){__VA_ARGS__})
#endif
LC_INLINE Ints<16> low_bytes(Ints<16> a, Ints<16> b) {
  return LC_MIX(b16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
LC_INLINE Ints<16> high_bytes(Ints<16> a, Ints<16> b) {
  return LC_MIX(b16, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
LC_INLINE Ints<16> low_words(Ints<16> a, Ints<16> b) { return LC_MIX(w16, a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
LC_INLINE Ints<16> high_words(Ints<16> a, Ints<16> b) { return LC_MIX(w16, a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
LC_INLINE Ints<16> between(Ints<16> v, int32_t low, int32_t high) {
  const Ints<16> l = Ints<16>{} + low, h = Ints<16>{} + high;
  v = v < l ? l : v;
  return v > h ? h : v;
}
LC_INLINE Ints<16> words(Ints<16> a, Ints<16> b) {
  return LC_MIX(w16, between(a, -32768, 32767), between(b, -32768, 32767), 0, 2, 4, 6, 8, 10, 12, 14);
}
LC_INLINE Ints<16> bytes(Ints<16> a, Ints<16> b) {
  const w16 zero = {}, top = zero + (int16_t)255, c = (w16)a, d = (w16)b;
  const w16 p = c < zero ? zero : c > top ? top : c, q = d < zero ? zero : d > top ? top : d;
  return LC_MIX(b16, p, q, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
LC_INLINE Ints<16> add_words(Ints<16> a, Ints<16> b) {  // b from 0 to 255
  const w16 sum = (w16)a + (w16)b;
  return (Ints<16>)(sum < (w16)a ? w16{} + (int16_t)32767 : sum);
}
LC_INLINE Ints<16> add_bytes(Ints<16> a, Ints<16> b) {
  const b16 sum = (b16)a + (b16)b;
  return (Ints<16>)(sum < (b16)a ? b16{} + (uint8_t)255 : sum);
}
LC_INLINE Ints<16> greater_bytes(Ints<16> a, Ints<16> b) { return (Ints<16>)((b16)a > (b16)b ? (b16)a : (b16)b); }
LC_INLINE Ints<16> lesser_bytes(Ints<16> a, Ints<16> b) { return (Ints<16>)((b16)a < (b16)b ? (b16)a : (b16)b); }
LC_INLINE Floats<16> above(Floats<16> v, Floats<16> low) { return v > low ? v : low; }
LC_INLINE Floats<16> below(Floats<16> v, Floats<16> high) { return v < high ? v : high; }
LC_INLINE Ints<16> nearest(Floats<16> v) {  // of any byte's interest: beyond 2^20 all are alike
  const Floats<16> far = Floats<16>{} + 1048576.0f;
  return (Ints<16>)(below(above(v, -far), far) + 12582912.0f) - 0x4B400000;  // 1.5 * 2^23: low bits are the integer
}
#endif

template <int N>
LC_INLINE Ints<N> load_ints(const void* p) {
  Ints<N> v;
  __builtin_memcpy(&v, p, N);
  return v;
}
template <int N>
LC_INLINE Floats<N> load_floats(const float* p) {
  Floats<N> v;
  __builtin_memcpy(&v, p, N);
  return v;
}
template <int N>
LC_INLINE Ints<N> splat_byte(int32_t b) {
  return Ints<N>{} + (int32_t)((uint32_t)b * 0x01010101u);
}
template <int N>
LC_INLINE Ints<N> splat_word(int32_t w) {
  return Ints<N>{} + (int32_t)((uint32_t)w * 0x00010001u);
}
template <int N>
LC_INLINE Floats<N> floats(Ints<N> v) {
  return __builtin_convertvector(v, Floats<N>);
}

// N / 4 bytes as numbers.
template <int N>
LC_INLINE Ints<N> widened(const uint8_t* p) {
#if defined(__AVX512BW__)
  if constexpr (N == 64) return (Ints<N>)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#endif
#if defined(__AVX2__)
  if constexpr (N == 32) return (Ints<N>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#endif
  typedef uint8_t part __attribute__((vector_size(N / 4)));
  part some;
  __builtin_memcpy(&some, p, sizeof some);
  return __builtin_convertvector(some, Ints<N>);
}

// Dwords as packing leaves them, brought into order.
LC_INLINE Ints<16> in_order(Ints<16> v) { return v; }
#if defined(__AVX2__)
LC_INLINE Ints<32> in_order(Ints<32> v) {
  return (Ints<32>)_mm256_permutevar8x32_epi32((__m256i)v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
#endif
#if defined(__AVX512BW__)
LC_INLINE Ints<64> in_order(Ints<64> v) {
  const __m512i to = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Ints<64>)_mm512_maskz_permutexvar_epi32(0xFFFF, to, (__m512i)v);
}
#endif

#pragma GCC diagnostic pop

template <int N>
LC_INLINE void store_some(uint8_t* to, Ints<N> v, int64_t count) {  // count <= N
  if (count == N) {
    __builtin_memcpy(to, &v, N);
    return;
  }
  uint8_t all[N];
  __builtin_memcpy(all, &v, N);
  __builtin_memcpy(to, all, (size_t)count);
}

// How integers become bytes of y. kBounded: in any case. kPlain: the zero point is 0 and bounds are those of a byte. kRaised:
// the lower bound is the zero point. kShifted: bounds are those of a byte. kReal: not at once, or they become floats.
enum Form { kBounded, kPlain, kRaised, kShifted, kReal };

LC_INLINE bool is_plain(const lc_layer& l) { return l.y_zero == 0 && l.low_byte == 0 && l.high_byte == 255; }

static Form form_of(const lc_layer& l) {
  if (l.real) return kReal;
  if (is_plain(l)) return kPlain;
  if (l.low_byte == l.y_zero) return kRaised;
  return l.low_byte == 0 && l.high_byte == 255 ? kShifted : kBounded;
}

// The zero point as words and as bytes, and the bounds. A copy for registers: bytes that are written might be the layer's own,
// for all the compiler knows.
template <int N>
struct Limits {
  Ints<N> zero, raise, low, high;
};
template <int N>
LC_INLINE Limits<N> limits_of(const lc_layer& l) {
  return {splat_word<N>(l.y_zero), splat_byte<N>(l.y_zero), splat_byte<N>(l.low_byte), splat_byte<N>(l.high_byte)};
}

// Two vectors of words of nearest integers as bytes of y.
template <int form, int N>
LC_INLINE Ints<N> words_to_bytes(const Limits<N>& to, Ints<N> low, Ints<N> high) {
  if constexpr (form == kPlain) return bytes(low, high);
  if constexpr (form == kRaised) return lesser_bytes(add_bytes(bytes(low, high), to.raise), to.high);
  const Ints<N> all = bytes(add_words(low, to.zero), add_words(high, to.zero));
  return form == kShifted ? all : lesser_bytes(greater_bytes(all, to.low), to.high);
}

// Bytes of four vectors of numbers in units of y, in the order in which packing leaves them.
template <int form, int N>
LC_INLINE Ints<N> to_bytes(const Limits<N>& to, Floats<N> a, Floats<N> b, Floats<N> c, Floats<N> d) {
  return words_to_bytes<form, N>(to, words(nearest(a), nearest(b)), words(nearest(c), nearest(d)));
}

template <int N>
LC_INLINE Floats<N> from_zero(const uint8_t* p, int32_t zero) {
  return floats<N>(widened<N>(p) - zero);
}

// --- real numbers: activations that are no bounds, and maps that are float --------------------------------------------

LC_INLINE vf activated_real(const lc_layer& l, vf t) {
  switch (l.act) {
    case kHardswish: return finished<kHardswish>(t);
    case kSilu: return finished<kSilu>(t);
    case kSigmoid: return finished<kSigmoid>(t);
    case kHardsigmoid: return finished<kHardsigmoid>(t);
    default: return bounded(t, l.low, l.high);
  }
}

// Bytes come from numbers in units of y: those of a layer that is `real` still pass its activation.
LC_INLINE vf in_units(const lc_layer& l, vf t) {
  if (!l.real) return t;
  const vf far = splat_f(512.0f);
  return below(above(activated_real(l, t) * l.inverse, -far), far);
}

// y[at ...] of `count` numbers t, at most a vector of them: real ones, or in units of y.
LC_INLINE void write_numbers(const lc_layer& l, vf t, void* y, int64_t at, int64_t count) {
  if (!l.y_quantized) {
    t = activated_real(l, t);
    return count == kFloats ? store((float*)y + at, t) : store_part((float*)y + at, t, count);
  }
  t = in_units(l, t);
  store_some<LC_BYTES>((uint8_t*)y + at, in_order(to_bytes<kBounded, LC_BYTES>(limits_of<LC_BYTES>(l), t, t, t, t)), count);
}

// Sums of any number of columns that lie in memory, in order. `second` is null or as y is.
static __attribute__((noinline)) void finish_sums(const lc_layer& l, const int32_t* sums, const float* factors,
                                                  const void* second, void* y, int64_t columns) {
  for (int64_t at = 0; at < columns; at += kFloats) {
    const int64_t count = least(columns - at, kFloats), part = count % kFloats;
    vf t = floats<LC_BYTES>((vi)some((const float*)sums + at, part)) * some(factors + at, part);
    if (second && l.y_quantized) {
      uint8_t bytes[LC_BYTES] = {};
      __builtin_memcpy(bytes, (const uint8_t*)second + at, (size_t)count);
      t = t + from_zero<LC_BYTES>(bytes, l.second_zero) * l.second_factor;
    } else if (second) {
      t = t + some((const float*)second + at, part);
    }
    write_numbers(l, t, y, at, count);
  }
}
