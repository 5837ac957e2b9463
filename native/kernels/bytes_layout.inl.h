// How products over bytes lie in memory: packed weights, and the rows that they are multiplied by.
//
// Weights lie in panels of kPanel output channels of one group, [tap][four bytes of the sum][kPanel][4], stretches filled up
// with zeros; a last panel of at most kFloats channels is half as wide. Sums start at what makes up for the zero point.

#if defined(LC_PATH_vnni) || defined(LC_PATH_amx)
enum { kTall = 14 };
#elif LC_BYTES == 64
enum { kTall = 10 };
#elif defined(LC_PATH_avxvnni)
enum { kTall = 6 };
#else
enum { kTall = 4 };
#endif
enum {
  kPanel = 2 * kFloats,
  kLine = 64,                // bytes
  kManyWeights = 192 << 10,  // bytes beyond which weights are read once for many rows, else rows once for all weights
  kHeldMany = 224 << 10,     // bytes of rows that a thread holds for one reading of many weights
  kHeldFew = 160 << 10,       // and of few
  kBehind = 16,              // floats behind a copy, which are read and count for nothing
};

#if defined(LC_PATH_amx)
enum { kTileRows = 16, kTileQuads = 16 };  // of four bytes of the sum

// How many quads of a stretch a tile takes: as many as leave the fewest behind its end.
LC_INLINE int64_t tile_quads(int64_t quads) { return ceil_div(quads, ceil_div(quads, kTileQuads)); }
#endif

LC_INLINE const uint8_t* numbers(const float* x) { return (const uint8_t*)x; }
LC_INLINE float* moved(const lc_layer& l, const float* y, int64_t n) {
  return y ? (float*)((char*)y + (l.y_quantized ? n : n * 4)) : nullptr;
}
// Most of `count` pixels of three bytes, as far as that may read a few bytes more, to places for four; how many.
LC_INLINE int64_t copy_threes(const lc_layer& l, const uint8_t* x, uint8_t* y, int64_t count) {
  int64_t i = 0;
  if (l.pixel != 4) return i;
#if defined(__AVX2__)
  const __m128i to = _mm_setr_epi8(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
  for (; i + 6 <= count; i += 4)
    _mm_storeu_si128((__m128i*)(y + i * 4), _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(x + i * 3)), to));
#endif
  for (; i + 2 <= count; ++i) __builtin_memcpy(y + i * 4, x + i * 3, 4);
  return i;
}
LC_INLINE int64_t floats_of(int64_t numbers) { return ceil_div(numbers, 64) * 16 + kBehind; }

// --- weights --------------------------------------------------------------------------------------------------------

LC_INLINE int64_t panels_of(int64_t channels) { return ceil_div(channels, kPanel); }
LC_INLINE int64_t padded(int64_t channels) { return ceil_div(channels, kFloats) * kFloats; }
LC_INLINE int64_t group_panels(const lc_layer& l) { return panels_of(l.out_channels / l.groups); }
static int64_t engine_panels(const lc_layer& l) { return l.groups * group_panels(l); }

// Bytes of one tap's weights of a channel: whole quads, and whole tiles of them where there are such.
LC_INLINE int64_t stretch(const lc_layer& l) {
  const int64_t quads = ceil_div(l.length, 4);
#if defined(LC_PATH_amx)
  return ceil_div(quads, tile_quads(quads)) * tile_quads(quads) * 4;
#else
  return quads * 4;
#endif
}
LC_INLINE int64_t sum_length(const lc_layer& l) { return l.taps * stretch(l); }

// Floats of the packed weights, of the starts and of the factors, one behind the other.
static int64_t conv_packed(const lc_layer& l) { return l.groups * padded(l.out_channels / l.groups) * (sum_length(l) / 4 + 2); }

// The weight of output channel `channel` that byte k of tap t is multiplied by.
static int8_t weight_at(const lc_layer& l, int64_t channel, int64_t t, int64_t k) {
  const int64_t in = l.channels / l.groups;
  const bool whole = l.taps != l.kernel_height * l.kernel_width || l.length != in;
  const int64_t at = whole ? k % l.pixel : k;
  if (at >= in || k >= l.length) return 0;
  const int64_t tap = whole ? t * l.kernel_width + k / l.pixel : t;
  return l.bytes[(channel * l.kernel_height * l.kernel_width + tap) * in + at];
}

static void conv_pack(lc_layer& l) {
  const int64_t out = l.out_channels / l.groups, each = stretch(l), length = sum_length(l), wide = padded(out);
  int8_t* const packed = (int8_t*)l.packed;
  l.starts = (int32_t*)(packed + l.groups * wide * length);
  l.factors = (float*)(l.starts + l.groups * wide);
  for (int64_t g = 0; g < l.groups; ++g)
    for (int64_t n = 0; n < wide; ++n) {
      const int64_t panel = n / kPanel, width = least(kPanel, wide - panel * kPanel), channel = g * out + n;
      int8_t* to = packed + (g * wide + panel * kPanel) * length + n % kPanel * 4;
      int64_t sum = 0;
      for (int64_t t = 0; t < l.taps; ++t)
        for (int64_t k = 0; k < each; ++k) {
          const int8_t w = n < out ? weight_at(l, channel, t, k) : (int8_t)0;
          to[(t * each + k) / 4 * width * 4 + k % 4] = w;
          sum += w;
        }
      l.starts[g * wide + n] = n < out ? (int32_t)(l.sums[channel] - l.zero * sum) : 0;
      l.factors[g * wide + n] = n < out ? lc_factor_of(l, l.scales[channel]) : 0.0f;
    }
}

// --- rows ---------------------------------------------------------------------------------------------------------------

// One panel and where its results go; the same for all tiles of rows.
struct Panel {
  const int8_t* weights;
  const int32_t* starts;
  const float* factors;
  const int64_t* offsets;
  int64_t taps, quads;  // of a stretch
  int64_t step;         // bytes from a row of x to the next
  int64_t y_row;
  int64_t columns;
};
