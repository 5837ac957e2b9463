// Cases of the runtime over bytes: quantised networks on each way, and with one number that is wrong.

enum { kWays = 6 };  // as many as there are on any processor; where one is missing the best one runs again

class BytesPlan : public PlanOf {
 public:
  BytesPlan(Run& run, int64_t height, int64_t width, int64_t channels) : PlanOf(run, height, width, channels), memory_of_(run) {
    lc_step s = part(13, 0, 0, channels);
    quantise(s.output);
    steps.push_back(s);
    first = s.output;
  }
  void quantise(int64_t number) {
    values[(size_t)number].scale = 0.02f + 0.01f * (float)(number % 3), values[(size_t)number].zero = (int32_t)(number * 37 % 256);
  }
  // As `part`, over bytes; y is bytes too where it is `kept`.
  lc_step over(int32_t op, int32_t act, int64_t x, int64_t out, int64_t kernel = 1, int64_t stride = 1, int64_t pad = 0,
               int64_t dilation = 1, int64_t groups = 1, bool kept = true) {
    lc_step s = part(op, act, x, out, kernel, stride, pad, dilation, groups);
    if (kept) quantise(s.output);
    if (!s.weight) return s;
    int8_t* const bytes = memory_of_.scratch<int8_t>(s.weight_size);
    int32_t* const sums = memory_of_.scratch<int32_t>(s.bias_size);
    float* const scales = memory_of_.scratch<float>(s.bias_size);
    for (int64_t i = 0; i < s.weight_size; ++i) bytes[i] = (int8_t)(random_.below(256) - 128);
    for (int64_t i = 0; i < s.bias_size; ++i) sums[i] = (int32_t)random_.below(4001) - 2000, scales[i] = 1e-4f * (float)(1 + random_.below(20));
    s.bytes = bytes, s.bytes_size = s.weight_size, s.sums = sums, s.scales = scales, s.sums_size = s.scales_size = s.bias_size;
    s.weight = s.bias = nullptr, s.weight_size = s.bias_size = 0;
    return s;
  }
  lc_plan plan_on(int32_t way) {
    lc_plan p = plan();
    p.path = lc_path_supported(way) ? way : -1;
    return p;
  }
  int64_t first;

 private:
  Run& memory_of_;
  Random random_{5};
};

// A step over bytes, and one behind it that makes floats.
void bytes_step(Run& run, const std::string& name, int64_t height, int64_t width, int64_t channels, int32_t op, int32_t act,
                int64_t out, int64_t kernel = 1, int64_t stride = 1, int64_t pad = 0, int64_t dilation = 1, int64_t groups = 1) {
  for (int32_t way = 0; way < kWays; ++way) {
    BytesPlan p(run, height, width, channels);
    lc_step s = p.over(op, act, p.first, out, kernel, stride, pad, dilation, groups);
    if (op == 4) p.values[(size_t)s.output].scale = p.values[(size_t)p.first].scale, p.values[(size_t)s.output].zero = p.values[(size_t)p.first].zero;
    p.steps.push_back(s);
    s = p.over(14, 0, s.output, out, 1, 1, 0, 1, 1, false), p.steps.push_back(s);
    run.done(name + told({way, height, width, channels, op, act, out, kernel, stride, pad, dilation, groups}), run_plan(run, p.plan_on(way), {2, 1}));
  }
}

void bytes_networks(Run& run) {
  for (int32_t way = 0; way < kWays; ++way)
    for (const int64_t channels : {5, 16, 72}) {
      BytesPlan p(run, 11, 9, channels);
      lc_step parts[3];
      parts[0] = p.over(0, 2, p.first, 36);
      parts[1] = p.over(1, 1, parts[0].output, 36, 3, 1, 1);
      parts[2] = p.over(0, 0, parts[1].output, channels);
      p.block({parts[0], parts[1], parts[2]}, p.first);
      const int64_t x = parts[2].output;
      parts[0] = p.over(1, 2, x, channels, 3, 2, 1);
      parts[1] = p.over(0, 1, parts[0].output, 40);
      p.block({parts[0], parts[1]}, -1);
      const int64_t y = parts[1].output;
      lc_step s = p.over(6, 1, y, 40);
      p.steps.push_back(s);
      const int64_t mean = s.output;
      s = p.over(8, 0, y, 40), p.inputs(s, {mean, y}), p.steps.push_back(s);
      const int64_t scaled = s.output;
      s = p.over(7, 2, y, 40), p.inputs(s, {scaled, y}), p.steps.push_back(s);
      const int64_t added = s.output;
      s = p.over(9, 1, y, 80), p.inputs(s, {y, added}), p.steps.push_back(s);
      s = p.over(2, 0, s.output, 10, 1, 1, 0, 1, 1, false), p.steps.push_back(s);
      run.done("bytes " + told({way, channels}), run_plan(run, p.plan_on(way), {1, 4}));
    }
}

// One number of a good plan becomes another: refused, or run without harm.
void bytes_refusals(Run& run) {
  const float scales[] = {0, -1, 1e-31f, 1e-30f, 1e-7f, 1, 1e30f, 1e31f, __builtin_inff(), __builtin_nanf("")};
  const int64_t numbers[] = {0, 1, 3, 15, 16, 255, 256, (int64_t)1 << 40, INT64_MAX, INT64_MIN, -1};
  Random random(9);
  for (int i = 0; i < 200; ++i) {
    BytesPlan p(run, 6, 5, 7);
    lc_step first = p.over(0, 1, p.first, 16, 3, 2, 1), d = p.over(1, 2, first.output, 16, 3, 1, 1), last = p.over(0, 0, d.output, 9);
    p.steps.push_back(first);
    p.block({d, last}, -1);
    p.steps.push_back(p.over(5, 0, last.output, 9, 3, 1, 1, 1, 1, false));
    lc_plan plan = p.plan_on(i % kWays);
    lc_value& v = p.values[(size_t)random.below((int64_t)p.values.size())];
    lc_step& s = i % 3 == 0 ? p.blocks[0][(size_t)random.below(2)] : p.steps[(size_t)random.below(4)];
    const int64_t field = random.below(9), now = random.of(numbers);
    if (field == 0) v.scale = scales[random.below(10)];
    if (field == 1) v.zero = (int32_t)now;
    if (field == 2) s.bytes_size = now;
    if (field == 3) s.sums_size = now;
    if (field == 4) s.scales_size = now;
    if (field == 5 && s.scales) s.scales[random.below(s.scales_size)] = scales[random.below(10)];
    if (field == 6 && s.sums) s.sums[random.below(s.sums_size)] = i % 2 ? INT32_MAX : INT32_MIN;
    if (field == 7) s.op = (int32_t)random.below(17) - 1;
    if (field == 8) s.bytes = nullptr;
    const int32_t failure = run_plan(run, plan, {1});
    run.done("bytes number " + told({i, field, now}), failure == LC_BAD_ARGUMENT ? (int32_t)LC_OK : failure);
  }
}

void bytes_engines(Run& run) {
  int32_t number = 0;
  for (const int64_t channels : {3, 16, 33, 68})
    for (const int64_t kernel : {1, 3})
      for (const int64_t stride : {1, 2}) {
        const int32_t act = number % 5;
        const int64_t out = number % 3 == 0 ? 32 : 5 + number * 3, dilation = 1 + number % 2, pad = kernel / 2 * dilation;
        bytes_step(run, "conv ", 9, 6, channels, 0, act, out, kernel, stride, pad, dilation);
        bytes_step(run, "depthwise ", 9, 6, channels, 1, act, channels * (1 + number % 5 / 4), kernel, stride, pad, dilation);
        bytes_step(run, "max ", 9, 6, channels, 4, act % 3, channels, kernel, stride, pad, dilation);
        bytes_step(run, "average ", 9, 6, channels, 5, act, channels, kernel, stride, pad, dilation);
        ++number;
      }
  bytes_step(run, "groups ", 7, 6, 12, 0, 1, 6, 3, 1, 1, 1, 3);
  bytes_step(run, "linear ", 5, 3, 7, 2, 2, 40);
  bytes_step(run, "mean ", 5, 30, 33, 6, 0, 33);
  bytes_networks(run);
  bytes_refusals(run);
  BytesPlan p(run, 2, 2, 3);
  p.steps.push_back(p.over(14, 0, p.first, 3, 1, 1, 0, 1, 1, false));
  lc_plan plan = p.plan();
  lc_engine* engine = nullptr;
  plan.path = 99;
  run.done("path", lc_engine_new(&plan, &engine), LC_BAD_ISA);
}
