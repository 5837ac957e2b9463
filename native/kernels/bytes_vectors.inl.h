// Vectors over bytes: products of four at a time, and the way from int32 and float to bytes and back.

typedef int16_t vs __attribute__((vector_size(LC_BYTES)));

LC_INLINE vi load_ints(const void* p) {
  vi v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LC_INLINE void store_ints(int32_t* p, vi v) { __builtin_memcpy(p, &v, sizeof v); }

// --- products -------------------------------------------------------------------------------------------------------

LC_INLINE vi four_everywhere(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return vi{} + four;
}

// Four bytes in each lane, unsigned ones of x or signed ones of weights, as add_products wants them.
#if defined(LC_PATH_avxvnni) || defined(LC_PATH_vnni) || defined(LC_PATH_amx)
typedef vi Quads;
LC_INLINE Quads weights_of(vi w) { return w; }
LC_INLINE Quads inputs_of(const uint8_t* p) { return four_everywhere(p); }
LC_INLINE vi add_products(vi sum, Quads x, Quads w) {  // in assembly: the compiler would put sums into memory
#if defined(LC_PATH_avxvnni)
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
#endif
  return sum;
}
#else
struct Quads {  // as 16-bit numbers: the first and third, the second and fourth
  vs even, odd;
};
LC_INLINE Quads weights_of(vi w) { return {((vs)w << 8) >> 8, (vs)w >> 8}; }
LC_INLINE Quads inputs_of(const uint8_t* p) {
  const vi x = four_everywhere(p);
  return {(vs)(x & 0x00FF00FF), (vs)((v16)x >> 8)};
}
// Products of both 16-bit numbers of each lane, added; none of them leaves 17 bits.
LC_INLINE vi pairs(vs a, vs b) {
#if LC_BYTES == 64 && defined(__AVX512BW__)
  return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif LC_BYTES == 32 && defined(__AVX2__)
  return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif LC_BYTES == 16 && defined(__SSE2__)
  return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const vi x = (vi)a, y = (vi)b;
  return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}
LC_INLINE vi add_products(vi sum, Quads x, Quads w) { return sum + pairs(x.even, w.even) + pairs(x.odd, w.odd); }
#endif

// --- numbers --------------------------------------------------------------------------------------------------------

LC_INLINE vf as_floats(vi v) { return __builtin_convertvector(v, vf); }

// The nearest integer, of two the even one; any that is far out of a byte's range where v is.
LC_INLINE vi rounded(vf v) {
#if LC_BYTES == 64 && defined(__AVX512F__)
  return (vi)_mm512_maskz_cvtps_epi32(0xFFFF, (__m512)v);  // the plain form warns in GCC 12
#elif LC_BYTES == 32 && defined(__AVX__)
  return (vi)_mm256_cvtps_epi32((__m256)v);
#elif LC_BYTES == 16 && defined(__SSE2__)
  return (vi)_mm_cvtps_epi32((__m128)v);
#else
  return (vi)(bounded(v, -1024.0f, 1024.0f) + 12582912.0f) - 0x4B400000;  // 1.5 * 2^23: the low bits are the nearest integer
#endif
}

// kFloats bytes, or the first `part` of them.
LC_INLINE vi load_bytes(const uint8_t* p, int64_t part) {
  typedef uint8_t vb __attribute__((vector_size(kFloats)));
  vb bytes = {};
  if (part >= kFloats)
    __builtin_memcpy(&bytes, p, sizeof bytes);
  else
    __builtin_memcpy(&bytes, p, (size_t)part);
#if LC_BYTES == 64 && defined(__AVX512F__)
  return (vi)_mm512_maskz_cvtepu8_epi32(0xFFFF, (__m128i)bytes);
#else
  return __builtin_convertvector(bytes, vi);
#endif
}

// What bytes of y are: an integer and the zero point, within bounds.
struct Bounds {
  int32_t zero, low, high;
};
LC_INLINE Bounds bounds_of(const lc_layer& l) { return {l.y_zero, l.low_byte, l.high_byte}; }

LC_INLINE void store_bytes(uint8_t* p, vi v, const Bounds& b, int64_t part) {
  typedef uint8_t vb __attribute__((vector_size(kFloats)));
  // Far integers would leave 32 bits with the zero point.
  const vi far = vi{} + 1024, w = (v > far ? far : v < -far ? -far : v) + b.zero, low = vi{} + b.low, high = vi{} + b.high;
  const vb bytes = __builtin_convertvector(w < low ? low : w > high ? high : w, vb);
  if (part >= kFloats)
    __builtin_memcpy(p, &bytes, sizeof bytes);
  else
    __builtin_memcpy(p, &bytes, (size_t)part);
}

// Bytes nearest to real numbers; not a number is a very small one.
LC_INLINE void quantize_row(const lc_layer& l, const float* x, uint8_t* y, int64_t count) {
  const Bounds b = {l.y_zero, 0, 255};
  columns<1>(count, [&](int64_t c, int64_t part) {
    const vf v = some(x + c, part) * l.inverse;
    store_bytes(y + c, rounded(bounded(select(v == v, v, splat_f(-512.0f)), -512.0f, 512.0f)), b, part ? part : (int64_t)kFloats);
  });
}
