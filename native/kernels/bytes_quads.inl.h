// Four bytes beside each other times four weights, added to a sum: what products over bytes are made of. Weights are as
// they came; sums are in order.

typedef int16_t vs __attribute__((vector_size(LC_BYTES)));

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
