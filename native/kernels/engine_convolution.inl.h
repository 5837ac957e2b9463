// Tasks of the runtime's convolutions: alone, depthwise before pointwise, and pointwise, depthwise, pointwise.

// A task's rows of y, and its panels.
struct Cut {
  int64_t begin, end, first, last;
};
LC_INLINE Cut cut_of(const lc_work& w, int64_t task, int64_t panels) {
  const int64_t down = task / w.across, across = task % w.across;
  return {w.rows * down / w.down, w.rows * (down + 1) / w.down, panels * across / w.across, panels * (across + 1) / w.across};
}

LC_INLINE int64_t reach_of(int64_t kernel, int64_t dilation) { return (kernel - 1) * dilation + 1; }
LC_INLINE int64_t held_bytes(const lc_layer& l) {
  return sum_length(l) * l.out_channels / l.groups * 4 > kManyWeights ? (int64_t)kHeldMany : (int64_t)kHeldFew;
}
// Rows of y whose input, `floats` for each, is held at a time.
LC_INLINE int64_t held_rows(const lc_layer& l, int64_t floats, int64_t rows) {
  return most(1, least(held_bytes(l) / (floats * 4 + 1), rows));
}
LC_INLINE int64_t lines_held(const lc_layer& l) { return held_rows(l, l.stride_height * l.wide * l.pixel, l.out_height); }
LC_INLINE int64_t copied_rows(const lc_layer& l, int64_t lines) {
  return (lines - 1) * l.stride_height + reach_of(l.kernel_height, l.dilation_height);
}
LC_INLINE int64_t pixels_held(const lc_layer& l) { return held_rows(l, l.pixel, (int64_t)1 << 30) / kTall * kTall + kTall; }

// --- a convolution --------------------------------------------------------------------------------------------------

// Rows [begin, end) of an image with its zeros around, counted from the first row of zeros.
static void copy_rows(const lc_layer& l, const float* image, int64_t x_pixel, int64_t begin, int64_t end, float* to) {
  const size_t left = (size_t)(l.pad_left * l.pixel) * 4, right = (size_t)((l.wide - l.pad_left - l.width) * l.pixel) * 4;
  for (int64_t r = begin; r < end; ++r, to += l.wide * l.pixel) {
    const int64_t row = r - l.pad_top;
    if (row < 0 || row >= l.height) {
      __builtin_memset(to, 0, (size_t)(l.wide * l.pixel) * 4);
      continue;
    }
    const float* x = image + row * l.width * x_pixel;
    float* y = to + l.pad_left * l.pixel;
    __builtin_memset(to, 0, left);
    if (l.pixel == x_pixel) {
      __builtin_memcpy(y, x, (size_t)(l.width * x_pixel) * 4);
    } else {
      for (int64_t i = 0; i < l.width; ++i) __builtin_memcpy(y + i * l.pixel, x + i * x_pixel, (size_t)l.channels * 4);
    }
    __builtin_memset(y + l.width * l.pixel, 0, right);
  }
}

static int64_t copy_height(const lc_layer& l) {
  return most(l.height + l.pad_top, copied_rows(l, l.out_height));
}

static void engine_copy(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, 1);
  const int64_t rows = copy_height(l), row = l.wide * l.pixel;
  for (int64_t r = cut.begin; r < cut.end; ++r)
    copy_rows(l, w.x + r / rows * l.height * l.width * w.x_pixel, w.x_pixel, r % rows, r % rows + 1, w.y + r * row);
}

static void flat_convolution(const lc_work& w, const Cut& cut, float* scratch) {
  const lc_layer& l = *w.layer;
  const bool copies = l.copied && !w.prepared;
  const int64_t held = pixels_held(l), zero = 0, step = copies ? l.pixel : w.x_pixel;
  for (int64_t at = cut.begin; at < cut.end; at += held) {
    const int64_t count = least(held, cut.end - at);
    const float* x = w.x + at * w.x_pixel;
    for (int64_t i = 0; copies && i < count; ++i)
      __builtin_memcpy(scratch + i * l.pixel, x + i * w.x_pixel, (size_t)l.channels * 4);
    multiply_rows(l, {copies ? scratch : x, 0, step, w.y + at * w.y_pixel, w.second ? w.second + at * w.y_pixel : nullptr, 0,
                      w.y_pixel, 1, count}, &zero, cut.first, cut.last);
  }
}

static void engine_convolution(const lc_work& w, int64_t task, float* scratch) {
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, engine_panels(l));
  if (l.flat) return flat_convolution(w, cut, scratch);
  const bool copies = l.copied && !w.prepared, copy = l.copied != 0;
  const int64_t held = lines_held(l), pixel = copy ? l.pixel : w.x_pixel, row = (copy ? l.wide : l.width) * pixel;
  const int64_t image = (w.prepared ? copy_height(l) : l.height) * (w.prepared ? row : l.width * w.x_pixel);
  for (int64_t at = cut.begin; at < cut.end;) {
    const int64_t y = at % l.out_height, lines = least(least(held, cut.end - at), l.out_height - y);
    const float* x = w.x + at / l.out_height * image;
    if (copies) {
      copy_rows(l, x, w.x_pixel, y * l.stride_height, y * l.stride_height + copied_rows(l, lines), scratch);
      x = scratch;
    } else {
      x += y * l.stride_height * row;
    }
    const int64_t to = at * l.out_width * w.y_pixel;
    multiply_rows(l, {x, l.stride_height * row, l.stride_width * pixel, w.y + to, w.second ? w.second + to : nullptr,
                      l.out_width * w.y_pixel, w.y_pixel, lines, l.out_width},
                  l.offsets + (copy ? l.taps : 0), cut.first, cut.last);
    at += lines;
  }
}

// --- depthwise and what follows -------------------------------------------------------------------------------------

LC_INLINE const float** row_table(float* scratch) { return (const float**)scratch; }
LC_INLINE int64_t table_size(const lc_layer& l) { return ceil_div(l.kernel_height * 2, 16) * 16; }

static void engine_channels(const lc_work& w, int64_t task, float* scratch) {
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, 1);
  const int64_t row = l.width * w.x_pixel;
  for (int64_t r = cut.begin; r < cut.end; ++r)
    channels_row(l, w.x + r / l.out_height * l.height * row, row, w.x_pixel, INT64_MAX, r % l.out_height,
                 w.y + r * l.out_width * w.y_pixel, w.y_pixel, row_table(scratch));
}

// Rows of the depthwise layer that are made before the product reads them.
LC_INLINE int64_t rows_between(const lc_layer& product, const lc_layer& before, int64_t rows) {
  return held_rows(product, before.out_width * product.pixel, rows);
}
LC_INLINE void multiply_held(const lc_layer& l, const lc_work& w, const float* x, int64_t row, int64_t rows, int64_t width) {
  const int64_t to = row * width * w.y_pixel, zero = 0;
  multiply_rows(l, {x, 0, l.pixel, w.y + to, w.second ? w.second + to : nullptr, 0, w.y_pixel, 1, rows * width}, &zero, 0,
                engine_panels(l));
}

// Depthwise, then 1x1.
static void engine_pair(const lc_work& w, int64_t task, float* scratch) {
  const lc_layer &d = w.layer[0], &p = w.layer[1];
  const Cut cut = cut_of(w, task, 1);
  const int64_t row = d.width * w.x_pixel, held = rows_between(p, d, w.rows);
  float* between = scratch + table_size(d);
  for (int64_t at = cut.begin; at < cut.end; at += held) {
    const int64_t rows = least(held, cut.end - at);
    for (int64_t r = at; r < at + rows; ++r)
      channels_row(d, w.x + r / d.out_height * d.height * row, row, w.x_pixel, INT64_MAX, r % d.out_height,
                   between + (r - at) * d.out_width * p.pixel, p.pixel, row_table(scratch));
    multiply_held(p, w, between, at, rows, d.out_width);
  }
}

// 1x1, depthwise, 1x1: rows of the first one wait in a ring for the second.
LC_INLINE int64_t ring_lines(const lc_layer& d, const lc_layer& p) {
  const int64_t by_ring = held_bytes(p) / (d.stride_height * d.width * p.pixel * 4 + 1);
  return most(1, least(by_ring, rows_between(p, d, d.out_height)));
}
LC_INLINE int64_t ring_rows(const lc_layer& d, const lc_layer& p) {
  return least(d.height, copied_rows(d, ring_lines(d, p)));
}

static void engine_triple(const lc_work& w, int64_t task, float* scratch) {
  const lc_layer &e = w.layer[0], &d = w.layer[1], &p = w.layer[2];
  const Cut cut = cut_of(w, task, 1);
  const int64_t lines = ring_lines(d, p), slots = ring_rows(d, p), pixel = p.pixel, row = d.width * pixel, zero = 0;
  float *ring = scratch + table_size(d), *between = ring + slots * row;
  for (int64_t at = cut.begin; at < cut.end;) {
    const int64_t image = at / d.out_height, end = least(cut.end, (image + 1) * d.out_height);
    const float* x = w.x + image * e.height * e.width * w.x_pixel;
    int64_t made = 0;  // rows of the ring's image before this one are there, or no longer needed
    for (; at < end; at += lines) {
      const int64_t rows = least(lines, end - at), first = (at % d.out_height) * d.stride_height - d.pad_top;
      const int64_t need = most(0, least(d.height, first + copied_rows(d, rows)));
      made = most(made, first);
      while (made < need) {
        const int64_t slot = made % slots, count = least(need - made, slots - slot);
        multiply_rows(e, {x + made * e.width * w.x_pixel, 0, w.x_pixel, ring + slot * row, nullptr, 0, pixel, 1, count * e.width},
                      &zero, 0, engine_panels(e));
        made += count;
      }
      for (int64_t r = 0; r < rows; ++r)
        channels_row(d, ring, row, pixel, slots, at % d.out_height + r, between + r * d.out_width * pixel, pixel,
                     row_table(scratch));
      multiply_held(p, w, between, at, rows, d.out_width);
    }
    at = end;
  }
}

// Floats of scratch memory that a thread needs.
static int64_t engine_scratch(const lc_work& w, int64_t parts) {
  const lc_layer &a = w.layer[0], &last = w.layer[parts - 1];
  if (parts == 3) {
    const lc_layer& d = w.layer[1];
    return table_size(d) + (ring_rows(d, last) * d.width + ring_lines(d, last) * d.out_width) * last.pixel;
  }
  if (parts == 2) return table_size(a) + rows_between(last, a, w.rows) * a.out_width * last.pixel;
  if (a.op == LC_DEPTHWISE) return table_size(a);
  if (!a.copied || w.prepared) return 0;
  return a.flat ? pixels_held(a) * a.pixel : copied_rows(a, lines_held(a)) * a.wide * a.pixel;
}
