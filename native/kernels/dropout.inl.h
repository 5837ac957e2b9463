// Dropout without a stored mask: y = x * (keep ? scale : 0), the mask made a tile at a time in the first-level cache.
//
// A tile is a part of one row of the mask, or several whole rows where they are short; the mask of a tile depends on
// nothing outside it but, for exact counts in long rows, on the row's cut, which is found before.
//
// Memory holds samples in the order in which units are counted, or (channels, positions) where they are counted channels
// last: then the bytes of 16 positions by 16 channels are turned over in registers.

// Short tiles leave the memory busy: while their numbers are made, what was asked for before arrives.

enum { kDropTile = 256, kDropLong = 1 << 13, kDropTurned = 1 << 16, kDropRow = LC_DROPOUT_ROW };  // elements
enum { kDropBytes = 1 << 16, kDropSide = 16, kDropRun = 1 << 16, kDropAhead = 2048, kDropLine = 64 };

static_assert((int)LC_DROPOUT_ROW == (int)kHeld, "rows of exact counts that need no cut");

typedef uint8_t b16 __attribute__((vector_size(16)));

struct DropPlan {
  int64_t rows;      // of the mask
  int64_t tile;      // elements of a row in one tile; more than a row: rows_per of them
  int64_t rows_per;  // whole rows in one tile
  int64_t per_row;   // tiles in a row
  int64_t tiles;
  int64_t samples_per;  // that one turn multiplies with a tile of a mask they share
  int64_t turns;
};

static DropPlan drop_plan(const lc_dropout& d) {
  DropPlan p = {};
  p.rows = d.batch ? 1 : d.samples;
  p.tile = d.exact ? kDropRow : d.batch ? kDropLong : kDropTile;
  if (d.channels > 1) {
    p.tile = kDropTurned / d.channels / kDropSide * kDropSide * d.channels;
    if (p.tile < kDropSide * d.channels) p.tile = kDropSide * d.channels;
  }
  const bool whole = d.elements <= (p.tile < kDropRow ? (int64_t)kDropRow : p.tile);
  if (whole) p.tile = d.elements;
  p.rows_per = whole && d.elements < kDropTile ? kDropTile / d.elements : 1;
  p.per_row = (d.elements + p.tile - 1) / p.tile;
  p.tiles = (p.rows + p.rows_per - 1) / p.rows_per * p.per_row;
  p.samples_per = d.batch ? (kDropRun + p.tile - 1) / p.tile : 1;
  p.turns = d.batch ? (d.samples + p.samples_per - 1) / p.samples_per : 1;
  return p;
}

static int64_t dropout_tasks(const lc_dropout& d) {
  const DropPlan p = drop_plan(d);
  return p.tiles * p.turns;
}

// --- the mask of a tile ---------------------------------------------------------------------------------------------

static bool none(const uint8_t* bytes, int64_t count) {
  uint64_t any = 0;
  int64_t i = 0;
  for (; i + 8 <= count && !any; i += 8) __builtin_memcpy(&any, bytes + i, 8);
  for (; i < count && !any; ++i) any = bytes[i];
  return !any;
}

// The mask whose element `from` of row 0 lies at `bytes`.
static lc_mask drop_mask(const lc_dropout& d, int64_t row, int64_t rows, int64_t from, uint8_t* bytes) {
  lc_mask m = {};
  m.key = d.key;
  m.sample = d.batch ? 0 : d.sample + (uint64_t)row;
  m.rows = rows;
  m.elements = d.elements;
  m.limit = d.limit;
  m.out = (uint8_t*)((uintptr_t)bytes - (uintptr_t)from);
  return m;
}

// A part of a row that has stopped: if all of the row has, its largest number is kept, wherever that is.
static void revive_part(const lc_dropout& d, int64_t row, int64_t from, int64_t count, uint8_t* bytes) {
  uint8_t others[kDropTile];
  for (int64_t e = 0; e < d.elements; e += kDropTile) {
    const int64_t some = d.elements - e < kDropTile ? d.elements - e : (int64_t)kDropTile;
    const lc_mask m = drop_mask(d, row, 1, e, others);
    mask_blocks(m, e / kPerLane16, (e + some + kPerLane16 - 1) / kPerLane16);
    if (!none(others, some)) return;
  }
  const int64_t at = largest(drop_mask(d, row, 1, 0, bytes), 0);
  if (at >= from && at < from + count) bytes[at - from] = 1;
}

static void drop_fill(const lc_dropout& d, int64_t row, int64_t rows, int64_t from, int64_t count, uint8_t* bytes) {
  const lc_mask m = drop_mask(d, row, rows, from, bytes);
  const bool whole = count == d.elements;
  if (!d.exact) {
    if (whole) {
      mask_blocks(m, 0, rows * ((count + kPerLane16 - 1) / kPerLane16));
      mask_revive(m, 0, rows);
    } else {
      mask_blocks(m, from / kPerLane16, (from + count + kPerLane16 - 1) / kPerLane16);
      if (none(bytes, count)) revive_part(d, row, from, count, bytes);
    }
  } else if (d.elements <= kDropRow) {
    exact_rows(m, 0, rows);
  } else {
    const int64_t last = d.cuts[2 * row], at = d.cuts[2 * row + 1];
    uint32_t words[kHeld];
    for (int64_t e = 0; e < count; e += kHeld) {
      const int64_t some = count - e < kHeld ? count - e : (int64_t)kHeld;
      row_words(m, m.sample, (from + e) / kPerLane32, (some + kPerLane32 - 1) / kPerLane32, words);
      for (int64_t i = 0; i < some; ++i)
        bytes[e + i] = !((int64_t)words[i] < last || ((int64_t)words[i] == last && from + e + i <= at));
    }
  }
}

// Exact counts in long rows: the last word that stops, and the last element with that word that does. Rows [begin, end).
static void dropout_cuts(const lc_dropout& d, int64_t begin, int64_t end) {
  uint32_t words[kHeld];
  for (int64_t row = begin; row < end; ++row) {
    const lc_mask m = drop_mask(d, row, 1, 0, nullptr);
    int64_t left = d.limit, at = -1;
    const uint32_t last = last_word(m, m.sample, words, &left);
    each_word(m, m.sample, words, false, [&](int64_t e, uint32_t w) {
      if (w == last && left > 0) --left, at = e;
    });
    d.cuts[2 * row] = last;
    d.cuts[2 * row + 1] = at;
  }
}

// --- its product ----------------------------------------------------------------------------------------------------

LC_INLINE vf drop_factor(const uint8_t* bytes, vu scale) {
#if LC_BYTES == 64 && defined(__AVX512BW__)
  const __m128i keep = _mm_loadu_si128((const __m128i*)bytes);
  return (vf)_mm512_maskz_mov_epi32(_mm_test_epi8_mask(keep, keep), (__m512i)scale);
#elif LC_BYTES == 32 && defined(__AVX2__)
  const vu keep = (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes));
  return (vf)((vu{} - keep) & scale);
#else
  vu keep;  // GCC takes vectors of few bytes apart
  for (int i = 0; i < kFloats; ++i) keep[i] = bytes[i];
  return (vf)((vu{} - keep) & scale);
#endif
}

template <typename T>
LC_INLINE void drop_run(const T* x, T* y, const uint8_t* bytes, int64_t count, vu scale) {
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) store(y + i, load(x + i) * drop_factor(bytes + i, scale));
  if (i < count) {
    uint8_t some[kFloats] = {};
    __builtin_memcpy(some, bytes + i, (size_t)(count - i));
    store_part(y + i, load_part(x + i, count - i) * drop_factor(some, scale), count - i);
  }
}

#if defined(__clang__)
#define LC_BYTES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LC_BYTES_OF(a, b, ...) __builtin_shuffle(a, b, (b16){__VA_ARGS__})
#endif
LC_INLINE void turn_over(b16* rows) {
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) {
    b16 next[kDropSide];
#pragma GCC unroll 8
    for (int i = 0; i < kDropSide / 2; ++i) {
      next[2 * i] = LC_BYTES_OF(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = LC_BYTES_OF(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kDropSide; ++i) rows[i] = next[i];
  }
}

// `count` positions by all channels; bytes channels last, x and y with `stride` positions per channel.
template <typename T>
static void drop_turned(const T* x, T* y, const uint8_t* bytes, int64_t channels, int64_t stride, int64_t count, vu scale) {
  for (int64_t c = 0; c < channels; c += kDropSide) {
    const int64_t some = channels - c < kDropSide ? channels - c : (int64_t)kDropSide;
    for (int64_t p = 0; p < count; p += kDropSide) {
      b16 rows[kDropSide];
      for (int i = 0; i < kDropSide; ++i) __builtin_memcpy(&rows[i], bytes + (p + i) * channels + c, sizeof *rows);
      turn_over(rows);
      const int64_t length = count - p < kDropSide ? count - p : (int64_t)kDropSide;
      for (int64_t i = 0; i < some; ++i) {
        const int64_t at = (c + i) * stride + p;
        drop_run(x + at, y + at, (const uint8_t*)&rows[i], length, scale);
      }
    }
  }
}

template <typename T>
static void tiles_of(const lc_dropout& d, int64_t begin, int64_t end) {
  const DropPlan p = drop_plan(d);
  const float scale_of = (float)d.scale;
  uint32_t bits;
  __builtin_memcpy(&bits, &scale_of, sizeof bits);
  const vu scale = vu{} + bits;
  uint8_t bytes[kDropBytes + 2 * kDropTile + kDropSide];  // turning over reads whole squares
  int64_t made = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / p.turns, turn = task % p.turns;
    const int64_t row = tile / p.per_row * p.rows_per, from = tile % p.per_row * p.tile;
    const int64_t rows = p.rows - row < p.rows_per ? p.rows - row : p.rows_per;
    const int64_t count = d.elements - from < p.tile ? d.elements - from : p.tile;
    if (tile != made) drop_fill(d, row, rows, from, count, bytes), made = tile;
    const int64_t first = d.batch ? turn * p.samples_per : row;
    const int64_t left = d.samples - first, samples = !d.batch ? rows : left < p.samples_per ? left : p.samples_per;
    if (d.channels <= 1 && !d.batch) {
      const int64_t at = row * d.elements + from;
      const char* ahead = (const char*)d.x + at * (int64_t)sizeof(T) + kDropAhead;
      for (int64_t i = 0; i < rows * count * (int64_t)sizeof(T); i += kDropLine) __builtin_prefetch(ahead + i);
      drop_run((const T*)d.x + at, (T*)d.y + at, bytes, rows * count, scale);
      continue;
    }
    const int64_t positions = d.channels > 1 ? d.elements / d.channels : 0;
    for (int64_t i = 0; i < samples; ++i) {
      const uint8_t* keep = d.batch ? bytes : bytes + i * d.elements;
      const int64_t at = (first + i) * d.elements + (d.channels > 1 ? from / d.channels : from);
      const T* x = (const T*)d.x + at;
      T* y = (T*)d.y + at;
      if (d.channels > 1)
        drop_turned(x, y, keep, d.channels, positions, count / d.channels, scale);
      else
        drop_run(x, y, keep, count, scale);
    }
  }
}

// Tiles, each with all its turns before the next.
static void dropout_tiles(const lc_dropout& d, int64_t begin, int64_t end) {
  d.dtype == LC_BF16 ? tiles_of<bf16>(d, begin, end) : tiles_of<float>(d, begin, end);
}
