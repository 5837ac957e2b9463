// Depthwise convolution over bytes, a row of y at a time.

static int64_t channels_packed(const lc_layer& l) {
  return l.out_channels * 2 + ceil_div(l.kernel_height * l.kernel_width * l.out_channels, 4);
}

static void channels_pack(lc_layer& l) {
  const int64_t taps = l.kernel_height * l.kernel_width, out = l.out_channels;
  l.starts = (int32_t*)l.packed;
  l.factors = l.packed + out;
  int8_t* const to = (int8_t*)(l.factors + out);
  for (int64_t c = 0; c < out; ++c) {
    l.starts[c] = l.sums[c];
    l.factors[c] = lc_factor_of(l, l.scales[c]);
    for (int64_t t = 0; t < taps; ++t) to[t * out + c] = l.bytes[t * out + c];
  }
}

// Output row `row` of an image that is at x, or of which row r is at x + r % ring * x_row; y is float where the layer says so.
static void channels_row(const lc_layer& l, const uint8_t* x, int64_t x_row, int64_t x_pixel, int64_t ring, int64_t row, uint8_t* y,
                         int64_t y_pixel, const uint8_t**) {
  const int8_t* const w = (const int8_t*)(l.packed + 2 * l.out_channels);
  const int64_t top = row * l.stride_height - l.pad_top, out = l.out_channels;
  for (int64_t column = 0; column < l.out_width; ++column)
    for (int64_t c = 0; c < out; c += kFloats) {
      const int64_t part = least(kFloats, out - c);
      int32_t sums[kFloats] = {};
      for (int64_t v = 0; v < part; ++v) {
        sums[v] = l.starts[c + v];
        for (int64_t i = 0; i < l.kernel_height; ++i)
          for (int64_t j = 0; j < l.kernel_width; ++j) {
            const int64_t r = top + i * l.dilation_height, q = column * l.stride_width - l.pad_left + j * l.dilation_width;
            if (r < 0 || r >= l.height || q < 0 || q >= l.width) continue;
            const int32_t number = x[r % ring * x_row + q * x_pixel + (c + v) / l.groups] - l.zero;
            sums[v] += number * w[(i * l.kernel_width + j) * out + c + v];
          }
      }
      const vf t = as_floats(load_ints(sums)) * load_part(l.factors + c, part);
      if (!l.real) {
        store_bytes(y + column * y_pixel + c, rounded(t), bounds_of(l), part);
        continue;
      }
      float numbers[kFloats];
      store(numbers, bounded(t, l.low, l.high));
      finish(l.act, numbers, 1, part, part);
      if (l.y_quantized)
        quantize_row(l, numbers, y + column * y_pixel + c, part);
      else
        __builtin_memcpy((float*)y + column * y_pixel + c, numbers, (size_t)part * 4);
    }
}
