// Products of tiles: kTall rows and kPanel columns whose sums stay in registers, over rows that lie in blocks of kBlock
// channels, [block][row][kStride], and weights packed into panels of kPanel columns. While one runs, what comes next is
// fetched from memory.

#if LC_BYTES == 64 || (defined(__aarch64__) && !defined(LC_BASELINE))
enum { kTall = 14, kBlock = 224 };  // a block is whole tiles and whole panels
#else
enum { kTall = 6, kBlock = 192 };
#endif
enum {
  kPanel = 2 * kFloats,
  kStride = kBlock + 16,
  kLine = 64,              // bytes
  kFar = 24 << 20,         // bytes of x and y that no cache holds
  kSteps = kBlock / 2,     // of a sum at a time: rows and panel of so many lie in the first-level cache
  kTurn = 100,             // rows of both sides of the weights' gradient that lie in the first-level cache
  kPanels = 4,             // that run over the same rows before the next rows
  kCached = 400 << 10,     // bytes of a chunk
  kChunkRows = 256,        // at most
  kKept = 16 << 20,        // bytes of all chunks: where they are fewer, chunks wait for the weights' gradient
  kPartials = 4 << 20,     // else bytes of its partial sums
  kGroups = 32,            // and how many of them there are at most
};

// What the next chunk of rows will read: fetched line by line while this one is multiplied, when memory has nothing to do.
struct Ahead {
  const char *at[3], *end[3];
  int64_t now;

  LC_INLINE_MEMBER Ahead() : at{}, end{}, now(0) {}
  LC_INLINE_MEMBER void add(const void* from, int64_t bytes) {
    at[now] = (const char*)from, end[now] = at[now] + bytes;
    ++now;
  }
  // So many lines from here on; where none are left, some that are near.
  LC_INLINE_MEMBER const char* take(int64_t lines, const void* near) {
    for (; now > 0; --now) {
      const char* from = at[now - 1];
      if (from >= end[now - 1]) continue;
      at[now - 1] += lines * kLine;
      return from;
    }
    return (const char*)near;
  }
};

// tile[i][j] (+)= sum over steps of a[i ARow + s AStep] b[s BStep + j], R rows. It is added at the end: short sums round less.
template <int R, int ARow, int AStep, int BStep>
static void product_of(const float* a, const float* b, int64_t steps, float* tile, bool add, const char* ahead) {
  vf sum[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    sum[i][0] = vf{};
    sum[i][1] = vf{};
  }
  for (; steps > 0; --steps, a += AStep, b += BStep, ahead += kLine) {
    __builtin_prefetch(ahead, 0, 2);
    const vf b0 = load(b), b1 = load(b + kFloats);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf v = splat_f(a[i * ARow]);
      sum[i][0] += v * b0;
      sum[i][1] += v * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    float *to = tile + i * kPanel, *to1 = to + kFloats;
    store(to, add ? load(to) + sum[i][0] : sum[i][0]);
    store(to1, add ? load(to1) + sum[i][1] : sum[i][1]);
  }
}

template <int ARow, int AStep, int BStep>
LC_INLINE void product(int rows, const float* a, const float* b, int64_t steps, float* tile, bool add, Ahead& next) {
  const char* ahead = next.take(steps, tile);
  switch (rows) {
    case 1: return product_of<1, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 2: return product_of<2, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 3: return product_of<3, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 4: return product_of<4, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 5: return product_of<5, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 6: return product_of<6, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
#if LC_BYTES == 64 || (defined(__aarch64__) && !defined(LC_BASELINE))
    case 7: return product_of<7, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 8: return product_of<8, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 9: return product_of<9, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 10: return product_of<10, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 11: return product_of<11, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 12: return product_of<12, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 13: return product_of<13, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
    case 14: return product_of<14, ARow, AStep, BStep>(a, b, steps, tile, add, ahead);
#endif
    default: return;
  }
}

// Rows of a (or of the gradient of y) times packed weights, over all channels of the sum: a tile for each of the panels.
LC_INLINE void tiles_of(const float* rows, int64_t held, int64_t from, int count, int64_t channels, const float* packed,
                        int64_t panels, float* tiles, Ahead& next) {
  for (int64_t c = 0; c < channels; c += kSteps) {
    const int64_t steps = channels - c < kSteps ? channels - c : (int64_t)kSteps;
    const float* a = rows + (c / kBlock * held + from) * kStride + c % kBlock;
    for (int64_t q = 0; q < panels; ++q)
      product<kStride, 1, kPanel>(count, a, packed + (q * channels + c) * kPanel, steps, tiles + q * kTall * kPanel, c > 0, next);
  }
}
