// Depthwise convolution: geometry, packed weights and what the loops of its three passes share.
//
// Each axis is reduced to classes of output positions that use the same taps. In a class the outputs are
// first + step * t, and tap q of output t reads input base + jump * (t * stride + q): a tile of neighbouring t shares its
// inputs whatever the dilation is, and the input gradient of a strided convolution is a few small ones of stride 1.
//
// Weights are packed [block of channels][multiplier][bias, then taps][kFloats]. The last block is shifted back so that it
// is full; its first channels are computed twice, to the same bits. Fewer channels than a vector: a slow path by lanes.

enum { kTile = 7 };  // outputs of a tile: divides 7, 14, 28, 56, 112

struct Axis {
  int64_t in, out, kernel, stride, pad, dilation;  // in and out are those of the convolution, whichever the pass
  int64_t unit, jump;                              // stride and dilation without their common divisor
};
struct Class {
  int64_t first, step, count, base, jump, stride;
  int64_t taps, weight;  // the first tap's place in the packed order; they follow each other
};
static int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

static Axis axis_of(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t g = common_divisor(stride, dilation);
  return {in, out, kernel, stride, pad, dilation, stride / g, dilation / g};
}
static Axis axis_of_rows(const lc_depthwise& d) {
  return axis_of(d.height, d.out_height, d.kernel_height, d.stride_height, d.pad_height, d.dilation_height);
}
static Axis axis_of_columns(const lc_depthwise& d) {
  return axis_of(d.width, d.out_width, d.kernel_width, d.stride_width, d.pad_width, d.dilation_width);
}

LC_INLINE int64_t positions(int64_t first, int64_t step, int64_t out) {
  return first < out ? (out - first + step - 1) / step : 0;
}

// Forward: outputs r + step * t, r < step, where step is the least that moves the input by a multiple of the dilation.
// Flipped, for the input gradient: x[i] gathers y[(i + pad - k * dilation) / stride] for every k that divides, which are
// every `unit`-th tap; they come in descending order, so that the position in y ascends.
LC_INLINE int64_t classes(const Axis& a, bool flipped) { return flipped ? a.stride * a.jump : a.jump; }

static Class class_of(const Axis& a, bool flipped, int64_t r) {
  const int64_t step = classes(a, flipped);
  if (!flipped) return {r, step, positions(r, step, a.out), r * a.stride - a.pad, a.dilation, a.unit, a.kernel, 0};
  Class c = {r, step, positions(r, step, a.in), 0, a.jump, 1, 0, 0};
  for (int64_t k = 0; k < a.unit && k < a.kernel; ++k) {
    const int64_t taps = (a.kernel - k + a.unit - 1) / a.unit, reach = r + a.pad - k * a.dilation;
    if (reach % a.stride == 0) {
      c.taps = taps;
      c.base = reach / a.stride - (taps - 1) * a.jump;
      return c;
    }
    c.weight += taps;
  }
  return c;  // no tap reaches these
}

// The tap at place `q` of the packed order.
static int64_t packed_tap(const Axis& a, bool flipped, int64_t q) {
  for (int64_t k = 0; flipped; ++k) {
    const int64_t taps = (a.kernel - k + a.unit - 1) / a.unit;
    if (q < taps) return k + (taps - 1 - q) * a.unit;
    q -= taps;
  }
  return q;
}

// Taps q of output t that lie inside of an input of `in` positions.
static Span inside(const Class& c, int64_t t, int64_t in) {
  const int64_t start = c.base + c.jump * t * c.stride;
  const int64_t begin = most(0, ceil_div(-start, c.jump)), end = least(c.taps, ceil_div(in - start, c.jump));
  return {begin, most(begin, end)};
}

// Element offset of a pixel; images x height x width x channels fits into 63 bits, which the dispatcher checks.
LC_INLINE int64_t pixel(int64_t row, int64_t column, int64_t width, int64_t channels) {
  return (row * width + column) * channels;
}

static int64_t depthwise_blocks(const lc_depthwise& d) { return (d.channels + kFloats - 1) / kFloats; }
LC_INLINE int64_t block_channel(const lc_depthwise& d, int64_t block) {
  return most(0, least(block * kFloats, d.channels - kFloats));
}
LC_INLINE int64_t plane_size(const lc_depthwise& d) { return (1 + d.kernel_height * d.kernel_width) * kFloats; }

static void pack(const lc_depthwise& d, int64_t begin, int64_t end, bool flipped) {
  const Axis rows = axis_of_rows(d), columns = axis_of_columns(d);
  const int64_t taps = d.kernel_height * d.kernel_width, lanes = least(d.channels, kFloats);
  for (int64_t i = begin * d.multiplier; i < end * d.multiplier; ++i) {
    const int64_t first = block_channel(d, i / d.multiplier) * d.multiplier + i % d.multiplier;
    float* to = d.scratch + i * plane_size(d);
    __builtin_memset(to, 0, (size_t)plane_size(d) * sizeof(float));
    if (d.bias && !flipped)
      for (int64_t v = 0; v < lanes; ++v) to[v] = d.bias[first + v * d.multiplier];
    for (int64_t h = 0; h < d.kernel_height; ++h) {
      const int64_t row = packed_tap(rows, flipped, h) * d.kernel_width;
      for (int64_t w = 0; w < d.kernel_width; ++w) {
        const float* from = d.weight + first * taps + row + packed_tap(columns, flipped, w);
        to += kFloats;
        for (int64_t v = 0; v < lanes; ++v) to[v] = from[v * d.multiplier * taps];
      }
    }
  }
}
static void depthwise_pack(const lc_depthwise& d, int64_t begin, int64_t end) { pack(d, begin, end, false); }
static void depthwise_pack_flipped(const lc_depthwise& d, int64_t begin, int64_t end) { pack(d, begin, end, true); }

// Lane v of the result is p[v * multiplier + plane], for v < lanes; `p` is plane 0 of the first channel.
template <typename T>
static vf gather(const T* p, int64_t plane, int64_t multiplier, int64_t lanes) {
  float out[kFloats] = {};
  for (int64_t v = 0; v < lanes; ++v) out[v] = widen(p[v * multiplier + plane]);
  return load(out);
}
template <typename T>
static void scatter(T* p, vf v, int64_t plane, int64_t multiplier, int64_t lanes) {
  float in[kFloats];
  store(in, v);
  for (int64_t i = 0; i < lanes; ++i) put(p + i * multiplier + plane, in + i);
}

// What a kernel knows of a tile: `count` outputs of a row, or of two rows at once, whose input rows are one apart. x is
// what is read, y what is written, whichever the pass.
template <typename T>
struct Tile {
  const T* x;               // input row `first` under tap 0 of output 0; may lie outside, as low and high tell
  int64_t x_row, x_column;  // elements from one to the next
  int64_t first, last;      // input rows inside, counted from the one under the first tap
  int64_t low, high;        // input columns inside: low <= t * stride + q < high
  T* y;                     // output 0
  int64_t y_row, y_column;
  int64_t taps_h, taps_w, stride, count;
  int64_t weight;  // floats from a plane's start to the first row's first tap
  const lc_depthwise* conv;
};

// Whether every input of the tile is there.
template <typename T>
LC_INLINE bool whole(const Tile<T>& t) {
  return t.count == kTile && t.low <= 0 && t.high >= (t.count - 1) * t.stride + t.taps_w;
}

// One axis of one pass: `out` positions are computed from `in` positions.
struct Side {
  const Axis* axis;
  bool flipped;
  int64_t out, in, step;
};
LC_INLINE Side side_of(const Axis& a, bool flipped) {
  return {&a, flipped, flipped ? a.in : a.out, flipped ? a.out : a.in, classes(a, flipped)};
}

// The tile of output row `row`, counted over all images, and of a class of columns, before its place in the row is known.
// `together`: output rows, 1 or 2.
template <typename T>
LC_INLINE Tile<T> tile_of(const lc_depthwise& d, const T* x, T* y, const Side& rows, const Side& columns,
                          const Class& c, int64_t row, int64_t together) {
  const int64_t narrow = d.channels, wide = d.channels * d.multiplier;
  const int64_t in = rows.flipped ? wide : narrow, out = rows.flipped ? narrow : wide;
  const int64_t image = row / rows.out, o = row % rows.out, t = o / rows.step;
  Class r = class_of(*rows.axis, rows.flipped, o % rows.step);
  Tile<T> tile;
  tile.taps_h = r.taps;
  if (r.taps) r.taps += together - 1;
  const Span span = inside(r, t, rows.in);
  tile.x = x + pixel(image * rows.in + r.base + r.jump * (t * r.stride + span.begin), 0, columns.in, in);
  tile.x_row = pixel(r.jump, 0, columns.in, in);
  tile.x_column = c.jump * in;
  tile.first = span.begin;
  tile.last = span.end;
  tile.y = y + pixel(row, c.first, columns.out, out);
  tile.y_row = pixel(rows.step, 0, columns.out, out);
  tile.y_column = c.step * out;
  tile.taps_w = c.taps;
  tile.stride = c.stride;
  tile.weight = (1 + r.weight * d.kernel_width + c.weight) * kFloats;
  tile.conv = &d;
  return tile;
}

// The same, from the class's output `at` on.
template <typename T>
LC_INLINE Tile<T> place(Tile<T> t, const Class& c, int64_t at, int64_t count, int64_t width) {
  const int64_t base = c.base + c.jump * at * c.stride;
  t.count = count;
  t.x += base * (t.x_column / c.jump);
  t.y += at * t.y_column;
  t.low = ceil_div(-base, c.jump);
  t.high = most(t.low, ceil_div(width - base, c.jump));
  return t;
}

// Whether input column i, or i * stride, is missing from a border tile.
LC_INLINE bool missing(int64_t i, int64_t low, int64_t high) { return (uint64_t)(i - low) >= (uint64_t)(high - low); }
