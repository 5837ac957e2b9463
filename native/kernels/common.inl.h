// What kernels share: integers, and loops over columns and rows.

enum { kNone = 0, kRelu = 1, kRelu6 = 2, kHardswish = 3, kSilu = 4 };

struct Span {
  int64_t begin, end;
};

LC_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
LC_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
LC_INLINE int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }  // b > 0

// Calls f(column, part) for each vector of columns, kVectors of them in one turn; part is 0, or how many columns are left
// where they make no whole vector.
template <int kVectors, typename F>
LC_INLINE void columns(int64_t width, F f) {
  int64_t c = 0;
  for (; c + kVectors * kFloats <= width; c += kVectors * kFloats) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) f(c + v * kFloats, 0);
  }
  for (; c < width; c += kFloats) f(c, width - c < kFloats ? width - c : (int64_t)0);
}

template <typename T>
LC_INLINE vf some(const T* p, int64_t part) {
  return part ? load_part(p, part) : load(p);
}
template <typename T>
LC_INLINE void write(T* p, vf v, int64_t part) {
  part ? store_part(p, v, part) : store(p, v);
}

// Calls f(from, count) for tiles of nearly one height, at most Tall.
template <int64_t Tall, typename F>
LC_INLINE void each_height(int64_t rows, F f) {
  const int64_t tiles = ceil_div(rows, Tall);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t from = t * rows / tiles;
    f(from, (int)((t + 1) * rows / tiles - from));
  }
}
