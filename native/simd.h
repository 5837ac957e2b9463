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

#define LC_INLINE static inline __attribute__((always_inline))

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
#elif LC_BYTES == 16 && defined(__ARM_NEON) && !defined(LC_PLAIN)
  return (v64)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  const v64 low = splat(0xFFFFFFFFu);
  return (a & low) * (b & low);
#endif
}
