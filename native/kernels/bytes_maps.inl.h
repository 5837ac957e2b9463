// Tasks of the runtime's other operations over bytes: each takes a range of rows of y, of pixels or of images.

LC_INLINE Cut rows_of(const lc_work& w, int64_t task) { return cut_of(w, task, 1); }

// `count` numbers q - zero, at most a vector of them.
LC_INLINE vf distances(const uint8_t* p, int32_t zero, int64_t count) {
  if (count == kFloats) return from_zero<LC_BYTES>(p, zero);
  uint8_t some[LC_BYTES] = {};
  __builtin_memcpy(some, p, (size_t)count);
  return from_zero<LC_BYTES>(some, zero);
}

// y[at ...] of n numbers, f(i, count) being those from i on, at most a vector of them; as of write_numbers.
template <typename F>
LC_INLINE void write_row(const lc_layer& l, float* y, int64_t at, int64_t n, F f) {
  int64_t i = 0;
  if (l.y_quantized && !l.real) {
    const Limits<LC_BYTES> to = limits_of<LC_BYTES>(l);
    for (; i + LC_BYTES <= n; i += LC_BYTES) {
      vf t[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) t[v] = f(i + v * kFloats, (int64_t)kFloats);
      const vi all = in_order(to_bytes<kBounded, LC_BYTES>(to, t[0], t[1], t[2], t[3]));
      __builtin_memcpy((uint8_t*)y + at + i, &all, LC_BYTES);
    }
  }
  for (; i < n; i += kFloats) {
    const int64_t count = least(n - i, kFloats);
    write_numbers(l, f(i, count), y, at + i, count);
  }
}

static void bytes_quantize(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = rows_of(w, task);
  const int64_t from = cut.begin * l.channels, n = cut.end * l.channels - from;
  const float* x = w.x + from;
  int64_t i = 0;
  const Limits<LC_BYTES> to = limits_of<LC_BYTES>(l);
  for (; i + LC_BYTES <= n; i += LC_BYTES) {
    vf t[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) t[v] = in_units(l, load(x + i + v * kFloats));
    const vi all = in_order(to_bytes<kBounded, LC_BYTES>(to, t[0], t[1], t[2], t[3]));
    __builtin_memcpy((uint8_t*)w.y + from + i, &all, LC_BYTES);
  }
  write_row(l, w.y, from + i, n - i, [&](int64_t k, int64_t count) { return some(x + i + k, count % kFloats); });
}

// q - zero times a factor: dequantize, activation.
static void bytes_scaled(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = rows_of(w, task);
  const int64_t from = cut.begin * l.channels, n = cut.end * l.channels - from, zero = l.zero;
  const uint8_t* x = numbers(w.x) + from;
  const float factor = l.factor;
  write_row(l, w.y, from, n, [&](int64_t i, int64_t count) { return distances(x + i, (int32_t)zero, count) * factor; });
}

template <bool Multiply>
static void two_operands(const lc_work& w, int64_t task) {
  const lc_layer &l = *w.layer, &s = *w.spread;
  const int64_t area = l.height * l.width, each = s.height * s.width;  // pixels of an image: 1 or `area`
  const int32_t zero = l.zero, zero2 = l.second_zero;
  const float factor = l.factor, factor2 = l.second_factor;
  const Cut cut = rows_of(w, task);
  const uint8_t *const x = numbers(w.x), *const second = numbers(w.second);
  const auto together = [&](vf a, vf b) { return Multiply ? a * b * factor : a * factor + b * factor2; };
  if (each == area && s.channels == l.channels) {
    const int64_t from = cut.begin * l.channels;
    write_row(l, w.y, from, cut.end * l.channels - from, [&](int64_t i, int64_t count) {
      return together(distances(x + from + i, zero, count), distances(second + from + i, zero2, count));
    });
    return;
  }
  for (int64_t i = cut.begin; i < cut.end; ++i) {
    const uint8_t* const other = second + (each == 1 && area > 1 ? i / area : i) * s.channels;
    const vf one = splat_f((float)(*other - zero2));
    write_row(l, w.y, i * l.channels, l.channels, [&](int64_t c, int64_t count) {
      return together(distances(x + i * l.channels + c, zero, count), s.channels == 1 ? one : distances(other + c, zero2, count));
    });
  }
}
static void bytes_add(const lc_work& w, int64_t task, float*) { two_operands<false>(w, task); }
static void bytes_multiply(const lc_work& w, int64_t task, float*) { two_operands<true>(w, task); }

static void bytes_concat(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = rows_of(w, task);
  int64_t to = 0;
  for (int64_t k = 0; k < w.count; to += w.channels[k], ++k) {
    const int64_t channels = w.channels[k];
    const lc_operand& o = w.operands[k];
    const bool copied = o.same && !l.real && l.low_byte == 0 && l.high_byte == 255;
    for (int64_t i = cut.begin; i < cut.end; ++i) {
      const uint8_t* const x = numbers(w.inputs[k]) + i * channels;
      if (copied) {
        __builtin_memcpy((uint8_t*)w.y + i * w.y_pixel + to, x, (size_t)channels);
        continue;
      }
      write_row(l, w.y, i * w.y_pixel + to, channels,
                [&](int64_t c, int64_t count) { return distances(x + c, o.zero, count) * o.factor; });
    }
  }
}

// --- pooling --------------------------------------------------------------------------------------------------------

// Taps of a window at output `at` that lie inside of `in` positions.
LC_INLINE Span taps_inside(int64_t at, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t in) {
  const int64_t start = at * stride - pad, begin = most(0, ceil_div(-start, dilation));
  return {begin, most(begin, least(kernel, ceil_div(in - start, dilation)))};
}

// Calls f(pixel of y, its window's first tap in x, taps inside down and across).
template <typename F>
LC_INLINE void each_window(const lc_work& w, int64_t task, F f) {
  const lc_layer& l = *w.layer;
  const Cut cut = rows_of(w, task);
  for (int64_t r = cut.begin; r < cut.end; ++r) {
    const int64_t row = r % l.out_height;
    const Span down = taps_inside(row, l.kernel_height, l.stride_height, l.pad_top, l.dilation_height, l.height);
    const uint8_t* image = numbers(w.x) + r / l.out_height * l.height * l.width * w.x_pixel;
    for (int64_t column = 0; column < l.out_width; ++column) {
      const Span across = taps_inside(column, l.kernel_width, l.stride_width, l.pad_left, l.dilation_width, l.width);
      const int64_t first = (row * l.stride_height - l.pad_top) * l.width + column * l.stride_width - l.pad_left;
      f(r * l.out_width + column, image + first * w.x_pixel, down, across);
    }
  }
}

static void bytes_max_pool(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const int64_t line = l.dilation_height * l.width * w.x_pixel, step = l.dilation_width * w.x_pixel;
  const Limits<LC_BYTES> to = limits_of<LC_BYTES>(l);
  each_window(w, task, [&](int64_t pixel, const uint8_t* x, const Span& down, const Span& across) {
    for (int64_t c = 0; c < l.channels; c += LC_BYTES) {
      const int64_t count = least(l.channels - c, LC_BYTES);
      vi greatest = to.low;
      for (int64_t i = down.begin; i < down.end; ++i)
        for (int64_t j = across.begin; j < across.end; ++j) {
          const uint8_t* from = x + i * line + j * step + c;
          uint8_t some[LC_BYTES] = {};
          if (count < LC_BYTES) from = (const uint8_t*)__builtin_memcpy(some, from, (size_t)count);
          greatest = greater_bytes(greatest, load_ints<LC_BYTES>(from));
        }
      store_some<LC_BYTES>((uint8_t*)w.y + pixel * w.y_pixel + c, lesser_bytes(greatest, to.high), count);
    }
  });
}

// The factor of a sum over so many bytes.
LC_INLINE float factor_over(const lc_layer& l, int64_t count) {
  return (float)(l.real ? l.x_scale / (double)count : l.x_scale / (double)count / l.y_scale);
}
LC_INLINE vi added(vi sum, const uint8_t* p, int64_t count) {
  if (count == kFloats) return sum + widened<LC_BYTES>(p);
  uint8_t some[LC_BYTES] = {};
  __builtin_memcpy(some, p, (size_t)count);
  return sum + widened<LC_BYTES>(some);
}

static void bytes_avg_pool(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const int64_t line = l.dilation_height * l.width * w.x_pixel, step = l.dilation_width * w.x_pixel;
  each_window(w, task, [&](int64_t pixel, const uint8_t* x, const Span& down, const Span& across) {
    const int64_t inside = (down.end - down.begin) * (across.end - across.begin);
    const float m = factor_over(l, l.count_padding ? l.kernel_height * l.kernel_width : inside);
    write_row(l, w.y, pixel * w.y_pixel, l.channels, [&](int64_t c, int64_t count) {
      vi sum = vi{} - (int32_t)(inside * l.zero);
      for (int64_t i = down.begin; i < down.end; ++i)
        for (int64_t j = across.begin; j < across.end; ++j) sum = added(sum, x + i * line + j * step + c, count);
      return floats<LC_BYTES>(sum) * m;
    });
  });
}

static void bytes_mean(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = rows_of(w, task);
  const int64_t area = l.height * l.width;
  const float m = factor_over(l, area);
  for (int64_t image = cut.begin; image < cut.end; ++image) {
    const uint8_t* const x = numbers(w.x) + image * area * w.x_pixel;
    write_row(l, w.y, image * w.y_pixel, l.channels, [&](int64_t c, int64_t count) {
      vi sum = vi{} - (int32_t)(area * l.zero);
      for (int64_t i = 0; i < area; ++i) sum = added(sum, x + i * w.x_pixel + c, count);
      return floats<LC_BYTES>(sum) * m;
    });
  }
}

static const lc_task kEngineTasks[] = {
    engine_convolution, engine_channels, engine_convolution, nullptr, bytes_max_pool, bytes_avg_pool, bytes_mean, bytes_add,
    bytes_multiply, bytes_concat, bytes_scaled, nullptr, nullptr, bytes_quantize, bytes_scaled,
};

static lc_task engine_task(const lc_work& w) {
  if (w.stages_count > 1) return is_pair(w) ? engine_pair : engine_chain;
  return w.copies ? engine_copy : kEngineTasks[w.layer->op];
}
static int64_t engine_packed(const lc_layer& l) {
  if (l.op == LC_CONV || l.op == LC_LINEAR) return conv_packed(l);
  return l.op == LC_DEPTHWISE ? channels_packed(l) : 0;
}
static void engine_pack(lc_layer& l) { l.op == LC_DEPTHWISE ? channels_pack(l) : conv_pack(l); }
