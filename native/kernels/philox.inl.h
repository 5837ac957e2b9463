// Masks of dropout from Philox4x32-10 (Salmon et al., SC 2011), many counters at a time.
//
// Key words: the low and high half of the 64-bit key. Counter words: c0, c1 = low and high half of (element / elements per
// block), c2, c3 = low and high half of the sample's index. 16-bit numbers: 8 a block, element e has half e % 2 of word
// (e / 2) % 4. 32-bit words: 4 a block, element e has word e % 4, and c3's top bit is set.
//
// One lane is one block and lives in 64 bits. Only the low 32 bits of a lane mean anything between rounds: the widening
// product ignores the rest, so nothing needs to be masked until the end.

enum { kPerLane16 = 8, kPerLane32 = 4, kBatch = kLanes * LC_UNROLL };

struct Words {
  v64 c0[LC_UNROLL], c1[LC_UNROLL], c2[LC_UNROLL], c3[LC_UNROLL];
};

LC_INLINE void rounds(Words& w, uint64_t key) {
  const v64 m0 = splat(0xD2511F53u), m1 = splat(0xCD9E8D57u);
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int r = 0; r < 10; ++r) {
    const v64 s0 = splat(k0), s1 = splat(k1);
#pragma GCC unroll 8
    for (int u = 0; u < LC_UNROLL; ++u) {
      const v64 p0 = multiply_low(w.c0[u], m0), p1 = multiply_low(w.c2[u], m1);
      w.c0[u] = xor3(p1 >> 32, w.c1[u], s0);
      w.c2[u] = xor3(p0 >> 32, w.c3[u], s1);
      w.c1[u] = p1;
      w.c3[u] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Words of kBatch blocks. `blocks` and `samples` hold one index per lane.
LC_INLINE void philox(Words& w, uint64_t key, const v64* blocks, const v64* samples, uint64_t high) {
#pragma GCC unroll 8
  for (int u = 0; u < LC_UNROLL; ++u) {
    w.c0[u] = blocks[u];
    w.c1[u] = blocks[u] >> 32;
    w.c2[u] = samples[u];
    w.c3[u] = (samples[u] >> 32) | high;
  }
  rounds(w, key);
}

// Two 32-bit words side by side: in memory the first comes first.
LC_INLINE v64 join(v64 first, v64 second) { return (first & splat(0xFFFFFFFFu)) | (second << 32); }

// Four 16-bit numbers per lane -> four bytes per lane, each 1 where the number is at least the threshold.
LC_INLINE v64 compare(v64 numbers, v16 threshold) {
  v64 x = (v64)((v16)numbers >= threshold) & splat(0x0001000100010001u);
  x = (x | (x >> 8)) & splat(0x0000FFFF0000FFFFu);
  return (x | (x >> 16)) & splat(0xFFFFFFFFu);
}

// Eight bytes of the mask for each of kBatch blocks.
LC_INLINE void mask_batch(const lc_mask& m, const v64* blocks, const v64* samples, void* bytes) {
  Words w;
  philox(w, m.key, blocks, samples, 0);
  const v16 threshold = v16{} + (uint16_t)m.limit;
#pragma GCC unroll 8
  for (int u = 0; u < LC_UNROLL; ++u)
    store((uint8_t*)bytes + u * LC_BYTES,
          compare(join(w.c0[u], w.c1[u]), threshold) | (compare(join(w.c2[u], w.c3[u]), threshold) << 32));
}

LC_INLINE void count_up(v64* v, uint64_t from) {
  uint64_t lanes[kBatch];
  for (int i = 0; i < kBatch; ++i) lanes[i] = from + (uint64_t)i;
  for (int u = 0; u < LC_UNROLL; ++u) v[u] = load(lanes + u * kLanes);
}

// Blocks of 8 elements, counted over all rows: [begin, end).
static void mask_blocks(const lc_mask& m, int64_t begin, int64_t end) {
  const int64_t per_row = (m.elements + kPerLane16 - 1) / kPerLane16, whole = m.elements / kPerLane16;
  int64_t row = begin / per_row, block = begin % per_row;
  v64 blocks[LC_UNROLL], samples[LC_UNROLL];
  while (begin < end) {
    if (begin + kBatch <= end && block + kBatch <= whole) {  // all of it in one row
      count_up(blocks, (uint64_t)block);
      for (int u = 0; u < LC_UNROLL; ++u) samples[u] = splat(m.sample + (uint64_t)row);
      mask_batch(m, blocks, samples, m.out + row * m.elements + block * kPerLane16);
      block += kBatch;
      begin += kBatch;
      if (block == per_row) block = 0, ++row;
      continue;
    }
    uint64_t b[kBatch], s[kBatch], bytes[kBatch];  // rows end within the batch, or the range does
    int64_t to[kBatch];
    int count[kBatch], used = 0;
    for (; used < kBatch && begin < end; ++used, ++begin) {
      b[used] = (uint64_t)block;
      s[used] = m.sample + (uint64_t)row;
      to[used] = row * m.elements + block * kPerLane16;
      count[used] = block < whole ? (int)kPerLane16 : (int)(m.elements - whole * kPerLane16);
      if (++block == per_row) block = 0, ++row;
    }
    for (int i = used; i < kBatch; ++i) b[i] = s[i] = 0;
    for (int u = 0; u < LC_UNROLL; ++u) blocks[u] = load(b + u * kLanes), samples[u] = load(s + u * kLanes);
    mask_batch(m, blocks, samples, bytes);
    for (int i = 0; i < used; ++i) {
      if (count[i] == kPerLane16)
        __builtin_memcpy(m.out + to[i], bytes + i, kPerLane16);
      else
        for (int j = 0; j < count[i]; ++j) m.out[to[i] + j] = (uint8_t)(bytes[i] >> (8 * j));
    }
  }
}

// One word of one counter, for the rare row that must be looked at again.
static uint32_t word16(uint64_t key, uint64_t block, uint64_t sample, int which) {
  uint32_t c[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)sample, (uint32_t)(sample >> 32)};
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int r = 0; r < 10; ++r) {
    const uint64_t p0 = (uint64_t)c[0] * 0xD2511F53u, p1 = (uint64_t)c[2] * 0xCD9E8D57u;
    c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
    c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
    c[1] = (uint32_t)p1;
    c[3] = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (c[which / 2] >> (16 * (which % 2))) & 0xFFFFu;
}

// The element of a row with the largest number (the first of equals).
static int64_t largest(const lc_mask& m, int64_t row) {
  int64_t best = -1, at = 0;
  for (int64_t e = 0; e < m.elements; ++e) {
    const int64_t x = word16(m.key, (uint64_t)e / kPerLane16, m.sample + (uint64_t)row, (int)(e % kPerLane16));
    if (x > best) best = x, at = e;
  }
  return at;
}

// Where a row has stopped altogether, that element is kept.
static void mask_revive(const lc_mask& m, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    uint8_t* out = m.out + row * m.elements;
    int64_t e = 0;
    while (e < m.elements && !out[e]) ++e;
    if (e == m.elements) out[largest(m, row)] = 1;
  }
}

enum { kHeld = 4096 };  // words of a row held at a time

// 32-bit words of the row from the block on, as many blocks as `words` holds (kHeld / 4).
static void row_words(const lc_mask& m, uint64_t sample, int64_t block, int64_t count, uint32_t* words) {
  v64 blocks[LC_UNROLL], samples[LC_UNROLL];
  uint64_t pairs[2][kBatch];
  for (int u = 0; u < LC_UNROLL; ++u) samples[u] = splat(sample);
  for (int64_t done = 0; done < count; done += kBatch) {
    Words w;
    count_up(blocks, (uint64_t)(block + done));
    philox(w, m.key, blocks, samples, 0x80000000u);
    for (int u = 0; u < LC_UNROLL; ++u) {
      store(pairs[0] + u * kLanes, join(w.c0[u], w.c1[u]));
      store(pairs[1] + u * kLanes, join(w.c2[u], w.c3[u]));
    }
    for (int64_t i = 0; i < kBatch && done + i < count; ++i) {
      __builtin_memcpy(words + (done + i) * kPerLane32, pairs[0] + i, 8);
      __builtin_memcpy(words + (done + i) * kPerLane32 + 2, pairs[1] + i, 8);
    }
  }
}

// Calls f(element, word) for the row in order. Rows that fit into `words` are computed once, longer ones in each pass.
template <typename F>
LC_INLINE void each_word(const lc_mask& m, uint64_t sample, uint32_t* words, bool first, F f) {
  for (int64_t from = 0; from < m.elements; from += kHeld) {
    const int64_t count = m.elements - from < kHeld ? m.elements - from : (int64_t)kHeld;
    if (first || m.elements > kHeld)
      row_words(m, sample, from / kPerLane32, (count + kPerLane32 - 1) / kPerLane32, words);
    for (int64_t i = 0; i < count; ++i) f(from + i, words[i]);
  }
}

// The last word that stops, by a radix selection, 11 + 11 + 10 bits, from the top. `left`: how many stop; afterwards, how
// many of those with that word. Short rows leave their words behind.
static uint32_t last_word(const lc_mask& m, uint64_t sample, uint32_t* words, int64_t* left) {
  uint32_t histogram[1 << 11], last = 0;  // the known top bits
  for (int shift = 21, known = 32; *left > 0 && known > 0; known = shift, shift = shift == 21 ? 10 : 0) {
    __builtin_memset(histogram, 0, sizeof histogram);
    const uint32_t top = last;
    each_word(m, sample, words, known == 32, [&](int64_t, uint32_t w) {
      if (known == 32 || (w >> known) == (top >> known)) ++histogram[(w >> shift) & ((1u << (known - shift)) - 1)];
    });
    uint32_t bucket = 0;
    while (*left > (int64_t)histogram[bucket]) *left -= histogram[bucket++];
    last |= bucket << shift;
  }
  return last;
}

// Rows [begin, end).
static void exact_rows(const lc_mask& m, int64_t begin, int64_t end) {
  uint32_t words[kHeld];
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t sample = m.sample + (uint64_t)row;
    uint8_t* out = m.out + row * m.elements;
    if (m.limit == 0) {
      __builtin_memset(out, 1, (size_t)m.elements);
      continue;
    }
    int64_t left = m.limit;  // among the words equal to the last, after it is known
    const uint32_t last = last_word(m, sample, words, &left);
    each_word(m, sample, words, false, [&](int64_t e, uint32_t w) {
      const bool stops = w < last || (w == last && left > 0);
      left -= w == last && stops;
      out[e] = !stops;
    });
  }
}
