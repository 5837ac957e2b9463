// Cases of the runtime: plans of one or few steps over every operation, and plans with one number that is wrong.

class PlanOf {
 public:
  PlanOf(Run& run, int64_t height, int64_t width, int64_t channels) : run_(run) { value(height, width, channels); }

  int64_t value(int64_t height, int64_t width, int64_t channels) {
    values.push_back({height, width, channels, memory, 0, 0});
    memory += (height * width * channels + 15) / 16 * 16;
    return (int64_t)values.size() - 1;
  }
  // A step whose output's shape follows from its input; `out` channels, or as many as its input has.
  lc_step part(int32_t op, int32_t act, int64_t x, int64_t out, int64_t kernel = 1, int64_t stride = 1, int64_t pad = 0,
               int64_t dilation = 1, int64_t groups = 1) {
    const lc_value v = values[(size_t)x];
    lc_step s = {};
    s.op = op, s.act = act, s.groups = groups, s.count_padding = (int32_t)(pad % 2);
    s.kernel_height = s.kernel_width = kernel, s.stride_height = s.stride_width = stride;
    s.dilation_height = s.dilation_width = dilation, s.pad_top = s.pad_left = s.pad_bottom = s.pad_right = pad;
    s.inputs = list({x}), s.inputs_count = 1;
    const int64_t reach = (kernel - 1) * dilation + 1, single = op == 2 || op == 6;  // linear, mean
    const int64_t height = single ? 1 : (v.height + 2 * pad - reach) / stride + 1;
    const int64_t width = single ? 1 : (v.width + 2 * pad - reach) / stride + 1;
    if (op == 0) tensors(s, out * kernel * kernel * (v.channels / groups), out);
    if (op == 1) tensors(s, out * kernel * kernel, out);
    if (op == 2) tensors(s, out * v.height * v.width * v.channels, out);
    if (op == 3) tensors(s, out, out);
    s.output = value(height, width, out);
    return s;
  }
  void inputs(lc_step& s, std::initializer_list<int64_t> numbers) {
    s.inputs = list(numbers), s.inputs_count = (int64_t)numbers.size();
  }
  void block(std::initializer_list<lc_step> parts, int64_t second) {
    lists.emplace_back(), blocks.emplace_back(parts);
    std::vector<lc_step>& all = blocks.back();
    lc_step s = {};
    s.op = 12, s.parts = all.data(), s.parts_count = (int64_t)all.size(), s.output = all.back().output;
    const int64_t x = all.front().inputs[0];
    second < 0 ? inputs(s, {x}) : inputs(s, {x, second});
    if (second >= 0) inputs(all.back(), {all.back().inputs[0], second});
    steps.push_back(s);
  }

  lc_plan plan() {
    lc_plan p = {};
    p.size = sizeof p, p.isa = run_.isa, p.values = values.data(), p.values_count = (int64_t)values.size();
    p.steps = steps.data(), p.steps_count = (int64_t)steps.size(), p.output = steps.back().output, p.memory = memory;
    p.threads = run_.pool ? 3 : 1, p.path = -1;
    return p;
  }

  std::vector<lc_value> values;
  std::vector<lc_step> steps;
  std::deque<std::vector<int64_t>> lists;
  std::deque<std::vector<lc_step>> blocks;
  int64_t memory = 0;

 private:
  int64_t* list(std::initializer_list<int64_t> numbers) {
    lists.emplace_back(numbers);
    return lists.back().data();
  }
  void tensors(lc_step& s, int64_t weight, int64_t bias) {
    s.weight = (float*)run_.floats(weight), s.weight_size = weight, s.bias = (float*)run_.floats(bias), s.bias_size = bias;
  }
  Run& run_;
};

int32_t run_plan(Run& run, lc_plan plan, std::initializer_list<int64_t> batches) {
  lc_engine* engine = nullptr;
  if (const int32_t failure = lc_engine_new(&plan, &engine)) return failure;
  int32_t failure = LC_OK;
  for (const int64_t images : batches) {
    const lc_value &in = plan.values[plan.input], &out = plan.values[plan.output];
    lc_batch b = {sizeof b, 0, engine, images, images * in.height * in.width * in.channels,
                  images * out.height * out.width * out.channels, nullptr, nullptr};
    b.in = (float*)run.floats(b.in_size), b.out = run.result<float>(b.out_size);
    if (!failure) failure = lc_engine_run(&b);
    b.in_size += 1;
    if (!failure && lc_engine_run(&b) != LC_BAD_ARGUMENT) failure = -1;
  }
  std::vector<double> seconds((size_t)plan.steps_count);
  if (!failure) failure = lc_engine_times(engine, seconds.data(), plan.steps_count);
  lc_engine_free(engine);
  return failure;
}

void one_step(Run& run, const std::string& name, int64_t height, int64_t width, int64_t channels, int32_t op, int32_t act,
              int64_t out, int64_t kernel = 1, int64_t stride = 1, int64_t pad = 0, int64_t dilation = 1, int64_t groups = 1) {
  PlanOf p(run, height, width, channels);
  p.steps.push_back(p.part(op, act, 0, out, kernel, stride, pad, dilation, groups));
  run.done(name + told({height, width, channels, op, act, out, kernel, stride, pad, dilation, groups}),
           run_plan(run, p.plan(), {2, 1, 3}));
}

void engine_steps(Run& run) {
  for (int32_t act = 0; act < 7; ++act) one_step(run, "", 3, 3, 15 + act, 10, act, 15 + act);
  int32_t number = 0;
  for (const int64_t channels : {3, 16, 33})
    for (const int64_t side : {1, 5, 9})
      for (const int64_t kernel : {1, 3})
        for (const int64_t stride : {1, 2}) {
          const int32_t act = number % 7;
          const int64_t out = number % 3 == 0 ? 32 : 5 + number, dilation = 1 + number % 2, pad = kernel / 2 * dilation;
          one_step(run, "conv ", side, side + 1, channels, 0, act, out, kernel, stride, pad, dilation);
          one_step(run, "depthwise ", side, side + 1, channels, 1, act, channels * (1 + number % 5 / 4), kernel, stride, pad, dilation);
          one_step(run, "max ", side, side + 1, channels, 4, act, channels, kernel, stride, pad, dilation);
          one_step(run, "average ", side, side + 1, channels, 5, act, channels, kernel, stride, pad, dilation);
          ++number;
        }
  one_step(run, "", 16, 15, 20, 1, 1, 20, 5, 1, 2);
  one_step(run, "", 16, 15, 20, 1, 1, 20, 5, 2, 2);
  for (int64_t channels = 1; channels < 16; ++channels)
    one_step(run, "few ", 7, 12, channels, 1, 1, channels, 2 + channels % 6, 1 + channels % 3, 1 + channels % 6 / 2);
  one_step(run, "", 5, 5, 512, 0, 1, 20);
  one_step(run, "", 7, 6, 12, 0, 1, 6, 3, 1, 1, 1, 3);
  one_step(run, "", 5, 3, 7, 2, 2, 40);
  one_step(run, "", 1, 1, 60, 2, 5, 7);
  one_step(run, "", 5, 3, 17, 3, 2, 17);
  one_step(run, "", 5, 30, 33, 6, 0, 33);
  one_step(run, "", 5, 3, 33, 11, 0, 33);
}

void engine_networks(Run& run) {
  for (const int64_t channels : {5, 16, 40})
    for (const int64_t stride : {1, 2}) {
      PlanOf p(run, 11, 9, channels);
      lc_step parts[3];
      parts[0] = p.part(0, 2, 0, 36);
      parts[1] = p.part(1, 3, parts[0].output, 36, 3, stride, 1);
      parts[2] = p.part(0, 0, parts[1].output, channels);
      p.block({parts[0], parts[1], parts[2]}, stride == 1 ? 0 : -1);
      const int64_t x = parts[2].output;
      parts[0] = p.part(1, 2, x, channels, 3, 1, 1);
      parts[1] = p.part(0, 4, parts[0].output, channels);
      p.block({parts[0], parts[1]}, x);
      const int64_t y = parts[1].output;
      lc_step s = p.part(6, 1, y, channels);
      p.steps.push_back(s);
      const int64_t mean = s.output;
      s = p.part(8, 0, y, channels), p.inputs(s, {mean, y}), p.steps.push_back(s);
      const int64_t scaled = s.output;
      s = p.part(7, 2, y, channels), p.inputs(s, {scaled, y}), p.steps.push_back(s);
      const int64_t added = s.output;
      s = p.part(9, 1, y, 3 * channels), p.inputs(s, {x, y, added}), p.steps.push_back(s);
      s = p.part(2, 0, s.output, 10), p.steps.push_back(s);
      run.done(told({channels, stride}), run_plan(run, p.plan(), {1, 4}));
    }
}

// A map that is large enough to be made row by row.
void engine_chains(Run& run) {
  PlanOf p(run, 82, 122, 2);
  lc_step first = p.part(0, 2, 0, 40, 3, 2, 1), d = p.part(1, 3, first.output, 40, 3, 2, 1), last = p.part(0, 0, d.output, 9);
  p.steps.push_back(first);
  p.block({d, last}, -1);
  run.done("rows", run_plan(run, p.plan(), {1, 2}));
}

// One number of a good plan becomes another: refused, or run without harm.
void engine_refusals(Run& run) {
  const int64_t numbers[] = {0, 1, 2, 3, 5, 16, 17, 1 << 20, (int64_t)1 << 31, (int64_t)1 << 40, (int64_t)1 << 62, INT64_MAX, INT64_MIN, -1};
  Random random(8);
  for (int i = 0; i < 300; ++i) {
    PlanOf p(run, 6, 5, 7);
    lc_step first = p.part(0, 1, 0, 16, 3, 2, 1), d = p.part(1, 2, first.output, 16, 3, 1, 1), last = p.part(0, 0, d.output, 9);
    p.steps.push_back(first);
    p.block({d, last}, -1);
    lc_step pooled = p.part(5, 0, last.output, 9, 3, 1, 1);
    p.steps.push_back(pooled);
    lc_plan plan = p.plan();
    lc_step& s = i % 4 == 0 ? p.blocks[0][(size_t)random.below(2)] : p.steps[(size_t)random.below(3)];
    lc_value& v = p.values[(size_t)random.below((int64_t)p.values.size())];
    int64_t* const fields[] = {&s.inputs_count, &s.inputs[0], &s.output, &s.parts_count, &s.weight_size, &s.bias_size, &s.groups,
                               &s.kernel_height, &s.kernel_width, &s.stride_height, &s.stride_width, &s.pad_top, &s.pad_left,
                               &s.pad_bottom, &s.pad_right, &s.dilation_height, &s.dilation_width, &v.height, &v.width, &v.channels,
                               &v.offset, &plan.input, &plan.output, &plan.memory};
    const int64_t field = random.below(sizeof fields / sizeof *fields), now = random.of(numbers);
    if (field == 0 && now > 1) continue;  // more inputs than there are
    if (field == 3 && now > s.parts_count && s.parts) continue;
    if (field >= 17 && field < 20 && now > 64 && now <= (int64_t)1 << 31) continue;  // an input that would have to be there
    *fields[field] = now;
    if (i % 9 == 0) s.op = (int32_t)random.below(15) - 1;
    if (i % 11 == 0) s.act = (int32_t)random.below(9) - 1;
    if (plan.memory > 1 << 20 && plan.memory <= (int64_t)1 << 40) plan.memory = 1 << 20;
    const int32_t failure = run_plan(run, plan, {1});
    run.done("number " + told({i, field, now}), failure == LC_BAD_ARGUMENT ? (int32_t)LC_OK : failure);
  }
}

void engines(Run& run) {
  engine_steps(run);
  engine_networks(run);
  engine_chains(run);
  engine_refusals(run);
  PlanOf p(run, 2, 2, 3);
  p.steps.push_back(p.part(10, 1, 0, 3));
  lc_plan plan = p.plan();
  lc_engine* engine = nullptr;
  plan.threads = 65;
  run.done("threads", lc_engine_new(&plan, &engine), LC_BAD_ARGUMENT);
  plan.threads = 1, plan.size = 1;
  run.done("size", lc_engine_new(&plan, &engine), LC_BAD_SIZE);
  lc_engine_free(nullptr);
}
