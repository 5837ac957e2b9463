// Pointwise convolution between two batch norms: y = a W^T over rows of pixels, a = keep scale act((x - mean) p + q) made from
// x in the load of the product, the statistics of y in its epilogue. The backward pass makes the gradient of y from that of
// act(norm(y)) in the load, and in the epilogue the gradient before the first activation with the sums that its norm needs.
//
// A chunk of rows is normalised once into the second-level cache, as blocks of kBlock channels: [block][row][kStride], an odd
// number of cache lines, so that rows do not share sets. Products run on tiles of kTall rows and kPanel columns whose sums
// stay in registers. Weights are packed into panels of kPanel columns. How rows are cut depends on the shape and on the
// instruction set; chunks are added in order, so the number of threads never shows.

// Whether the maps lie in memory: what a cache holds comes soon enough.
template <typename T>
LC_INLINE bool far_away(const lc_pointwise& p) {
  return p.rows * (p.in_channels + p.out_channels) * (int64_t)sizeof(T) >= kFar;
}

// --- sizes and scratch ----------------------------------------------------------------------------------------------

LC_INLINE int64_t panels_of(int64_t channels) { return ceil_div(channels, kPanel); }

LC_INLINE int64_t partial_size(const lc_pointwise& p) {
  return ceil_div(p.out_channels, kTall) * panels_of(p.in_channels) * kTall * kPanel;
}

// Lays out the scratch memory from `at` on and returns its end; called with 0 it counts.
static int64_t pointwise_plan(lc_pointwise& p, int64_t at, int64_t backward) {
  const int64_t wide = p.in_channels + (backward ? p.out_channels : 0);
  const int64_t blocks = ceil_div(p.in_channels, kBlock) + (backward ? ceil_div(p.out_channels, kBlock) : 0);
  int64_t held = kCached / (4 * wide);
  held = held < 2 * kTall ? 2 * kTall : held > kChunkRows ? (int64_t)kChunkRows : held;
  int64_t chunks = ceil_div(p.rows, held);
  if (chunks < 64) chunks = ceil_div(chunks, 8) * 8;  // shared evenly by two, four or eight threads
  held = ceil_div(p.rows, chunks);
  p.plan.held = held < 8 ? 8 : held;
  p.plan.chunks = ceil_div(p.rows, p.plan.held);
  p.plan.slot_size = (blocks * p.plan.held * kStride + kPanels * kTall * kPanel) * 4;
  p.plan.kept = backward && p.plan.chunks * p.plan.slot_size <= kKept;
  int64_t groups = p.plan.kept ? 1 : kPartials / (4 * p.in_channels * p.out_channels + 1);
  if (!p.plan.kept) groups = groups < 4 ? 4 : groups > kGroups ? (int64_t)kGroups : groups;
  p.plan.per_group = ceil_div(p.plan.chunks, groups);
  p.plan.groups = ceil_div(p.plan.chunks, p.plan.per_group);
  const auto take = [&at](int64_t bytes) {
    const int64_t from = at;
    at += ceil_div(bytes, 64) * 64;
    return from;
  };
  const int64_t summed = backward ? p.in_channels : p.out_channels, other = backward ? p.out_channels : p.in_channels;
  p.plan.busy = (uint64_t*)take(8);
  p.plan.sums = (double*)take(p.plan.chunks * 2 * summed * 8);
  p.plan.packed = (float*)take(panels_of(summed) * other * kPanel * 4);
  p.plan.slots = (float*)take((p.plan.kept ? p.plan.chunks : p.threads) * p.plan.slot_size);
  p.plan.partials = (float*)take(backward ? p.plan.groups * partial_size(p) * 4 : 0);
  return at;
}

// A range of chunks takes one of the slots of scratch memory; with as many slots as threads none waits.
struct Slot {
  template <typename Args>
  LC_INLINE_MEMBER explicit Slot(const Args& p) : busy(p.plan.busy) {
    for (bit = 0;; bit = bit + 1 < p.threads ? bit + 1 : 0) {
      const uint64_t mine = (uint64_t)1 << bit;
      if (!(__atomic_fetch_or(busy, mine, __ATOMIC_ACQUIRE) & mine)) break;
    }
    at = p.plan.slots + bit * (p.plan.slot_size / 4);
  }
  LC_INLINE_MEMBER ~Slot() { __atomic_fetch_and(busy, ~((uint64_t)1 << bit), __ATOMIC_RELEASE); }
  uint64_t* busy;
  int64_t bit;
  float* at;
};

// --- weights --------------------------------------------------------------------------------------------------------

// kFloats rows of kFloats columns, transposed.
LC_INLINE void transpose(vf* v) {
#pragma GCC unroll 4
  for (int stage = 1; stage < kFloats; stage *= 2) {
    vf w[kFloats];
#pragma GCC unroll 16
    for (int i = 0; i < kFloats / 2; ++i) {
      w[2 * i] = interleave_low(v[i], v[i + kFloats / 2]);
      w[2 * i + 1] = interleave_high(v[i], v[i + kFloats / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) v[i] = w[i];
  }
}

// Panels [begin, end) of output channels: [in channel][kPanel], zeros behind the last.
static void pointwise_pack(const lc_pointwise& p, int64_t begin, int64_t end) {
  const int64_t in = p.in_channels, out = p.out_channels;
  for (int64_t n = begin * kPanel; n < end * kPanel; n += kFloats) {
    float* to = p.plan.packed + n / kPanel * in * kPanel + n % kPanel;
    for (int64_t k = 0; k < in; k += kFloats) {
      const int64_t columns = in - k < kFloats ? in - k : (int64_t)kFloats;
      vf v[kFloats];
      for (int i = 0; i < kFloats; ++i) {
        const float* from = p.weight + (n + i) * in + k;
        v[i] = n + i >= out ? vf{} : columns == kFloats ? load(from) : load_part(from, columns);
      }
      transpose(v);
      for (int i = 0; i < columns; ++i) store(to + (k + i) * kPanel, v[i]);
    }
  }
}

// Panels [begin, end) of input channels: [out channel][kPanel].
static void pointwise_pack_flipped(const lc_pointwise& p, int64_t begin, int64_t end) {
  const int64_t in = p.in_channels, out = p.out_channels;
  for (int64_t panel = begin; panel < end; ++panel) {
    float* to = p.plan.packed + panel * out * kPanel;
    const int64_t first = panel * kPanel, columns = in - first < kPanel ? in - first : (int64_t)kPanel;
    for (int64_t n = 0; n < out; ++n, to += kPanel)
      for (int64_t c = 0; c < kPanel; c += kFloats) {
        const float* from = p.weight + n * in + first + c;
        const int64_t left = columns - c;
        store(to + c, left >= kFloats ? load(from) : left > 0 ? load_part(from, left) : vf{});
      }
  }
}

// --- loads ----------------------------------------------------------------------------------------------------------

// Calls f(column, part, place) for each vector of a row; places behind the last column are zeroed up to a whole panel.
template <typename F>
LC_INLINE void each_vector(int64_t channels, float* to, int64_t held, F f) {
  for (int64_t c = 0; c < channels; c += kBlock, to += held * kStride) {
    const int64_t here = channels - c < kBlock ? channels - c : (int64_t)kBlock;
    int64_t i = 0;
    for (; i + kFloats <= here; i += kFloats) store(to + i, f(c + i, 0));
    if (i < here) {
      const vf v = f(c + i, here - i);
      store_part(to + i, v, here - i);
      __builtin_memset(to + here, 0, (size_t)(i + kFloats - here) * 4);
      i += kFloats;
    }
    if (i % kPanel) store(to + i, vf{});
  }
}

template <typename T, int act>
static void load_inputs(const lc_pointwise& p, int64_t row, int64_t count, float* to) {
  const int64_t in = p.in_channels;
  const T* x = (const T*)p.x + row * in;
  const uint8_t* keep = p.keep ? p.keep + row * in : nullptr;
  const float *shift = p.before.plan.shift, *a = p.before.plan.a, *b = p.before.plan.b;
  for (int64_t i = 0; i < count; ++i, x += in, to += kStride) {
    if (!p.normed) {
      each_vector(in, to, p.plan.held, [&](int64_t c, int64_t part) { return some(x + c, part); });
    } else {
      each_vector(in, to, p.plan.held, [&](int64_t c, int64_t part) {
        return activated<act>((some(x + c, part) - load(shift + c)) * load(a + c) + load(b + c));
      });
    }
    if (keep) {
      for (int64_t c = 0; c < in; ++c) {
        float& v = to[c / kBlock * p.plan.held * kStride + c % kBlock];
        v *= (float)keep[c] * p.scale;
      }
      keep += in;
    }
  }
}

template <typename T, int act>
static void load_gradients(const lc_pointwise& p, int64_t row, int64_t count, float* to) {
  const int64_t out = p.out_channels;
  const T *y = (const T*)p.y + row * out, *dy = (const T*)p.dy + row * out;
  const float *shift = p.after.plan.shift, *a = p.after.plan.a, *b = p.after.plan.b, *k = p.after.plan.k,
              *add = p.after.plan.c;
  for (int64_t i = 0; i < count; ++i, y += out, dy += out, to += kStride) {
    if (!p.measured) {
      each_vector(out, to, p.plan.held, [&](int64_t c, int64_t part) { return some(dy + c, part); });
      continue;
    }
    each_vector(out, to, p.plan.held, [&](int64_t c, int64_t part) {
      const vf t = some(y + c, part) - load(shift + c), scale = load(a + c);
      return passed<act>(t * scale + load(b + c), some(dy + c, part)) * scale + (t * load(k + c) + load(add + c));
    });
  }
}

// --- passes ---------------------------------------------------------------------------------------------------------

// As tally, of a tile whose columns are few enough to be held.
LC_INLINE void tally_tile(const float* tile, int64_t strip, int count, int64_t before, double* mean, double* m2) {
  const double each = 1 / (double)count, share = (double)count / (double)(before + count);
  const vf mean_of = splat_f((float)each);
  columns<1>(strip, [&](int64_t c, int64_t part) {
    vf shift = {}, s1 = {}, s2 = {};
    for (int i = 0; i < count; ++i) shift += load(tile + i * kPanel + c);
    shift *= mean_of;
    for (int i = 0; i < count; ++i) {
      const vf d = load(tile + i * kPanel + c) - shift;
      s1 += d;
      s2 += d * d;
    }
    Tally t = {};
    if (before) t.mean = load_sums(mean + c, part), t.m2 = load_sums(m2 + c, part);
    merge(t, (double)before, each, share, shift, s1, s2);
    store_sums(mean + c, t.mean, part);
    store_sums(m2 + c, t.m2, part);
  });
}

template <typename T, int act>
static void forward_of(const lc_pointwise& p, int64_t begin, int64_t end) {
  const Slot slot(p);
  float *inputs = slot.at, *tiles = inputs + p.plan.slot_size / 4 - kPanels * kTall * kPanel;
  const int64_t in = p.in_channels, out = p.out_channels, held = p.plan.held;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * held, rows = p.rows - first < held ? p.rows - first : held;
    load_inputs<T, act>(p, first, rows, inputs);
    Ahead next;
    const int64_t after = least(first + held, p.rows), count = least(held, p.rows - after);
    if (chunk + 1 < end && far_away<T>(p)) next.add((const T*)p.x + after * in, count * in * (int64_t)sizeof(T));
    for (int64_t n = 0; n < out; n += kPanels * kPanel) {
      const int64_t panels = least(kPanels, panels_of(out - n));
      each_height<kTall>(rows, [&](int64_t from, int count) {
        tiles_of(inputs, held, from, count, in, p.plan.packed + n * in, panels, tiles, next);
        for (int64_t q = 0; q < panels; ++q) {
          const int64_t column = n + q * kPanel, strip = least(kPanel, out - column);
          float* tile = tiles + q * kTall * kPanel;
          T* y = (T*)p.y + (first + from) * out + column;
          for (int i = 0; i < count; ++i)
            columns<1>(strip, [&](int64_t c, int64_t part) {
              const vf v = load(tile + i * kPanel + c);
              write(y + i * out + c, v, part);
              if (sizeof(T) < 4) store(tile + i * kPanel + c, some(y + i * out + c, part));  // as it will be read
            });
          double* mean = p.plan.sums + chunk * 2 * out + column;
          if (p.measured) tally_tile(tile, strip, count, from, mean, mean + out);
        }
      });
    }
  }
}

// One tile of the gradient of a: what reaches the norm, and its sums.
template <typename T, int act>
LC_INLINE void finish_gradient(const lc_pointwise& p, const float* tile, int64_t row, int count, int64_t column,
                               int64_t strip, double* sums, bool first) {
  const int64_t in = p.in_channels;
  const float *shift = p.before.plan.shift + column, *a = p.before.plan.a + column, *b = p.before.plan.b + column;
  columns<1>(strip, [&](int64_t c, int64_t part) {
    const T* x = (const T*)p.x + row * in + column + c;
    T* dx = (T*)p.dx + row * in + column + c;
    if (!p.normed) {
      for (int i = 0; i < count; ++i) write(dx + i * in, load(tile + i * kPanel + c), part);
      return;
    }
    vf sum = {}, dot = {};
    const vf shifted = load(shift + c), scale = load(a + c), base = load(b + c);
    for (int i = 0; i < count; ++i) {
      const vf t = some(x + i * in, part) - shifted;
      const vf g = passed<act>(t * scale + base, load(tile + i * kPanel + c));
      write(dx + i * in, g, part);
      sum += g;
      dot += g * t;
    }
    double *to = sums + column + c, *to2 = to + in;
    store_sums(to, first ? widen(sum) : load_sums(to, part) + widen(sum), part);
    store_sums(to2, first ? widen(dot) : load_sums(to2, part) + widen(dot), part);
  });
}

LC_INLINE void drop_gradient(const lc_pointwise& p, float* tile, int64_t row, int count, int64_t column, int64_t strip) {
  for (int i = 0; i < count; ++i)
    for (int64_t c = 0; c < strip; ++c)
      tile[i * kPanel + c] *= (float)p.keep[(row + i) * p.in_channels + column + c] * p.scale;
}

// What a chunk brings to the weights' gradient, tiles [begin, end) of output channels.
static void add_weights(const lc_pointwise& p, const float* inputs, int64_t chunk, int64_t begin, int64_t end,
                        float* partial, bool add, Ahead& next) {
  const int64_t in = p.in_channels, out = p.out_channels, held = p.plan.held, across = panels_of(in);
  const int64_t rows = p.rows - chunk * held < held ? p.rows - chunk * held : held, turns = ceil_div(rows, kTurn);
  const float* ahead = inputs + ceil_div(in, kBlock) * held * kStride;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t from = rows * turn / turns, count = rows * (turn + 1) / turns - from;
    for (int64_t n = begin * kTall; n < end * kTall && n < out; n += kTall) {
      const int height = out - n < kTall ? (int)(out - n) : (int)kTall;
      const float* a = ahead + (n / kBlock * held + from) * kStride + n % kBlock;
      for (int64_t j = 0; j < across; ++j) {
        const int64_t k = j * kPanel;
        product<1, kStride, kStride>(height, a, inputs + (k / kBlock * held + from) * kStride + k % kBlock, count,
                                     partial + (n / kTall * across + j) * kTall * kPanel, add || turn > 0, next);
      }
    }
  }
}

// Loads a chunk and computes its gradient of x; act is that of the norm before.
template <typename T, int act>
static void chunk_backward(const lc_pointwise& p, int64_t chunk, float* inputs, Ahead& next,
                           void (*gradients)(const lc_pointwise&, int64_t, int64_t, float*)) {
  const int64_t in = p.in_channels, held = p.plan.held;
  float *ahead = inputs + ceil_div(in, kBlock) * held * kStride, *tiles = inputs + p.plan.slot_size / 4 - kPanels * kTall * kPanel;
  const int64_t first = chunk * held, rows = p.rows - first < held ? p.rows - first : held;
  gradients(p, first, rows, ahead);
  load_inputs<T, act>(p, first, rows, inputs);
  for (int64_t k = 0; k < in; k += kPanels * kPanel) {
    const int64_t panels = least(kPanels, panels_of(in - k));
    each_height<kTall>(rows, [&](int64_t from, int count) {
      tiles_of(ahead, held, from, count, p.out_channels, p.plan.packed + k * p.out_channels, panels, tiles, next);
      for (int64_t q = 0; q < panels; ++q) {
        const int64_t column = k + q * kPanel, strip = least(kPanel, in - column);
        float* tile = tiles + q * kTall * kPanel;
        if (p.keep) drop_gradient(p, tile, first + from, count, column, strip);
        finish_gradient<T, act>(p, tile, first + from, count, column, strip, p.plan.sums + chunk * 2 * in, from == 0);
      }
    });
  }
}

// What the chunk after this one reads, if it comes before `end`.
template <typename T>
LC_INLINE Ahead following(const lc_pointwise& p, int64_t chunk, int64_t end) {
  Ahead next;
  const int64_t first = (chunk + 1) * p.plan.held, count = least(p.plan.held, p.rows - first);
  if (chunk + 1 >= end || count <= 0 || !far_away<T>(p)) return next;
  const int64_t size = (int64_t)sizeof(T), in = p.in_channels, out = p.out_channels;
  next.add((const T*)p.x + first * in, count * in * size);
  if (p.measured) next.add((const T*)p.y + first * out, count * out * size);
  next.add((const T*)p.dy + first * out, count * out * size);
  return next;
}

// Groups [begin, end) of chunks; or chunks, where they are kept.
template <typename T, int act>
static void backward_of(const lc_pointwise& p, int64_t begin, int64_t end,
                        void (*gradients)(const lc_pointwise&, int64_t, int64_t, float*)) {
  if (p.plan.kept) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      Ahead next = following<T>(p, chunk, end);
      chunk_backward<T, act>(p, chunk, p.plan.slots + chunk * (p.plan.slot_size / 4), next, gradients);
    }
    return;
  }
  const Slot slot(p);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t from = group * p.plan.per_group;
    for (int64_t chunk = from; chunk < p.plan.chunks && chunk < from + p.plan.per_group; ++chunk) {
      Ahead next = following<T>(p, chunk, end * p.plan.per_group);
      chunk_backward<T, act>(p, chunk, slot.at, next, gradients);
      add_weights(p, slot.at, chunk, 0, ceil_div(p.out_channels, kTall), p.plan.partials + group * partial_size(p),
                  chunk > from, next);
    }
  }
}

// Tiles [begin, end) of output channels of the weights' gradient: all chunks where they are kept, else the groups' sums.
static void pointwise_sum(const lc_pointwise& p, int64_t begin, int64_t end) {
  const int64_t in = p.in_channels, across = panels_of(in), size = kTall * kPanel;
  Ahead nothing;
  if (p.plan.kept)
    for (int64_t chunk = 0; chunk < p.plan.chunks; ++chunk)
      add_weights(p, p.plan.slots + chunk * (p.plan.slot_size / 4), chunk, begin, end, p.plan.partials, chunk > 0, nothing);
  for (int64_t n = begin * kTall; n < end * kTall && n < p.out_channels; ++n)
    columns<1>(in, [&](int64_t c, int64_t part) {
      const float* from = p.plan.partials + (n / kTall * across + c / kPanel) * size + n % kTall * kPanel + c % kPanel;
      if (p.plan.groups == 1) return write(p.dweight + n * in + c, load(from), part);
      vd sum = widen(load(from));
      for (int64_t g = 1; g < p.plan.groups; ++g) sum = sum + widen(load(from + g * partial_size(p)));
      write(p.dweight + n * in + c, narrow(sum), part);
    });
}

static int64_t pointwise_tiles(const lc_pointwise& p) { return ceil_div(p.out_channels, kTall); }
static int64_t pointwise_panels(const lc_pointwise& p, int64_t backward) {
  return panels_of(backward ? p.in_channels : p.out_channels);
}

template <typename T>
static void forward_typed(const lc_pointwise& p, int64_t begin, int64_t end) {
  LC_BY_ACT(, p.before.act, forward_of, T, (p, begin, end))
}
template <typename T>
static void backward_typed(const lc_pointwise& p, int64_t begin, int64_t end) {
  void (*gradients)(const lc_pointwise&, int64_t, int64_t, float*);
  LC_BY_ACT(gradients =, p.measured == 2 ? (int)kNone : p.after.act, load_gradients, T, )
  LC_BY_ACT(, p.before.act, backward_of, T, (p, begin, end, gradients))
}
static void pointwise_forward(const lc_pointwise& p, int64_t begin, int64_t end) {
  p.dtype == LC_BF16 ? forward_typed<bf16>(p, begin, end) : forward_typed<float>(p, begin, end);
}
static void pointwise_backward(const lc_pointwise& p, int64_t begin, int64_t end) {
  p.dtype == LC_BF16 ? backward_typed<bf16>(p, begin, end) : backward_typed<float>(p, begin, end);
}
