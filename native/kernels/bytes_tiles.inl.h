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

// A pair of tiles of rows whose sums are in the tiles, then in memory, rows from `done` on. While a pair is computed the one
// before it is stored, and the one before that is finished, bit by bit: so all parts of the processor have something to do.
struct Sums {
  Panel panel;
  int32_t* at;
  int64_t rows, done, apart;  // `apart`: from the first tile's first row to the second one's
  uint8_t* y;
  const uint8_t* second;
  Finish finish;
};
LC_INLINE void finish_some(const lc_layer& l, Sums& s, int64_t rows) {
  const int64_t count = least(rows, s.rows - s.done), from = s.done * s.panel.y_row;
  if (count <= 0) return;
  uint8_t* const y = (uint8_t*)moved(l, (float*)s.y, from);
  s.finish(l, s.panel, s.at + s.done * kPanel, count, y, (const uint8_t*)moved(l, (const float*)s.second, from));
  s.done += count;
}

// Where the next panels' weights are fetched from memory: so many lines after each step.
struct Lines {
  const char* at;
  int64_t count, stride;
};

// Rows of both tiles follow each other; those that both have are written twice.
LC_INLINE void store_tiles(const Sums& s) {
  int32_t* const other = s.at + s.apart * kPanel;
  LC_TILE_STORE(0, s.at);
  LC_TILE_STORE(1, s.at + kFloats);
  LC_TILE_STORE(2, other);
  LC_TILE_STORE(3, other + kFloats);
}

// Sums of two tiles of rows, from x on and `apart` rows further on, with two tiles of channels, or with one. Each tile is
// stored, for `held`, just before it starts anew; `share` rows of `stored` are finished after each product.
template <bool Two>
static void tile_pair(const lc_layer& l, const Panel& p, const uint8_t* x, int64_t apart, int64_t quads, Lines& ahead, const Sums& held,
                      Sums& stored, int64_t share) {
  const int64_t line = Two ? 128 : 64, bytes = quads * 4, step = p.step;
  const int8_t* b = p.weights;
  const uint8_t *a0 = x + p.offsets[0], *a1 = a0 + apart * step;
  int32_t *const sums = held.at, *const other = sums + held.apart * kPanel;
  LC_TILE_LOAD(6, b, line);
  LC_TILE_LOAD(4, a0, step);
  LC_TILE_STORE(0, sums);
  LC_TILE_LOAD(0, p.starts, 0);
  LC_TILE_DOT(0, 4, 6);
  finish_some(l, stored, share);
  LC_TILE_STORE(1, sums + kFloats);
  if (Two) {
    LC_TILE_LOAD(7, b + 64, line);
    LC_TILE_LOAD(1, p.starts + kFloats, 0);
    LC_TILE_DOT(1, 4, 7);
  }
  finish_some(l, stored, share);
  LC_TILE_LOAD(5, a1, step);
  LC_TILE_STORE(2, other);
  LC_TILE_LOAD(2, p.starts, 0);
  LC_TILE_DOT(2, 5, 6);
  finish_some(l, stored, share);
  LC_TILE_STORE(3, other + kFloats);
  if (Two) {
    LC_TILE_LOAD(3, p.starts + kFloats, 0);
    LC_TILE_DOT(3, 5, 7);
  }
  finish_some(l, stored, share);
  for (int64_t tap = 0, left = p.quads;;) {
    for (int64_t i = 0; i < ahead.count; ++i, ahead.at += ahead.stride) __builtin_prefetch(ahead.at, 0, 2);
    left -= quads, a0 += bytes, a1 += bytes, b += quads * line;
    if (left <= 0) {
      if (++tap == p.taps) return;
      left = p.quads, a0 = x + p.offsets[tap], a1 = a0 + apart * step;
    }
    LC_TILE_LOAD(6, b, line);
    LC_TILE_LOAD(4, a0, step);
    LC_TILE_DOT(0, 4, 6);
    if (Two) {
      LC_TILE_LOAD(7, b + 64, line);
      LC_TILE_DOT(1, 4, 7);
    }
    finish_some(l, stored, share);
    LC_TILE_LOAD(5, a1, step);
    LC_TILE_DOT(2, 5, 6);
    if (Two) LC_TILE_DOT(3, 5, 7);
    finish_some(l, stored, share);
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
  const int64_t share = (ceil_div(2 * rows, 2 * steps + 2) + 3) / 4 * 4;
  alignas(64) int32_t memory[2][2 * kTileRows * kPanel];
  Sums both[2] = {};  // held and stored in turn: nothing is copied
  for (int i = 0; i < 2; ++i) both[i].panel = p, both[i].at = memory[i];
  int turn = 0;
  const Finish kinds[] = {pick_finish(l, kPanel, r.second), pick_finish(l, kPanel - 1, r.second), pick_finish(l, kFloats, r.second),
                          pick_finish(l, kFloats - 1, r.second)};
  const auto pair = [&](int64_t group, int64_t n, int64_t line, int64_t number, Fetch& fetch, int64_t lines) {
    Sums &held = both[turn], &stored = both[1 - turn];
    p.weights = (const int8_t*)l.packed + (group * wide + n) * length;
    p.starts = l.starts + group * wide + n;
    const int64_t columns = least(kPanel, out - n);
    const int64_t first = least(2 * number * rows, r.count - rows), apart = least(first + rows, r.count - rows) - first;
    const uint8_t* x = r.x + line * r.x_line + first * r.step + group * in;
    const int64_t at = line * r.y_line + first * r.y_row + group * out + n;
    int64_t stride;
    const char* from = fetch.take(lines * steps, &stride);
    Lines ahead = {from, lines, stride};
    if (columns > kFloats)
      tile_pair<true>(l, p, x, apart, quads, ahead, held, stored, share);
    else
      tile_pair<false>(l, p, x, apart, quads, ahead, held, stored, share);
    finish_some(l, stored, stored.rows);
    turn = 1 - turn;
    stored.panel.factors = l.factors + group * wide + n, stored.panel.columns = columns;
    stored.rows = apart + rows, stored.done = 0, stored.apart = apart;
    stored.y = (uint8_t*)moved(l, r.y, at), stored.second = (const uint8_t*)moved(l, r.second, at);
    stored.finish = columns > kFloats ? kinds[columns < kPanel] : kinds[2 + (columns < kFloats)];
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
  finish_some(l, both[1 - turn], both[1 - turn].rows);
  store_tiles(both[turn]);
  finish_some(l, both[turn], both[turn].rows);
  __asm__ volatile("tilerelease" : :);
}

#endif
