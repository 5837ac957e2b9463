// Products over bytes by the tiles of AMX: up to 16 rows, and 16 output channels of packed weights as they lie.
#if defined(LC_PATH_amx)

enum { kShortest = 16, kFewest = 4 };  // bytes of a stretch, and rows, that are worth a tile

// Sums in tiles 0 to 3, two tiles of rows by two of channels; rows in 4 and 5, weights in 6 and 7.
static void set_tiles(int64_t rows, int64_t quads) {
  struct alignas(64) {
    uint8_t palette, start, reserved[14];
    uint16_t width[16];
    uint8_t rows[16];
  } set = {};
  set.palette = 1;
  for (int i = 0; i < 8; ++i) {
    set.width[i] = (uint16_t)(i == 4 || i == 5 ? quads * 4 : 64);
    set.rows[i] = (uint8_t)(i < 6 ? rows : quads);
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(set));
}
#define LC_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define LC_TILE_STORE(tile, to) __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((int64_t)kPanel * 4) : "memory")
#define LC_TILE_DOT(sum, x, w) __asm__ volatile("tdpbusd %%tmm" #w ", %%tmm" #x ", %%tmm" #sum : :)

// Sums of two tiles of rows, at x0 and x1, with two tiles of channels, or with one.
template <bool Two>
static void tile_pair(const Panel& p, const uint8_t* x0, const uint8_t* x1, int64_t rows, int64_t quads, int32_t* sums,
                      const char* ahead, int64_t lines, int64_t stride) {
  const int64_t apart = Two ? 128 : 64;
  LC_TILE_LOAD(0, p.starts, 0);
  LC_TILE_LOAD(2, p.starts, 0);
  if (Two) {
    LC_TILE_LOAD(1, p.starts + kFloats, 0);
    LC_TILE_LOAD(3, p.starts + kFloats, 0);
  }
  const int8_t* b = p.weights;
  for (int64_t tap = 0; tap < p.taps; ++tap) {
    const uint8_t *a0 = x0 + p.offsets[tap], *a1 = x1 + p.offsets[tap];
    for (int64_t left = p.quads; left > 0; left -= quads, a0 += quads * 4, a1 += quads * 4, b += quads * apart) {
      LC_TILE_LOAD(6, b, apart);
      LC_TILE_LOAD(4, a0, p.step);
      LC_TILE_DOT(0, 4, 6);
      if (Two) {
        LC_TILE_LOAD(7, b + 64, apart);
        LC_TILE_DOT(1, 4, 7);
      }
      LC_TILE_LOAD(5, a1, p.step);
      LC_TILE_DOT(2, 5, 6);
      if (Two) LC_TILE_DOT(3, 5, 7);
      for (int64_t i = 0; i < lines; ++i, ahead += stride) __builtin_prefetch(ahead, 0, 2);
    }
  }
  LC_TILE_STORE(0, sums);
  LC_TILE_STORE(2, sums + rows * kPanel);
  if (Two) {
    LC_TILE_STORE(1, sums + kFloats);
    LC_TILE_STORE(3, sums + rows * kPanel + kFloats);
  }
}

LC_INLINE bool in_tiles(const lc_layer& l, const Pixels& r) { return r.count >= kFewest && l.length >= kShortest; }

// Output channels of panels [begin, end) of all rows. Tiles are of one height: where they do not divide, they overlap.
static void multiply_tiles(const lc_layer& l, const Pixels& r, const int64_t* offsets, int64_t begin, int64_t end) {
  const int64_t out = l.out_channels / l.groups, in = l.channels / l.groups, per_group = group_panels(l);
  const int64_t length = sum_length(l), wide = padded(out);
  const int64_t pairs = ceil_div(r.count, 2 * kTileRows), tiles = 2 * pairs, rows = ceil_div(r.count, tiles);
  Panel p = {nullptr, nullptr, nullptr, offsets, l.taps, stretch(l) / 4, r.step, r.y_row, 0};
  const int64_t quads = tile_quads(p.quads), steps = l.taps * p.quads / quads;
  set_tiles(rows, quads);
  alignas(64) int32_t sums[2 * kTileRows * kPanel];
  const auto pair = [&](int64_t group, int64_t n, int64_t line, int64_t number, Fetch& fetch, int64_t lines) {
    p.weights = (const int8_t*)l.packed + (group * wide + n) * length;
    p.starts = l.starts + group * wide + n, p.factors = l.factors + group * wide + n;
    p.columns = least(kPanel, out - n);
    const int64_t first = 2 * number * r.count / tiles, second = (2 * number + 1) * r.count / tiles;
    const uint8_t* x = r.x + line * r.x_line + group * in;
    const int64_t at = line * r.y_line + group * out + n;
    int64_t stride;
    const char* ahead = fetch.take(lines * steps, &stride);
    if (p.columns > kFloats)
      tile_pair<true>(p, x + first * r.step, x + second * r.step, rows, quads, sums, ahead, lines, stride);
    else
      tile_pair<false>(p, x + first * r.step, x + second * r.step, rows, quads, sums, ahead, lines, stride);
    finish_tile(l, p, sums, rows, moved(l, r.y, at + first * r.y_row), moved(l, r.second, at + first * r.y_row));
    finish_tile(l, p, sums + rows * kPanel, rows, moved(l, r.y, at + second * r.y_row), moved(l, r.second, at + second * r.y_row));
  };
  const int64_t group = begin / per_group, start = begin % per_group * kPanel;
  const int8_t* const packed = (const int8_t*)l.packed;
  if (length * (end - begin) * kPanel <= kManyWeights) {
    Fetch fetch = {(const char*)packed, (const char*)packed};
    for (int64_t line = 0; line < r.lines; ++line)
      for (int64_t number = 0; number < pairs; ++number)
        for (int64_t left = end - begin, g = group, n = start; left > 0; --left) {
          pair(g, n, line, number, fetch, 0);
          n += kPanel;
          if (n >= out) n = 0, ++g;
        }
  } else {
    const int64_t lines = ceil_div(length * kPanel / kLine, r.lines * pairs * steps);
    const char* last = (const char*)(packed + l.groups * wide * length);
    for (int64_t left = end - begin, g = group, n = start; left > 0; --left) {
      const char* next = (const char*)(packed + (g * wide + n + kPanel) * length);
      Fetch fetch = {next, next + length * kPanel};
      if (fetch.end > last) fetch.end = last;
      for (int64_t line = 0; line < r.lines; ++line)
        for (int64_t number = 0; number < pairs; ++number) pair(g, n, line, number, fetch, lines);
      n += kPanel;
      if (n >= out) n = 0, ++g;
    }
  }
  __asm__ volatile("tilerelease" : :);
}

#endif
