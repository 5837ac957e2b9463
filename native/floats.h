// More of vectors of floats: parts of them, sums in float64, e^x. Everything is static, as in simd.h.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "simd.h"

typedef int32_t vi __attribute__((vector_size(LC_BYTES)));
typedef float vf_half __attribute__((vector_size(LC_BYTES / 2)));
typedef double vd_half __attribute__((vector_size(LC_BYTES)));

LC_INLINE vf splat_f(float x) { return x - vf{}; }  // x + 0 would be an addition: -0 + 0 is 0
LC_INLINE vf select(vi where, vf yes, vf no) { return where ? yes : no; }

// As many doubles as a vector has floats, in two registers: vectors wider than those go through memory, number by number.
struct vd {
  vd_half low, high;
};
LC_INLINE vd operator+(vd a, vd b) { return {a.low + b.low, a.high + b.high}; }
LC_INLINE vd operator-(vd a, vd b) { return {a.low - b.low, a.high - b.high}; }
LC_INLINE vd operator*(vd a, vd b) { return {a.low * b.low, a.high * b.high}; }
LC_INLINE vd operator*(vd a, double x) { return {a.low * x, a.high * x}; }
LC_INLINE vd widen(vf x) {
  vf_half halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  return {__builtin_convertvector(halves[0], vd_half), __builtin_convertvector(halves[1], vd_half)};
}
LC_INLINE vf narrow(vd x) {
  const vf_half halves[] = {__builtin_convertvector(x.low, vf_half), __builtin_convertvector(x.high, vf_half)};
  vf v;
  __builtin_memcpy(&v, halves, sizeof v);
  return v;
}

// The first n < kFloats of a vector, zeros behind; T is what memory holds, float or bf16.
template <typename T>
LC_INLINE vf load_part(const T* p, int64_t n) {
  T some[kFloats] = {};
  __builtin_memcpy(some, p, (size_t)n * sizeof *some);
  return load(some);
}
template <typename T>
LC_INLINE void store_part(T* p, vf v, int64_t n) {
  T some[kFloats];
  store(some, v);
  __builtin_memcpy(p, some, (size_t)n * sizeof *some);
}

// e^x to about one unit in the last place: 2^n e^r, |r| <= ln 2 / 2, e^r by seven terms of its series (the eighth is
// below 6e-9). 0 below -87.3, inf above 88.7; not a number stays that.
LC_INLINE vf exp_f(vf x) {
  const vf low = splat_f(-87.3f), high = splat_f(88.7f);
  const vf bounded = select(x < low, low, select(x > high, high, x));
  const vf shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer
  const vi n = (vi)shifted - 0x4B400000;
  const vf whole = shifted - 12582912.0f;
  const vf r = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vf p = splat_f(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const vi half = n >> 1;  // in two steps: 2^128 is no float
  const vf y = p * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
  const vf above = select(x > high, splat_f(__builtin_inff()), y);
  return select(x < low, splat_f(0.0f), select(x != x, x, above));
}
