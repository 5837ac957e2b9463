// Tasks of the runtime's other operations: each takes a range of rows of y, of pixels or of images.

LC_INLINE Cut rows_of(const lc_work& w, int64_t task) { return cut_of(w, task, 1); }

// y = f(column, part, pixel), bounded and activated, for pixels [begin, end).
template <typename F>
LC_INLINE void each_pixel(const lc_work& w, const Cut& cut, F f) {
  const lc_layer& l = *w.layer;
  const int64_t channels = l.out_channels;
  for (int64_t i = cut.begin; i < cut.end; ++i) {
    float* y = w.y + i * w.y_pixel;
    columns<1>(channels, [&](int64_t c, int64_t part) { write(y + c, bounded(f(c, part, i), l.low, l.high), part); });
    finish(l.act, y, 1, channels, channels);
  }
}

static void engine_affine(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  each_pixel(w, rows_of(w, task), [&](int64_t c, int64_t part, int64_t i) {
    return some(w.x + i * w.x_pixel + c, part) * some(l.packed + c, part) + some(l.bias + c, part);
  });
}

static void engine_activation(const lc_work& w, int64_t task, float*) {
  each_pixel(w, rows_of(w, task),
             [&](int64_t c, int64_t part, int64_t i) { return some(w.x + i * w.x_pixel + c, part); });
}

template <bool Multiply>
static void two_operands(const lc_work& w, int64_t task) {
  const lc_layer &l = *w.layer, &s = *w.spread;
  const int64_t area = l.height * l.width, each = s.height * s.width;  // pixels of an image: 1 or `area`
  each_pixel(w, rows_of(w, task), [&](int64_t c, int64_t part, int64_t i) {
    const float* other = w.second + (each == 1 && area > 1 ? i / area : i) * s.channels;
    const vf a = some(w.x + i * w.x_pixel + c, part), b = s.channels == 1 ? splat_f(*other) : some(other + c, part);
    return Multiply ? a * b : a + b;
  });
}
static void engine_add(const lc_work& w, int64_t task, float*) { two_operands<false>(w, task); }
static void engine_multiply(const lc_work& w, int64_t task, float*) { two_operands<true>(w, task); }

static void engine_concat(const lc_work& w, int64_t task, float*) {
  const Cut cut = rows_of(w, task);
  int64_t from = 0;
  for (int64_t k = 0; k < w.count; from += w.channels[k], ++k)
    for (int64_t i = cut.begin; i < cut.end; ++i)
      __builtin_memcpy(w.y + i * w.y_pixel + from, w.inputs[k] + i * w.channels[k], (size_t)w.channels[k] * 4);
  for (int64_t i = cut.begin; i < cut.end; ++i)
    each_pixel(w, {i, i + 1, 0, 1}, [&](int64_t c, int64_t part, int64_t at) { return some(w.y + at * w.y_pixel + c, part); });
}

// y[c] = exp(x[c] - greatest) / their sum.
static void engine_softmax(const lc_work& w, int64_t task, float*) {
  const int64_t channels = w.layer->channels;
  const Cut cut = rows_of(w, task);
  for (int64_t i = cut.begin; i < cut.end; ++i) {
    const float* x = w.x + i * w.x_pixel;
    float *y = w.y + i * w.y_pixel, lanes[kFloats], greatest = x[0], sum = 0;
    for (int64_t c = 1; c < channels; ++c) greatest = x[c] > greatest || x[c] != x[c] ? x[c] : greatest;
    columns<1>(channels, [&](int64_t c, int64_t part) {
      store(lanes, exp_f(some(x + c, part) - greatest));
      const int64_t count = part ? part : (int64_t)kFloats;
      for (int64_t v = 0; v < count; ++v) sum += lanes[v];
      store_part(y + c, load(lanes), count);
    });
    const float scale = 1 / sum;
    columns<1>(channels, [&](int64_t c, int64_t part) { write(y + c, some(y + c, part) * scale, part); });
  }
}

// --- pooling --------------------------------------------------------------------------------------------------------

// Taps of a window at output `at` that lie inside of `in` positions.
LC_INLINE Span taps_inside(int64_t at, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t in) {
  const int64_t start = at * stride - pad, begin = most(0, ceil_div(-start, dilation));
  return {begin, most(begin, least(kernel, ceil_div(in - start, dilation)))};
}

template <bool Greatest>
static void pool(const lc_work& w, int64_t task) {
  const lc_layer& l = *w.layer;
  const Cut cut = rows_of(w, task);
  for (int64_t r = cut.begin; r < cut.end; ++r) {
    const int64_t row = r % l.out_height;
    const Span down = taps_inside(row, l.kernel_height, l.stride_height, l.pad_top, l.dilation_height, l.height);
    const float* image = w.x + r / l.out_height * l.height * l.width * w.x_pixel;
    for (int64_t column = 0; column < l.out_width; ++column) {
      const Span across = taps_inside(column, l.kernel_width, l.stride_width, l.pad_left, l.dilation_width, l.width);
      const int64_t taps = l.count_padding ? l.kernel_height * l.kernel_width : (down.end - down.begin) * (across.end - across.begin);
      const float* x = image + ((row * l.stride_height - l.pad_top) * l.width + column * l.stride_width - l.pad_left) * w.x_pixel;
      const int64_t to = r * l.out_width + column;
      each_pixel(w, {to, to + 1, 0, 1}, [&](int64_t c, int64_t part, int64_t) {
        vf result = splat_f(Greatest ? -__builtin_inff() : 0.0f);
        for (int64_t i = down.begin; i < down.end; ++i)
          for (int64_t j = across.begin; j < across.end; ++j) {
            const vf v = some(x + (i * l.dilation_height * l.width + j * l.dilation_width) * w.x_pixel + c, part);
            result = Greatest ? select((v > result) | (v != v), v, result) : result + v;
          }
        return Greatest ? result : result / (float)taps;
      });
    }
  }
}
static void engine_max_pool(const lc_work& w, int64_t task, float*) { pool<true>(w, task); }
static void engine_avg_pool(const lc_work& w, int64_t task, float*) { pool<false>(w, task); }

// Rows are summed for themselves first: long sums round less.
static void engine_mean(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const int64_t row = l.width * w.x_pixel;
  const float area = (float)(l.height * l.width);
  each_pixel(w, rows_of(w, task), [&](int64_t c, int64_t part, int64_t image) {
    const float* x = w.x + image * l.height * row + c;
    vf sum = {};
    for (int64_t i = 0; i < l.height; ++i) {
      vf line = {};
      for (int64_t j = 0; j < l.width; ++j) line += some(x + i * row + j * w.x_pixel, part);
      sum += line;
    }
    return sum / area;
  });
}

static const lc_task kEngineTasks[] = {
    engine_convolution, engine_channels, engine_convolution, engine_affine, engine_max_pool, engine_avg_pool, engine_mean,
    engine_add, engine_multiply, engine_concat, engine_activation, engine_softmax, nullptr,
};

static lc_task engine_task(const lc_work& w, int64_t parts) {
  if (parts == 3) return engine_triple;
  if (parts == 2) return engine_pair;
  return w.copies ? engine_copy : kEngineTasks[w.layer->op];
}
static int64_t engine_packed(const lc_layer& l) {
  if (l.op == LC_CONV || l.op == LC_LINEAR) return conv_packed(l);
  return l.op == LC_DEPTHWISE ? channels_packed(l) : l.op == LC_AFFINE ? 2 * l.channels : 0;
}
static void engine_pack(lc_layer& l) {
  if (l.op == LC_CONV || l.op == LC_LINEAR) return conv_pack(l);
  if (l.op == LC_DEPTHWISE) return channels_pack(l);
  l.bias = l.packed + l.channels;
  __builtin_memcpy(l.packed, l.weight, (size_t)l.channels * 4);
  __builtin_memcpy(l.bias, l.shift, (size_t)l.channels * 4);
}
