// Four bytes of an input beside each other times four weights, added to a sum: what a depthwise convolution over bytes is
// made of. Rows (or columns) are unpacked into each other, so that sums are in lane order (bytes_epilogue.inl.h).

// Keeps a loaded vector in its register: the compiler would read memory again.
template <int N>
LC_INLINE Ints<N> kept_ints(Ints<N> v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__SSE2__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
enum { kParts = 1 };  // vectors of packed weights to a vector of sums
template <int N>
struct Four {
  Ints<N> all;
};
template <int N>
LC_INLINE Four<N> four_of(Ints<N> v) {
  return {v};
}
LC_INLINE Ints<32> dot(Ints<32> sum, Ints<32> x, Ints<32> w) {
#if defined(__AVX512VNNI__)
  return (Ints<32>)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
#else
  return (Ints<32>)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
#endif
}
#if defined(__AVX512VNNI__)
LC_INLINE Ints<64> dot(Ints<64> sum, Ints<64> x, Ints<64> w) {
  return (Ints<64>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
}
#endif
template <int N>
LC_INLINE Four<N> load_weights(const int8_t* w) {
  return {load_ints<N>(w)};
}
template <int N>
LC_INLINE Four<N> kept_weights(const Four<N>& w) {
  return {kept_ints<N>(w.all)};
}
template <int N>
LC_INLINE void add_dot(Ints<N>& sum, const Four<N>& x, const Four<N>& w) {
  sum = dot(sum, x.all, w.all);
}
static void pack_four(int8_t* to, int64_t, const int8_t* w) { __builtin_memcpy(to, w, 4); }

#else  // bytes 0 and 2, and 1 and 3, as words
enum { kParts = 2 };
template <int N>
struct Four {
  Ints<N> even, odd;
};
#if defined(__SSE2__)
template <int N>
LC_INLINE Four<N> four_of(Ints<N> v) {
  return {v & 0x00FF00FF, odd_bytes(v)};
}
#else
LC_INLINE Ints<16> multiply_pairs(Ints<16> a, Ints<16> b) {
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
template <int N>
LC_INLINE Four<N> four_of(Ints<N> v) {
  return {v & 0x00FF00FF, (v >> 8) & 0x00FF00FF};
}
#endif
template <int N>
LC_INLINE Four<N> load_weights(const int8_t* w) {
  return {load_ints<N>(w), load_ints<N>(w + N)};
}
template <int N>
LC_INLINE Four<N> kept_weights(const Four<N>& w) {  // there are too many for that
  return w;
}
template <int N>
LC_INLINE void add_dot(Ints<N>& sum, const Four<N>& x, const Four<N>& w) {
  sum = sum + multiply_pairs(x.even, w.even) + multiply_pairs(x.odd, w.odd);
}
static void pack_four(int8_t* to, int64_t vector, const int8_t* w) {
  const int16_t even[] = {w[0], w[2]}, odd[] = {w[1], w[3]};
  __builtin_memcpy(to, even, 4), __builtin_memcpy(to + vector, odd, 4);
}
#endif

template <bool High, int N>
LC_INLINE Ints<N> unpacked_bytes(Ints<N> a, Ints<N> b) {
  return High ? high_bytes(a, b) : low_bytes(a, b);
}
// Words of a and b beside each other: two vectors of dwords.
template <int N>
LC_INLINE void pair_words(Four<N>* to, Ints<N> a, Ints<N> b) {
  to[0] = four_of<N>(low_words(a, b)), to[1] = four_of<N>(high_words(a, b));
}
