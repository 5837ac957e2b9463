// Weight gradient of the depthwise convolution, and the bias's. Rows are summed in chunks whose number depends on the shape
// alone; chunks are added in a fixed tree. So threads never change a bit.
//
// Sums are laid out as packed weights: for each chunk its totals, then those of the latest few rows, which are added to the
// totals before rounding errors grow. A task is one chunk of a group of blocks.

enum {
  kGroupBytes = 26 << 10,  // of the sums of a group of blocks: what stays in the first-level cache
  kChunks = 32,
  kChunkMacs = 1 << 19,
  kChunkPositions = 2048,  // at most, of the outputs that one sum takes in
  kLatest = 56,            // outputs before the latest rows are added to the totals
};

static int64_t chunks_of(const lc_depthwise& d) {
  const int64_t rows = d.images * d.out_height, taps = d.kernel_height * d.kernel_width;
  const int64_t macs = d.out_width * d.channels * d.multiplier * taps * rows;
  const int64_t wanted = most(least(kChunks, macs / kChunkMacs), rows * d.out_width / kChunkPositions);
  return most(1, least(rows, wanted));
}
// Blocks of a group; groups are of nearly one size.
static int64_t groups_of(const lc_depthwise& d) {
  const int64_t blocks = depthwise_blocks(d), bytes = d.multiplier * plane_size(d) * (int64_t)sizeof(float);
  const int64_t size = most(1, kGroupBytes / bytes);
  return (blocks + size - 1) / size;
}
static int64_t depthwise_tasks(const lc_depthwise& d) { return chunks_of(d) * groups_of(d); }
static int64_t depthwise_scratch(const lc_depthwise& d) {
  return 2 * chunks_of(d) * depthwise_blocks(d) * d.multiplier * plane_size(d);
}

// Adds to P taps of one kernel row what N outputs with gradients dy and their inputs bring.
template <typename T, int P, int S, int N, bool Border>
LC_INLINE void add_products(float* to, const vf* dy, const T* x, int64_t column, int64_t low, int64_t high,
                            int64_t stride) {
  constexpr int inputs = P == 1 ? N : (N - 1) * S + P;
  const int64_t jump = P == 1 ? stride * column : column, unit = P == 1 ? stride : 1;
  vf sum[P];
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) sum[q] = load(to + q * kFloats);
#pragma GCC unroll 32
  for (int i = 0; i < inputs; ++i, x += jump) {
    if (Border && missing(i * unit, low, high)) continue;
    const vf v = P == 1 ? load(x) : held(load(x));
    if (P == 1) {
      sum[0] += v * dy[i];
      continue;
    }
#pragma GCC unroll 8
    for (int q = 0; q < P; ++q)
      if (i >= q && (i - q) % S == 0 && (i - q) / S < N) sum[q] += v * dy[(i - q) / S];
  }
#pragma GCC unroll 8
  for (int q = 0; q < P; ++q) store(to + q * kFloats, sum[q]);
}

template <typename T>
LC_INLINE vf load_plane(const T* p, int64_t plane, int64_t multiplier, int64_t lanes) {
  if (multiplier == 1 && lanes == kFloats) return load(p);
  if (multiplier == 2 && lanes == kFloats)
    return plane ? odd(load(p), load(p + kFloats)) : even(load(p), load(p + kFloats));
  return gather(p, plane, multiplier, lanes);
}

// `to`: the partial sums of block `begin`. The tile's y is the output's gradient.
template <typename T, int P, int S, int N, bool Border, bool Exact>
static void weight_tile(const Tile<T>& t, int64_t begin, int64_t end, float* to) {
  const lc_depthwise& d = *t.conv;
  const int64_t w_row = d.kernel_width * kFloats, m = d.multiplier, size = plane_size(d), column = t.x_column;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t c = block_channel(d, b);
    for (int64_t plane = 0; plane < m; ++plane, to += size) {
      vf dy[N];
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) dy[i] = load_plane(t.y + i * t.y_column + c * m, plane, m, kFloats);
      vf bias = load(to);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) bias += dy[i];
      store(to, bias);
      const T* x = t.x + c;
      float* taps = to + t.weight + t.first * w_row;
      for (int64_t r = t.first; r < t.last; ++r, x += t.x_row, taps += w_row) {
        if (Exact) {
          add_products<T, P, S, N, Border>(taps, dy, x, column, t.low, t.high, t.stride);
          continue;
        }
        int64_t q = 0;
        for (; P > 1 && q + P <= t.taps_w; q += P)
          add_products<T, P, S, N, Border>(taps + q * kFloats, dy, x + q * column, column, t.low - q, t.high - q,
                                           t.stride);
        for (; q < t.taps_w; ++q)
          add_products<T, 1, 1, N, Border>(taps + q * kFloats, dy, x + q * column, column, t.low - q, t.high - q,
                                           t.stride);
      }
    }
  }
}

// Fewer channels than a vector: one output at a time, lane by lane.
template <typename T>
static void weight_lanes(const Tile<T>& t, int64_t, int64_t, float* to) {
  const lc_depthwise& d = *t.conv;
  for (int64_t plane = 0; plane < d.multiplier; ++plane, to += plane_size(d)) {
    const vf dy = gather(t.y, plane, d.multiplier, d.channels);
    store(to, load(to) + dy);
    for (int64_t r = t.first; r < t.last; ++r)
      for (int64_t q = most(0, t.low); q < least(t.taps_w, t.high); ++q) {
        float* tap = to + t.weight + (r * d.kernel_width + q) * kFloats;
        store(tap, load(tap) + dy * gather(t.x + (r - t.first) * t.x_row + q * t.x_column, 0, 1, d.channels));
      }
  }
}

template <typename T>
using WeightKernel = void (*)(const Tile<T>&, int64_t, int64_t, float*);
template <typename T>
struct WeightKernels {
  WeightKernel<T> whole, border, four, one;  // of 7, 7, 4 outputs and 1
};

template <typename T, int P, int S, bool Exact>
static WeightKernels<T> weight_kernels_of() {
  return {weight_tile<T, P, S, kTile, false, Exact>, weight_tile<T, P, S, kTile, true, Exact>,
          weight_tile<T, P, S, 4, true, Exact>, weight_tile<T, 1, 1, 1, true, false>};
}

template <typename T>
static WeightKernels<T> weight_kernels(const lc_depthwise& d, const Class& c) {
  if (d.channels < kFloats) return {nullptr, nullptr, nullptr, weight_lanes<T>};
  if (c.stride == 2) {
    if (c.taps == 3) return weight_kernels_of<T, 3, 2, true>();
    if (c.taps == 5) return weight_kernels_of<T, 5, 2, true>();
    if (c.taps == 7) return weight_kernels_of<T, 7, 2, true>();
  }
  if (c.stride == 1) {
    if (c.taps == 3) return weight_kernels_of<T, 3, 1, true>();
    if (c.taps == 5) return weight_kernels_of<T, 5, 1, true>();
    if (c.taps == 7) return weight_kernels_of<T, 7, 1, true>();
    if (c.taps > 7) return weight_kernels_of<T, 7, 1, false>();
  }
  return weight_kernels_of<T, 1, 1, false>();
}

// One output row of one class of columns: tiles of 7, then 4, then single outputs; an output that does not exist must not
// be multiplied, because zero times infinity is not zero.
template <typename T>
LC_INLINE void weight_row(const Tile<T>& start, const Class& c, const WeightKernels<T>& kernels, int64_t begin,
                          int64_t end, float* to) {
  for (int64_t at = 0, count; at < c.count; at += count) {
    const int64_t left = c.count - at;
    count = kernels.whole == nullptr || left < 4 ? 1 : left < kTile ? 4 : (int64_t)kTile;
    const Tile<T> t = place(start, c, at, count, start.conv->width);
    (count == 1 ? kernels.one : count == 4 ? kernels.four : whole(t) ? kernels.whole : kernels.border)(t, begin, end, to);
  }
}

static void add_latest(float* totals, float* latest, int64_t size) {
  for (int64_t i = 0; i < size; i += kFloats) {
    store(totals + i, load(totals + i) + load(latest + i));
    store(latest + i, vf{});
  }
}

template <typename T>
static void weight_task(const lc_depthwise& d, const T* x, T* dy, int64_t task) {
  const Axis axis_h = axis_of_rows(d), axis_w = axis_of_columns(d);
  const Side rows = side_of(axis_h, false), columns = side_of(axis_w, false);
  const int64_t groups = groups_of(d), chunk = task / groups, chunks = chunks_of(d), all = d.images * d.out_height;
  const int64_t group = task % groups, blocks = depthwise_blocks(d);
  const int64_t begin = blocks * group / groups, end = blocks * (group + 1) / groups;
  const int64_t block_size = d.multiplier * plane_size(d);
  const int64_t size = (end - begin) * block_size, latest_rows = most(1, kLatest / most(1, d.out_width));
  float* const totals = d.scratch + (2 * chunk * depthwise_blocks(d) + begin) * block_size;
  float* const latest = totals + depthwise_blocks(d) * block_size;
  __builtin_memset(totals, 0, (size_t)size * sizeof(float));
  __builtin_memset(latest, 0, (size_t)size * sizeof(float));
  const int64_t first = all * chunk / chunks, last = all * (chunk + 1) / chunks;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t r = 0; r < least(columns.step, columns.out); ++r) {
      const Class c = class_of(axis_w, false, r);
      const Tile<T> start = tile_of(d, x, dy, rows, columns, c, row, 1);
      weight_row(start, c, weight_kernels<T>(d, c), begin, end, latest);
    }
    if ((row - first) % latest_rows == latest_rows - 1 || row == last - 1) add_latest(totals, latest, size);
  }
}

static void depthwise_weight(const lc_depthwise& d, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    if (d.bf16)
      weight_task(d, (const bf16*)d.x, (bf16*)d.y, task);
    else
      weight_task(d, (const float*)d.x, (float*)d.y, task);
  }
}

// The sum of `count` vectors, `stride` floats apart.
static vf tree_sum(const float* p, int64_t stride, int64_t count) {
  if (count > 4) return tree_sum(p, stride, count / 2) + tree_sum(p + count / 2 * stride, stride, count - count / 2);
  vf sum = load(p);
  for (int64_t i = 1; i < count; ++i) sum += load(p + i * stride);
  return sum;
}

// The sum over chunks, into weight and bias. The last block writes only what no other one does.
static void depthwise_sum(const lc_depthwise& d, int64_t begin, int64_t end) {
  const int64_t chunks = chunks_of(d), taps = d.kernel_height * d.kernel_width, size = plane_size(d);
  const int64_t chunk_size = 2 * depthwise_blocks(d) * d.multiplier * size;
  for (int64_t i = begin * d.multiplier; i < end * d.multiplier; ++i) {
    const int64_t block = i / d.multiplier, plane = i % d.multiplier, channel = block_channel(d, block);
    const int64_t lanes = least(d.channels, kFloats);
    for (int64_t tap = -1; tap < taps; ++tap) {
      float* from = d.scratch + i * size + (1 + tap) * kFloats;
      store(from, tree_sum(from, chunk_size, chunks));
      for (int64_t v = block * kFloats - channel; v < lanes; ++v) {
        const int64_t out = (channel + v) * d.multiplier + plane;
        if (tap >= 0)
          d.weight[out * taps + tap] = from[v];
        else if (d.bias)
          d.bias[out] = from[v];
      }
    }
  }
}
