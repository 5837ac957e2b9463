// Depthwise convolution between two batch norms, multiplier 1: y = depthwise(act(norm(x))) with the statistics of y on the way,
// as pointwise.inl.h has it. Work is cut into bands of rows of an image: what a band needs is normalised once into the
// second-level cache and convolved there by the kernels of depthwise_rows and depthwise_weight, for which a band is an image
// with other zeros around it. A pixel at the edge of two bands is normalised twice. Bands depend on the shape alone.

enum {
  kBandBytes = 160 << 10,  // of the inputs of a band
  kBandGroups = 64,        // partial sums of the weights' gradient, at most
};

struct Rows {
  int64_t begin, end;
};

LC_INLINE int64_t bands_of(int64_t rows, int64_t bytes) {
  const int64_t fit = most(1, kBandBytes / most(1, bytes));
  return most(1, ceil_div(rows, most(1, fit)));
}

LC_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Input rows under output rows.
LC_INLINE Rows inputs_of(const lc_depthwise& d, Rows out) {
  const int64_t from = out.begin * d.stride_height - d.pad_height;
  const int64_t to = (out.end - 1) * d.stride_height - d.pad_height + (d.kernel_height - 1) * d.dilation_height + 1;
  const int64_t begin = least(most(from, 0), d.height);
  return {begin, most(begin, least(to, d.height))};
}

// Band b of so many rows.
LC_INLINE Rows band(int64_t rows, int64_t bands, int64_t b) { return {rows * b / bands, rows * (b + 1) / bands}; }

// Output rows whose weights' gradient a band of input rows brings: each of them in one band.
LC_INLINE Rows own_outputs(const lc_depthwise& d, Rows in) {
  const int64_t s = d.stride_height, begin = least(ceil_div(in.begin, s), d.out_height);
  return {begin, in.end == d.height ? d.out_height : most(begin, least(ceil_div(in.end, s), d.out_height))};
}

// Output rows that a band of input rows has to do with.
LC_INLINE Rows outputs_of(const lc_depthwise& d, Rows in) {
  const Rows own = own_outputs(d, in);
  const int64_t s = d.stride_height, reach = (d.kernel_height - 1) * d.dilation_height;
  int64_t begin = most(0, ceil_div(in.begin + d.pad_height - reach, s));
  int64_t end = least(d.out_height, floor_div(in.end - 1 + d.pad_height, s) + 1);
  if (end <= begin) begin = own.begin, end = own.end;
  if (own.end > own.begin) begin = least(begin, own.begin), end = most(end, own.end);
  return {begin, end};
}

static int64_t channelwise_plan(lc_channelwise& p, int64_t at, int64_t backward) {
  const lc_depthwise& d = p.conv;
  const int64_t in_row = d.width * d.channels, out_row = d.out_width * d.channels, rows = backward ? d.height : d.out_height;
  const int64_t bytes = 4 * (backward ? in_row : most(out_row, in_row * d.stride_height));
  p.plan.bands = least(bands_of(rows, bytes), most(rows, 1));
  p.plan.chunks = d.images * p.plan.bands;
  int64_t in_rows = 0, out_rows = 0, held = 0;
  for (int64_t b = 0; b < p.plan.bands; ++b) {
    const Rows mine = band(rows, p.plan.bands, b), out = backward ? outputs_of(d, mine) : mine;
    const Rows in = inputs_of(d, backward ? own_outputs(d, mine) : mine);
    in_rows = most(in_rows, in.end - in.begin);
    out_rows = most(out_rows, out.end - out.begin);
    held = most(held, mine.end - mine.begin);
  }
  const int64_t weights = depthwise_blocks(d) * plane_size(d);
  p.plan.in_size = ceil_div(in_rows * in_row, 16) * 16;
  p.plan.out_size = ceil_div(out_rows * out_row, 16) * 16;
  p.plan.slot_size = 4 * (p.plan.in_size + p.plan.out_size + (backward ? ceil_div(held * in_row, 16) * 16 + weights : 0));
  p.plan.per_group = ceil_div(most(1, p.plan.chunks), kBandGroups);
  p.plan.groups = ceil_div(p.plan.chunks, p.plan.per_group);
  const auto take = [&at](int64_t size) {
    const int64_t from = at;
    at += ceil_div(size, 64) * 64;
    return from;
  };
  p.plan.busy = (uint64_t*)take(8);
  p.plan.sums = (double*)take(p.plan.chunks * 2 * d.channels * 8);
  p.plan.packed = (float*)take(weights * 4);
  p.plan.slots = (float*)take(p.threads * p.plan.slot_size);
  p.plan.partials = (float*)take(backward ? p.plan.groups * weights * 4 : 0);
  return at;
}

static void channelwise_pack(const lc_channelwise& p, int64_t backward) {
  lc_depthwise d = p.conv;
  d.scratch = p.plan.packed, d.bias = nullptr;
  pack(d, 0, depthwise_blocks(d), backward != 0);
}

// One row of maps into float32: `f(column, part)` with columns counted over pixels.
template <typename F>
LC_INLINE void each_pixel(int64_t pixels, int64_t channels, float* to, F f) {
  for (int64_t i = 0; i < pixels; ++i, to += channels)
    columns<1>(channels, [&](int64_t c, int64_t part) { write(to + c, f(i * channels + c, c, part), part); });
}

template <typename T, int act>
static void band_inputs(const lc_channelwise& p, int64_t image, Rows rows, float* to) {
  const lc_depthwise& d = p.conv;
  const T* x = (const T*)d.x + pixel(image * d.height + rows.begin, 0, d.width, d.channels);
  const float *shift = p.before.plan.shift, *a = p.before.plan.a, *b = p.before.plan.b;
  const int64_t pixels = (rows.end - rows.begin) * d.width;
  if (!p.normed)
    each_pixel(pixels, d.channels, to, [&](int64_t at, int64_t, int64_t part) { return some(x + at, part); });
  else
    each_pixel(pixels, d.channels, to, [&](int64_t at, int64_t c, int64_t part) {
      return activated<act>((some(x + at, part) - load(shift + c)) * load(a + c) + load(b + c));
    });
}

template <typename T, int act>
static void band_gradients(const lc_channelwise& p, int64_t image, Rows rows, float* to) {
  const lc_depthwise& d = p.conv;
  const int64_t from = pixel(image * d.out_height + rows.begin, 0, d.out_width, d.channels);
  const T *y = (const T*)d.y + from, *dy = (const T*)p.dy + from;
  const lc_norm& n = p.after;
  const float *shift = n.plan.shift, *a = n.plan.a, *b = n.plan.b, *k = n.plan.k, *add = n.plan.c;
  const int64_t pixels = (rows.end - rows.begin) * d.out_width;
  if (!p.measured)
    each_pixel(pixels, d.channels, to, [&](int64_t at, int64_t, int64_t part) { return some(dy + at, part); });
  else
    each_pixel(pixels, d.channels, to, [&](int64_t at, int64_t c, int64_t part) {
      const vf t = some(y + at, part) - load(shift + c), scale = load(a + c);
      return passed<act>(t * scale + load(b + c), some(dy + at, part)) * scale + (t * load(k + c) + load(add + c));
    });
}

template <typename T, int act>
static void bands_forward(const lc_channelwise& p, int64_t begin, int64_t end) {
  const Slot slot(p);
  const lc_depthwise& d = p.conv;
  const int64_t channels = d.channels;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t image = chunk / p.plan.bands;
    const Rows out = band(d.out_height, p.plan.bands, chunk % p.plan.bands), in = inputs_of(d, out);
    lc_depthwise part = d;
    part.bf16 = 0, part.images = 1, part.height = in.end - in.begin, part.out_height = out.end - out.begin;
    part.pad_height = d.pad_height + in.begin - out.begin * d.stride_height;
    part.scratch = p.plan.packed, part.x = slot.at;
    T* y = (T*)d.y + pixel(image * d.out_height + out.begin, 0, d.out_width, channels);
    part.y = sizeof(T) == 4 ? (void*)y : (void*)(slot.at + p.plan.in_size);
    if (p.normed || sizeof(T) < 4)
      band_inputs<T, act>(p, image, in, slot.at);
    else
      part.x = (float*)d.x + pixel(image * d.height + in.begin, 0, d.width, channels);
    depthwise_rows(part, 0, part.out_height);
    const int64_t pixels = part.out_height * d.out_width;
    float* made = (float*)part.y;
    if (sizeof(T) < 4)
      each_pixel(pixels, channels, made, [&](int64_t at, int64_t, int64_t left) {
        write(y + at, some(made + at, left), left);
        return some(y + at, left);  // as it will be read
      });
    if (!p.measured) continue;
    double* mean = p.plan.sums + chunk * 2 * channels;
    for (int64_t from = 0; from < pixels; from += kNormTile)
      for (int64_t c = 0; c < channels; c += kNormStrip)
        tally<float>(made + from * channels + c, channels, least(kNormStrip, channels - c), least(kNormTile, pixels - from),
                     from, mean + c, mean + channels + c);
  }
}

// Gradients of a band's activated inputs, in `made`: through the activation, to dx, and their sums.
template <typename T, int act>
static void band_finish(const lc_channelwise& p, int64_t image, Rows rows, const float* made, double* sums) {
  const lc_depthwise& d = p.conv;
  const int64_t channels = d.channels, from = pixel(image * d.height + rows.begin, 0, d.width, channels);
  const int64_t pixels = (rows.end - rows.begin) * d.width;
  const T* x = (const T*)d.x + from;
  T* dx = (T*)p.dx + from;
  const float *shift = p.before.plan.shift, *a = p.before.plan.a, *b = p.before.plan.b;
  for (int64_t i = 0; i < pixels; i += kNormRun) {
    const int64_t count = least(kNormRun, pixels - i);
    columns<1>(channels, [&](int64_t c, int64_t part) {
      vf sum = {}, dot = {};
      const vf shifted = load(shift + c), scale = load(a + c), base = load(b + c);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t at = (i + j) * channels + c;
        const vf t = some(x + at, part) - shifted, g = passed<act>(t * scale + base, some(made + at, part));
        write(dx + at, g, part);
        sum += g;
        dot += g * t;
      }
      double *to = sums + c, *to2 = to + channels;
      store_sums(to, i ? load_sums(to, part) + widen(sum) : widen(sum), part);
      store_sums(to2, i ? load_sums(to2, part) + widen(dot) : widen(dot), part);
    });
  }
}

// What output rows `out` of a band bring to the weights' gradient; dd holds output rows from `first` on, xs input rows `in`.
LC_INLINE void band_weights(const lc_channelwise& p, Rows out, int64_t first, Rows in, float* xs, float* dd, float* latest,
                            float* totals) {
  lc_depthwise part = p.conv;
  part.bf16 = 0, part.images = 1, part.height = in.end - in.begin, part.out_height = out.end - out.begin;
  part.pad_height = p.conv.pad_height + in.begin - out.begin * part.stride_height;
  const Axis axis_h = axis_of_rows(part), axis_w = axis_of_columns(part);
  const Side rows = side_of(axis_h, false), columns = side_of(axis_w, false);
  float* dy = dd + pixel(out.begin - first, 0, part.out_width, part.channels);
  const int64_t groups = groups_of(part), blocks = depthwise_blocks(part), block_size = plane_size(part);
  const int64_t latest_rows = most(1, kLatest / most(1, part.out_width));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = blocks * g / groups, end = blocks * (g + 1) / groups, size = (end - begin) * block_size;
    float* mine = latest + begin * block_size;
    for (int64_t row = 0; row < part.out_height; ++row) {
      for (int64_t r = 0; r < least(columns.step, columns.out); ++r) {
        const Class c = class_of(axis_w, false, r);
        const Tile<float> start = tile_of<float>(part, xs, dy, rows, columns, c, row, 1);
        weight_row(start, c, weight_kernels<float>(part, c), begin, end, mine);
      }
      if (row % latest_rows == latest_rows - 1 || row == part.out_height - 1)
        add_latest(totals + begin * block_size, mine, size);
    }
  }
}

// Groups [begin, end) of bands; act is that of the norm before.
template <typename T, int act>
static void bands_backward(const lc_channelwise& p, int64_t begin, int64_t end,
                           void (*gradients)(const lc_channelwise&, int64_t, Rows, float*)) {
  const Slot slot(p);
  const lc_depthwise& d = p.conv;
  const int64_t weights = depthwise_blocks(d) * plane_size(d);
  float *xs = slot.at, *dd = xs + p.plan.in_size, *latest = dd + p.plan.out_size, *made = latest + weights;
  __builtin_memset(latest, 0, (size_t)weights * 4);
  for (int64_t group = begin; group < end; ++group) {
    float* totals = p.plan.partials + group * weights;
    __builtin_memset(totals, 0, (size_t)weights * 4);
    for (int64_t chunk = group * p.plan.per_group; chunk < p.plan.chunks && chunk < (group + 1) * p.plan.per_group; ++chunk) {
      const int64_t image = chunk / p.plan.bands;
      const Rows mine = band(d.height, p.plan.bands, chunk % p.plan.bands), out = outputs_of(d, mine);
      const Rows own = own_outputs(d, mine);
      gradients(p, image, out, dd);
      lc_depthwise part = d;
      part.bf16 = 0, part.images = 1, part.height = mine.end - mine.begin, part.out_height = out.end - out.begin;
      part.pad_height = d.pad_height + mine.begin - out.begin * d.stride_height;
      part.scratch = p.plan.packed, part.y = dd;
      const bool straight = !p.normed && sizeof(T) == 4;
      const int64_t at = pixel(image * d.height + mine.begin, 0, d.width, d.channels);
      part.x = straight ? (void*)((float*)p.dx + at) : (void*)made;
      if (own.end > own.begin) {
        const Rows in = inputs_of(d, own);
        float* inputs = xs;
        if (straight)
          inputs = (float*)d.x + pixel(image * d.height + in.begin, 0, d.width, d.channels);
        else
          band_inputs<T, act>(p, image, in, xs);
        band_weights(p, own, out.begin, in, inputs, dd, latest, totals);
      }
      depthwise_input_rows(part, 0, part.height);
      if (p.normed)
        band_finish<T, act>(p, image, mine, made, p.plan.sums + chunk * 2 * d.channels);
      else if (!straight)
        for (int64_t i = 0; i < (mine.end - mine.begin) * d.width; ++i)
          columns<1>(d.channels, [&](int64_t c, int64_t left) {
            write((T*)p.dx + at + i * d.channels + c, some(made + i * d.channels + c, left), left);
          });
    }
  }
}

// Statistics of y: the bands, merged into the first in their order; they may differ in size.
static void channelwise_merge(const lc_channelwise& p) {
  const int64_t channels = p.conv.channels;
  double *mean = p.plan.sums, *m2 = mean + channels, before = 0;
  for (int64_t chunk = 0; chunk < p.plan.chunks; ++chunk) {
    const Rows rows = band(p.conv.out_height, p.plan.bands, chunk % p.plan.bands);
    const double count = (double)((rows.end - rows.begin) * p.conv.out_width), share = count / (before + count);
    const double *other = mean + chunk * 2 * channels, *other2 = other + channels;
    if (chunk)
      for (int64_t c = 0; c < channels; ++c) {
        const double delta = other[c] - mean[c];
        m2[c] += other2[c] + delta * delta * (before * share);
        mean[c] += delta * share;
      }
    before += count;
  }
}

// The weights' gradient: the groups' sums, added in order.
static void channelwise_sum(const lc_channelwise& p) {
  const lc_depthwise& d = p.conv;
  const int64_t taps = d.kernel_height * d.kernel_width, size = plane_size(d), weights = depthwise_blocks(d) * size;
  const int64_t lanes = least(d.channels, kFloats);
  for (int64_t block = 0; block < depthwise_blocks(d); ++block) {
    const int64_t channel = block_channel(d, block);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float* from = p.plan.partials + block * size + (1 + tap) * kFloats;
      vd sum = widen(load(from));
      for (int64_t g = 1; g < p.plan.groups; ++g) sum = sum + widen(load(from + g * weights));
      float out[kFloats];
      store(out, narrow(sum));
      for (int64_t v = block * kFloats - channel; v < lanes; ++v) p.dweight[(channel + v) * taps + tap] = out[v];
    }
  }
}

template <typename T>
static void bands_forward_typed(const lc_channelwise& p, int64_t begin, int64_t end) {
  LC_BY_ACT(, p.before.act, bands_forward, T, (p, begin, end))
}
template <typename T>
static void bands_backward_typed(const lc_channelwise& p, int64_t begin, int64_t end) {
  void (*gradients)(const lc_channelwise&, int64_t, Rows, float*);
  LC_BY_ACT(gradients =, p.measured == 2 ? (int)kNone : p.after.act, band_gradients, T, )
  LC_BY_ACT(, p.before.act, bands_backward, T, (p, begin, end, gradients))
}
static void channelwise_forward(const lc_channelwise& p, int64_t begin, int64_t end) {
  p.conv.bf16 ? bands_forward_typed<bf16>(p, begin, end) : bands_forward_typed<float>(p, begin, end);
}
static void channelwise_backward(const lc_channelwise& p, int64_t begin, int64_t end) {
  p.conv.bf16 ? bands_backward_typed<bf16>(p, begin, end) : bands_backward_typed<float>(p, begin, end);
}
