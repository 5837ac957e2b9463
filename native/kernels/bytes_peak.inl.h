// As many multiply-adds of bytes as this way over them can do, from registers alone: what other kernels are measured against.

#if defined(LC_PATH_amx)
static void bytes_peak(const lc_burst& burst, int64_t begin, int64_t end) {
  set_tiles(16, 16);
  for (int64_t turn = begin; turn < end; ++turn) {
    LC_TILE_DOT(0, 4, 6);
    LC_TILE_DOT(1, 4, 7);
    LC_TILE_DOT(2, 5, 6);
    LC_TILE_DOT(3, 5, 7);
  }
  __asm__ volatile("tilerelease");
  *burst.out = 0;
}
static int64_t bytes_peak_width() { return 4 * 16 * 16 * 64; }
#else
enum { kDots = 12, kWide = LC_BYTES };

static void bytes_peak(const lc_burst& burst, int64_t begin, int64_t end) {
  Ints<kWide> sum[kDots] = {};
  int8_t ones[kWide * kParts];
  for (int i = 0; i < kWide * kParts; ++i) ones[i] = kParts == 1 || i % 2 == 0;  // bytes, or words
  const Four<kWide> w = load_weights<kWide>(ones);
  const Four<kWide> x = four_of<kWide>(kept_ints<kWide>(Ints<kWide>{} + 0x01010101));
  for (int64_t turn = begin; turn < end; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < kDots; ++i) {
      add_dot<kWide>(sum[i], x, w);
      sum[i] = kept_ints<kWide>(sum[i]);
    }
  }
  int32_t all = 0;
  for (int i = 0; i < kDots; ++i) all += sum[i][0];
  *burst.out = (float)all;
}
static int64_t bytes_peak_width() { return kDots * kWide; }  // multiply-adds of a turn
#endif
