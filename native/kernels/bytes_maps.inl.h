// Tasks of the runtime's other operations over bytes: each takes a range of rows of y, of pixels or of images.

static void bytes_quantize(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, 1);
  for (int64_t i = cut.begin; i < cut.end; ++i)
    quantize_row(l, w.x + i * w.x_pixel, (uint8_t*)w.y + i * w.y_pixel, l.channels);
}

static void bytes_dequantize(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, 1);
  for (int64_t i = cut.begin; i < cut.end; ++i)
    columns<1>(l.channels, [&](int64_t c, int64_t part) {
      const int64_t count = part ? part : (int64_t)kFloats;
      write(w.y + i * w.y_pixel + c, as_floats(load_bytes(numbers(w.x) + i * w.x_pixel + c, count) - l.zero) * l.factor, part);
    });
}

static void bytes_mean(const lc_work& w, int64_t task, float*) {
  const lc_layer& l = *w.layer;
  const Cut cut = cut_of(w, task, 1);
  const int64_t area = l.height * l.width;
  const float m = (float)(l.real ? l.x_scale / (double)area : l.x_scale / (double)area / l.y_scale);
  for (int64_t image = cut.begin; image < cut.end; ++image)
    columns<1>(l.channels, [&](int64_t c, int64_t part) {
      const int64_t count = part ? part : (int64_t)kFloats;
      vi sum = vi{} - (int32_t)(area * l.zero);
      for (int64_t i = 0; i < area; ++i) sum += load_bytes(numbers(w.x) + (image * area + i) * w.x_pixel + c, count);
      const vf t = as_floats(sum) * m;
      float* const y = moved(l, w.y, image * w.y_pixel + c);
      if (!l.real) return store_bytes((uint8_t*)y, rounded(t), bounds_of(l), count);
      float numbers[kFloats];
      store(numbers, bounded(t, l.low, l.high));
      finish(l.act, numbers, 1, count, count);
      if (l.y_quantized)
        quantize_row(l, numbers, (uint8_t*)y, count);
      else
        __builtin_memcpy(y, numbers, (size_t)count * 4);
    });
}

static const lc_task kEngineTasks[] = {
    engine_convolution, engine_channels, engine_convolution, nullptr, nullptr, nullptr, bytes_mean, nullptr, nullptr, nullptr,
    nullptr, nullptr, nullptr, bytes_quantize, bytes_dequantize,
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
