// A vector of LC_BYTES bytes whose width is the compiler's business (GCC and Clang vector extensions). Everything is static
// and nothing of the C++ library is included: an inline function that the linker may merge between copies compiled for
// different processors would crash the older one. A test looks for such symbols.
#pragma once
#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef LC_INLINE  // a build for sanitizers has its own
#define LC_INLINE static inline __attribute__((always_inline))
#define LC_INLINE_MEMBER inline __attribute__((always_inline))
#endif

typedef uint64_t v64 __attribute__((vector_size(LC_BYTES)));
typedef uint16_t v16 __attribute__((vector_size(LC_BYTES)));
enum { kLanes = LC_BYTES / 8 };

LC_INLINE v64 splat(uint64_t x) { return v64{} + x; }
LC_INLINE v64 load(const uint64_t* p) {
  v64 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LC_INLINE void store(void* p, v64 v) { __builtin_memcpy(p, &v, sizeof v); }

// Product of the low 32 bits of each lane, in full; the high 32 bits of the operands count for nothing.
LC_INLINE v64 multiply_low(v64 a, v64 b) {
#if LC_BYTES == 64 && defined(__AVX512F__)
  return (v64)_mm512_maskz_mul_epu32((__mmask8)-1, (__m512i)a, (__m512i)b);  // the plain form warns in GCC 12
#elif LC_BYTES == 32 && defined(__AVX2__)
  return (v64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif LC_BYTES == 16 && defined(__SSE2__)
  return (v64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#elif LC_BYTES == 16 && defined(__ARM_NEON) && !defined(LC_BASELINE)
  return (v64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  const v64 low = splat(0xFFFFFFFFu);
  return (a & low) * (b & low);
#endif
}

// a ^ b ^ c: one instruction where there is one, which compilers do not find.
LC_INLINE v64 xor3(v64 a, v64 b, v64 c) {
#if LC_BYTES == 64 && defined(__AVX512F__)
  return (v64)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

typedef float vf __attribute__((vector_size(LC_BYTES)));
typedef uint32_t vu __attribute__((vector_size(LC_BYTES)));
typedef uint16_t vh __attribute__((vector_size(LC_BYTES / 2)));
enum { kFloats = LC_BYTES / 4 };

struct bf16 {
  uint16_t bits;
};

LC_INLINE float widen(float x) { return x; }
LC_INLINE float widen(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

// kFloats numbers, in single precision whatever they are in memory.
LC_INLINE vf load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
// One shuffle where there is one: extending and shifting would take two.
LC_INLINE vf load(const bf16* p) {
#if LC_BYTES == 64 && defined(__AVX512BW__)
  const __m512i to = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0,
                                      2, 0, 1, 0, 0, 0);
  const __m512i h = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)p));
  return (vf)_mm512_maskz_permutexvar_epi16(0xAAAAAAAAu, to, h);
#elif LC_BYTES == 32 && defined(__AVX2__)
  const __m256i to = _mm256_set_epi8(15, 14, -1, -1, 13, 12, -1, -1, 11, 10, -1, -1, 9, 8, -1, -1,  //
                                     7, 6, -1, -1, 5, 4, -1, -1, 3, 2, -1, -1, 1, 0, -1, -1);
  return (vf)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p)), to);
#else
  vh h;
  __builtin_memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

LC_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }

// Keeps a loaded vector in its register: the compiler would read memory again for every product.
LC_INLINE vf held(vf v) {
#if LC_BYTES == 64
  __asm__("" : "+v"(v));
#elif defined(__SSE2__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}

// Round to nearest, ties to even; every NaN becomes the one that torch writes.
LC_INLINE vh narrow(vf v) {
  const vu bits = (vu)v, rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, nan = (vu)(v != v);
  return __builtin_convertvector((rounded & ~nan) | (0x7FC0u & nan), vh);
}
LC_INLINE void store(bf16* p, vf v) {
  const vh h = narrow(v);
  __builtin_memcpy(p, &h, sizeof h);
}

// One number of a vector in memory's type.
LC_INLINE void put(float* p, const float* lane) { *p = *lane; }
LC_INLINE void put(bf16* p, const float* lane) {
  const vh h = narrow(vf{} + *lane);
  p->bits = h[0];
}

#if LC_BYTES == 64
#define LC_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define LC_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LC_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define LC_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LC_BYTES == 32
#define LC_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define LC_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define LC_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define LC_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LC_EVEN 0, 2, 4, 6
#define LC_ODD 1, 3, 5, 7
#define LC_LOW 0, 4, 1, 5
#define LC_HIGH 2, 6, 3, 7
#endif
#if defined(__clang__)
#define LC_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LC_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vu){__VA_ARGS__})
#endif
LC_INLINE vf even(vf a, vf b) { return LC_SHUFFLE(a, b, LC_EVEN); }
LC_INLINE vf odd(vf a, vf b) { return LC_SHUFFLE(a, b, LC_ODD); }
LC_INLINE vf interleave_low(vf a, vf b) { return LC_SHUFFLE(a, b, LC_LOW); }
LC_INLINE vf interleave_high(vf a, vf b) { return LC_SHUFFLE(a, b, LC_HIGH); }
