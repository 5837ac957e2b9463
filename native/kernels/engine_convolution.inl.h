// Tasks of the runtime's convolutions: alone, and depthwise before pointwise.

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
  return sum_length(l) * l.out_channels / l.groups * (int64_t)sizeof(Number) > kManyWeights ? (int64_t)kHeldMany : (int64_t)kHeldFew;
}
// Rows of y whose input, `numbers` for each, is held at a time.
LC_INLINE int64_t held_rows(const lc_layer& l, int64_t numbers, int64_t rows) {
  return most(1, least(held_bytes(l) / (numbers * (int64_t)sizeof(Number) + 1), rows));
}
LC_INLINE int64_t lines_held(const lc_layer& l) { return held_rows(l, l.stride_height * l.wide * l.pixel, l.out_height); }
LC_INLINE int64_t copied_rows(const lc_layer& l, int64_t lines) {
  return (lines - 1) * l.stride_height + reach_of(l.kernel_height, l.dilation_height);
}
LC_INLINE int64_t pixels_held(const lc_layer& l) { return held_rows(l, l.pixel, (int64_t)1 << 30) / kTall * kTall + kTall; }

// --- a convolution --------------------------------------------------------------------------------------------------

// Pixels of a map, as far apart as those of a copy are.
static void copy_pixels(const lc_layer& l, const Number* x, int64_t x_pixel, Number* y, int64_t count) {
  if (l.pixel == x_pixel) {
    __builtin_memcpy(y, x, (size_t)(count * x_pixel) * sizeof(Number));
    return;
  }
  int64_t i = l.channels == 3 && x_pixel == 3 ? copy_threes(l, x, y, count) : 0;
  for (; i < count; ++i) __builtin_memcpy(y + i * l.pixel, x + i * x_pixel, (size_t)l.channels * sizeof(Number));
}

// Rows [begin, end) of an image with its zeros around, counted from the first row of zeros. Row r of the image is at
// x + r % ring * x_row.
static void copy_rows(const lc_layer& l, const Number* from, int64_t x_row, int64_t x_pixel, int64_t ring, int64_t begin,
                      int64_t end, Number* to) {
  const size_t size = sizeof(Number);
  const size_t left = (size_t)(l.pad_left * l.pixel) * size, right = (size_t)((l.wide - l.pad_left - l.width) * l.pixel) * size;
  for (int64_t r = begin; r < end; ++r, to += l.wide * l.pixel) {
    const int64_t row = r - l.pad_top;
    if (row < 0 || row >= l.height) {
      __builtin_memset(to, l.zero, (size_t)(l.wide * l.pixel) * size);
      continue;
    }
    const Number* x = from + row % ring * x_row;
    Number* y = to + l.pad_left * l.pixel;
    __builtin_memset(to, l.zero, left);
    copy_pixels(l, x, x_pixel, y, l.width);
    __builtin_memset(y + l.width * l.pixel, l.zero, right);
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
    copy_rows(l, numbers(w.x) + r / rows * l.height * l.width * w.x_pixel, l.width * w.x_pixel, w.x_pixel, INT64_MAX, r % rows,
              r % rows + 1, (Number*)w.y + r * row);
}

static void flat_convolution(const lc_work& w, const Cut& cut, Number* scratch) {
  const lc_layer& l = *w.layer;
  const bool copies = l.copied && !w.prepared;
  const int64_t held = pixels_held(l), zero = 0, step = copies ? l.pixel : w.x_pixel;
  for (int64_t at = cut.begin; at < cut.end; at += held) {
    const int64_t count = least(held, cut.end - at);
    const Number* x = numbers(w.x) + at * w.x_pixel;
    if (copies) copy_pixels(l, x, w.x_pixel, scratch, count);
    const int64_t to = at * w.y_pixel;
    multiply_rows(l, {copies ? scratch : x, 0, step, moved(l, w.y, to), moved(l, w.second, to), 0, w.y_pixel, 1, count}, &zero,
                  cut.first, cut.last);
  }
}

static void engine_convolution(const lc_work& w, int64_t task, float* memory) {
  Number* const scratch = (Number*)memory;
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, engine_panels(l));
  if (l.flat) return flat_convolution(w, cut, scratch);
  const bool copies = l.copied && !w.prepared, copy = l.copied != 0;
  const int64_t held = lines_held(l), pixel = copy ? l.pixel : w.x_pixel, row = (copy ? l.wide : l.width) * pixel;
  const int64_t image = (w.prepared ? copy_height(l) : l.height) * (w.prepared ? row : l.width * w.x_pixel);
  for (int64_t at = cut.begin; at < cut.end;) {
    const int64_t y = at % l.out_height, lines = least(least(held, cut.end - at), l.out_height - y);
    const Number* x = numbers(w.x) + at / l.out_height * image;
    if (copies) {
      const int64_t first = y * l.stride_height;
      copy_rows(l, x, l.width * w.x_pixel, w.x_pixel, INT64_MAX, first, first + copied_rows(l, lines), scratch);
      x = scratch;
    } else {
      x += y * l.stride_height * row;
    }
    const int64_t to = at * l.out_width * w.y_pixel;
    multiply_rows(l, {x, l.stride_height * row, l.stride_width * pixel, moved(l, w.y, to), moved(l, w.second, to),
                      l.out_width * w.y_pixel, w.y_pixel, lines, l.out_width},
                  l.offsets + (copy ? l.taps : 0), cut.first, cut.last);
    at += lines;
  }
}

// --- depthwise and what follows -------------------------------------------------------------------------------------

LC_INLINE const Number** row_table(float* scratch) { return (const Number**)scratch; }
LC_INLINE int64_t table_size(const lc_layer& l) {
  return table_floats(l) + (l.op == LC_DEPTHWISE ? channels_scratch(l) : 0);
}

static void engine_channels(const lc_work& w, int64_t task, float* scratch) {
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, 1);
  const int64_t row = l.width * w.x_pixel;
  for (int64_t r = cut.begin, count; r < cut.end; r += count) {
    const int64_t y_row = l.out_width * w.y_pixel;
    count = least(cut.end - r, l.out_height - r % l.out_height);
    channels_rows(l, numbers(w.x) + r / l.out_height * l.height * row, row, w.x_pixel, INT64_MAX, r % l.out_height, count,
                  (Number*)moved(l, w.y, r * y_row), y_row, w.y_pixel, row_table(scratch));
  }
}

// Rows of the depthwise layer that are made before the product reads them.
LC_INLINE int64_t rows_between(const lc_layer& product, const lc_layer& before, int64_t rows) {
  return held_rows(product, before.out_width * product.pixel, rows);
}
LC_INLINE void multiply_held(const lc_layer& l, const lc_work& w, const Number* x, int64_t row, int64_t rows, int64_t width) {
  const int64_t to = row * width * w.y_pixel, zero = 0;
  multiply_rows(l, {x, 0, l.pixel, moved(l, w.y, to), moved(l, w.second, to), 0, w.y_pixel, 1, rows * width}, &zero, 0,
                engine_panels(l));
}

// Depthwise, then 1x1.
static void engine_pair(const lc_work& w, int64_t task, float* scratch) {
  const lc_layer &d = *w.stages[0], &p = *w.stages[1];
  const Cut cut = cut_of(w, task, 1);
  const int64_t row = d.width * w.x_pixel, held = rows_between(p, d, w.rows);
  Number* between = (Number*)(scratch + table_size(d));
  for (int64_t at = cut.begin; at < cut.end; at += held) {
    const int64_t rows = least(held, cut.end - at);
    for (int64_t r = at, count; r < at + rows; r += count) {
      const int64_t y_row = d.out_width * p.pixel;
      count = least(at + rows - r, d.out_height - r % d.out_height);
      channels_rows(d, numbers(w.x) + r / d.out_height * d.height * row, row, w.x_pixel, INT64_MAX, r % d.out_height, count,
                    between + (r - at) * y_row, y_row, p.pixel, row_table(scratch));
    }
    multiply_held(p, w, between, at, rows, d.out_width);
  }
}
