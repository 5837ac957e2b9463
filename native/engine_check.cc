// Checks a plan, which may come from anyone: afterwards every number of it is one that the kernels may trust.
#include "engine_check.h"

#include <stdlib.h>

namespace {

const int64_t kSide = 65535;  // of kernels, strides, padding, dilation

bool times(int64_t a, int64_t b, int64_t* product) { return !__builtin_mul_overflow(a, b, product) && *product <= kLcMost; }
bool in_range(int64_t v, int64_t low, int64_t high) { return v >= low && v <= high; }
bool size_of(int64_t a, int64_t b, int64_t c, int64_t* size) {
  return a >= 1 && b >= 1 && c >= 1 && times(a, b, size) && times(*size, c, size);
}
bool same(const lc_value& a, const lc_value& b) {
  return a.height == b.height && a.width == b.width && a.channels == b.channels;
}

class Check {
 public:
  Check(lc_plan* plan, lc_prepared* steps) : plan_(plan), steps_(steps), there_(nullptr) {}
  ~Check() { free(there_); }

  int32_t run() {
    lc_plan& p = *plan_;
    p.refused = -1;
    const bool counts = in_range(p.values_count, 1, LC_MOST_STEPS) && in_range(p.steps_count, 1, LC_MOST_STEPS) && p.values &&
                        p.steps && in_range(p.threads, 1, LC_MOST_THREADS) && in_range(p.memory, 0, kLcMost);
    if (!counts || !is_value(p.input) || !is_value(p.output) || p.input == p.output) return LC_BAD_ARGUMENT;
    for (int64_t i = 0; i < p.values_count; ++i) {
      const lc_value& v = p.values[i];
      int64_t size;
      if (!size_of(v.height, v.width, v.channels, &size) || !lc_check_scale(v)) return LC_BAD_ARGUMENT;
      const bool placed = v.offset != -1 && i != p.input && i != p.output;
      if (placed && (!in_range(v.offset, 0, p.memory) || v.offset % 16 || lc_map_floats(v) > p.memory - v.offset)) return LC_BAD_ARGUMENT;
    }
    if (lc_is_bytes(value(p.input)) || lc_is_bytes(value(p.output))) return LC_BAD_ARGUMENT;
    there_ = (uint8_t*)calloc((size_t)p.values_count, 1);
    if (!there_) return LC_NO_MEMORY;
    there_[p.input] = 1;
    for (int64_t i = 0; i < p.steps_count; ++i) {
      p.refused = i;
      if (const int32_t bad = step(p.steps[i], steps_[i])) return bad;
    }
    p.refused = -1;
    return there_[p.output] ? LC_OK : LC_BAD_ARGUMENT;
  }

 private:
  bool is_value(int64_t i) const { return in_range(i, 0, plan_->values_count - 1); }
  const lc_value& value(int64_t i) const { return plan_->values[i]; }
  bool in_arena(int64_t i) const { return i != plan_->input && i != plan_->output; }
  bool overlap(int64_t i, int64_t j) const {
    if (i == j) return true;
    if (!in_arena(i) || !in_arena(j) || value(i).offset < 0 || value(j).offset < 0) return false;
    const lc_value &a = value(i), &b = value(j);
    return a.offset < b.offset + lc_map_floats(b) && b.offset < a.offset + lc_map_floats(a);
  }

  int32_t step(const lc_step& s, lc_prepared& to) {
    const bool lists = in_range(s.op, 0, LC_OPS - 1) && in_range(s.act, 0, LC_ACTS - 1) && in_range(s.inputs_count, 1, LC_MOST_STEPS) &&
                       s.inputs && is_value(s.output) && s.output != plan_->input;
    if (!lists || (in_arena(s.output) && value(s.output).offset < 0)) return LC_BAD_ARGUMENT;
    for (int64_t i = 0; i < s.inputs_count; ++i)
      if (!is_value(s.inputs[i]) || !there_[s.inputs[i]] || overlap(s.inputs[i], s.output)) return LC_BAD_ARGUMENT;
    to.op = s.op, to.x = s.inputs[0], to.second = s.inputs_count == 2 ? s.inputs[1] : -1, to.y = s.output, to.parts = 1;
    const int32_t bad = s.op == LC_BLOCK ? block(s, to) : s.op == LC_CONCAT ? concat(s, to) : single(s, to);
    if (bad) return bad;
    for (int64_t i = 0; i < plan_->values_count; ++i) there_[i] = there_[i] && !overlap(i, s.output);
    there_[s.output] = 1;
    return LC_OK;
  }

  const lc_value* second_of(const lc_prepared& to) const { return to.second >= 0 ? &value(to.second) : nullptr; }

  int32_t single(const lc_step& s, lc_prepared& to) {
    const bool two = s.op == LC_ADD || s.op == LC_MULTIPLY, may = s.op == LC_CONV || s.op == LC_LINEAR;
    if (s.parts_count || (two ? s.inputs_count != 2 : s.inputs_count > (may ? 2 : 1))) return LC_BAD_ARGUMENT;
    if (may && to.second >= 0 && !same(value(to.second), value(s.output))) return LC_BAD_ARGUMENT;
    if (two) {
      if (same(value(to.second), value(s.output)) && !same(value(to.x), value(s.output))) {
        to.x = s.inputs[1], to.second = s.inputs[0];
      }
      const lc_value &a = value(to.x), &b = value(to.second);
      const bool pixels = b.height == a.height && b.width == a.width, one = b.height == 1 && b.width == 1;
      if ((!pixels && !one) || (b.channels != a.channels && b.channels != 1)) return LC_BAD_ARGUMENT;
      to.spread.height = b.height, to.spread.width = b.width, to.spread.channels = b.channels;
    }
    return layer(s, value(to.x), value(s.output), second_of(to), to.layers[0]);
  }

  int32_t concat(const lc_step& s, lc_prepared& to) {
    if (s.parts_count) return LC_BAD_ARGUMENT;
    const lc_value& y = value(s.output);
    int64_t channels = 0;
    to.inputs = (int64_t*)malloc((size_t)s.inputs_count * (2 * sizeof(int64_t) + sizeof(float*) + sizeof(lc_operand)));
    if (!to.inputs) return LC_NO_MEMORY;
    to.channels = to.inputs + s.inputs_count;
    to.maps = (const float**)(to.channels + s.inputs_count);
    to.operands = (lc_operand*)(to.maps + s.inputs_count);
    to.count = s.inputs_count, to.second = -1;
    for (int64_t i = 0; i < s.inputs_count; ++i) {
      const lc_value& v = value(s.inputs[i]);
      if (v.height != y.height || v.width != y.width || !lc_operand_of(v, y, s.act, to.operands + i)) return LC_BAD_ARGUMENT;
      to.inputs[i] = s.inputs[i], to.channels[i] = v.channels;
      channels += v.channels;
    }
    return channels == y.channels ? layer(s, y, y, nullptr, to.layers[0]) : (int32_t)LC_BAD_ARGUMENT;
  }

  int32_t block(const lc_step& s, lc_prepared& to) {
    if (!in_range(s.parts_count, 2, LC_PARTS) || !s.parts || s.act != 0 || s.inputs_count > 2) return LC_BAD_ARGUMENT;
    int64_t x = s.inputs[0];
    for (int64_t i = 0; i < s.parts_count; ++i) {
      const lc_step& part = s.parts[i];
      const bool last = i + 1 == s.parts_count;
      const int32_t op = (s.parts_count - i) % 2 ? LC_CONV : LC_DEPTHWISE;
      const bool shaped = part.op == op && in_range(part.act, 0, LC_ACTS - 1) && part.parts_count == 0 && part.inputs &&
                          in_range(part.inputs_count, 1, last ? s.inputs_count : 1) && part.inputs[0] == x && is_value(part.output) &&
                          (part.output == s.output) == last && part.output != x;
      if (!shaped || (last && part.inputs_count != s.inputs_count)) return LC_BAD_ARGUMENT;
      const bool known = last || lc_is_bytes(value(part.output)) == lc_is_bytes(value(x));
      if (!known) return LC_BAD_ARGUMENT;
      if (const int32_t bad = layer(part, value(x), value(part.output), last ? second_of(to) : nullptr, to.layers[i])) return bad;
      if (op == LC_CONV && (!to.layers[i].flat || part.groups != 1)) return LC_BAD_ARGUMENT;
      if (last && to.second >= 0 && (part.inputs[1] != to.second || !same(value(to.second), value(s.output))))
        return LC_BAD_ARGUMENT;
      x = part.output;
    }
    to.parts = s.parts_count;
    return LC_OK;
  }

  static bool window(const lc_step& s, const lc_value& x, const lc_value& y) {
    const int64_t ones[] = {s.kernel_height, s.kernel_width, s.stride_height, s.stride_width, s.dilation_height, s.dilation_width};
    const int64_t zeros[] = {s.pad_top, s.pad_left, s.pad_bottom, s.pad_right};
    for (const int64_t v : ones)
      if (!in_range(v, 1, kSide)) return false;
    for (const int64_t v : zeros)
      if (!in_range(v, 0, kSide)) return false;
    const int64_t down = x.height + s.pad_top + s.pad_bottom - (s.kernel_height - 1) * s.dilation_height - 1;
    const int64_t across = x.width + s.pad_left + s.pad_right - (s.kernel_width - 1) * s.dilation_width - 1;
    return down >= 0 && across >= 0 && y.height == down / s.stride_height + 1 && y.width == across / s.stride_width + 1;
  }
  static bool tensors(const lc_step& s, int64_t weight, int64_t bias, lc_layer& l) {
    if (l.quantized) return lc_check_sums(s, weight, bias, l);
    return s.weight && s.bias && !s.bytes && s.weight_size == weight && s.bias_size == bias;
  }

  int32_t layer(const lc_step& s, const lc_value& x, const lc_value& y, const lc_value* second, lc_layer& l) {
    const float infinite = __builtin_inff();
    l.op = s.op, l.act = s.act, l.count_padding = s.count_padding;
    l.low = s.act == 1 || s.act == 2 ? 0 : -infinite, l.high = s.act == 2 ? 6 : infinite;
    l.height = x.height, l.width = x.width, l.channels = x.channels;
    l.out_height = y.height, l.out_width = y.width, l.out_channels = y.channels;
    l.kernel_height = l.kernel_width = l.stride_height = l.stride_width = l.dilation_height = l.dilation_width = l.groups = 1;
    l.weight = s.weight, l.shift = s.bias;
    if (!lc_check_bytes(s, x, y, second, l)) return LC_BAD_ARGUMENT;
    switch (s.op) {
      case LC_CONV: return convolution(s, x, y, l);
      case LC_DEPTHWISE: return channelwise(s, x, y, l);
      case LC_LINEAR: return linear(s, x, y, l);
      case LC_AFFINE: return same(x, y) && tensors(s, x.channels, x.channels, l) ? LC_OK : LC_BAD_ARGUMENT;
      case LC_MAX_POOL:
      case LC_AVG_POOL:
        set_window(s, l);
        return window(s, x, y) && x.channels == y.channels ? LC_OK : LC_BAD_ARGUMENT;
      case LC_MEAN: return y.height == 1 && y.width == 1 && x.channels == y.channels ? LC_OK : LC_BAD_ARGUMENT;
      case LC_SOFTMAX: return same(x, y) && s.act == 0 ? LC_OK : LC_BAD_ARGUMENT;
      case LC_BLOCK: return LC_BAD_ARGUMENT;
      default: return same(x, y) ? LC_OK : LC_BAD_ARGUMENT;
    }
  }

  static void set_window(const lc_step& s, lc_layer& l) {
    l.kernel_height = s.kernel_height, l.kernel_width = s.kernel_width;
    l.stride_height = s.stride_height, l.stride_width = s.stride_width;
    l.dilation_height = s.dilation_height, l.dilation_width = s.dilation_width;
    l.pad_top = s.pad_top, l.pad_left = s.pad_left, l.pad_bottom = s.pad_bottom, l.pad_right = s.pad_right;
  }

  // How rows of pixels lie in a copy: not a multiple of the first-level cache's span apart, or they would push each other out.
  // Bytes are read four at a time.
  static void place_pixels(lc_layer& l) {
    l.pixel = l.quantized ? (l.channels + 3) / 4 * 4 : l.channels % 256 == 0 ? l.channels + 16 : l.channels;
  }

  int32_t convolution(const lc_step& s, const lc_value& x, const lc_value& y, lc_layer& l) {
    int64_t weights;
    if (!window(s, x, y) || s.groups < 1 || x.channels % s.groups || y.channels % s.groups) return LC_BAD_ARGUMENT;
    if (!size_of(s.kernel_height, s.kernel_width, x.channels / s.groups, &weights) || !times(weights, y.channels, &weights) ||
        !tensors(s, weights, y.channels, l)) return LC_BAD_ARGUMENT;
    set_window(s, l);
    l.groups = s.groups;
    const bool point = s.kernel_height == 1 && s.kernel_width == 1 && s.stride_height == 1 && s.stride_width == 1;
    const bool zeros = s.pad_top || s.pad_left || s.pad_bottom || s.pad_right;
    l.flat = point && !zeros;
    l.copied = zeros || (l.quantized ? x.channels / s.groups % 4 != 0 : x.channels % 512 == 0);
    if (l.flat || l.copied)
      place_pixels(l);
    else
      l.pixel = x.channels;
    const int64_t reach = (l.out_width - 1) * s.stride_width + (s.kernel_width - 1) * s.dilation_width + 1;
    l.wide = x.width + s.pad_left > reach ? x.width + s.pad_left : reach;
    int64_t size;
    if (!size_of(x.height + s.pad_top + s.pad_bottom, l.wide, l.pixel, &size)) return LC_BAD_ARGUMENT;
    const bool whole = l.groups == 1 && s.dilation_width == 1 && (!l.copied || l.quantized || l.pixel == x.channels);
    l.taps = whole ? s.kernel_height : s.kernel_height * s.kernel_width;
    l.length = whole ? s.kernel_width * (l.quantized ? l.pixel : x.channels) : x.channels / s.groups;
    l.offsets = (int64_t*)malloc((size_t)l.taps * 2 * sizeof(int64_t));
    if (!l.offsets) return LC_NO_MEMORY;
    for (int64_t t = 0; t < l.taps; ++t) {
      const int64_t i = (whole ? t : t / s.kernel_width) * s.dilation_height, j = whole ? 0 : t % s.kernel_width * s.dilation_width;
      l.offsets[t] = (i * x.width + j) * x.channels;
      l.offsets[l.taps + t] = (i * l.wide + j) * l.pixel;
    }
    return LC_OK;
  }

  int32_t channelwise(const lc_step& s, const lc_value& x, const lc_value& y, lc_layer& l) {
    int64_t weights;
    int64_t size;
    const bool shaped = window(s, x, y) && size_of(x.height, x.width, x.channels + 16, &size) && y.channels % x.channels == 0;
    if (!shaped || !size_of(s.kernel_height, s.kernel_width, y.channels, &weights) || !tensors(s, weights, y.channels, l))
      return LC_BAD_ARGUMENT;
    set_window(s, l);
    place_pixels(l);
    l.groups = y.channels / x.channels;
    return LC_OK;
  }

  int32_t linear(const lc_step& s, const lc_value& x, const lc_value& y, lc_layer& l) {
    const int64_t in = lc_map_size(x);
    int64_t weights;
    if (y.height != 1 || y.width != 1 || !times(in, y.channels, &weights) || !tensors(s, weights, y.channels, l))
      return LC_BAD_ARGUMENT;
    l.height = l.width = 1, l.channels = in, l.flat = 1, l.wide = 1, l.taps = 1;
    l.pixel = l.length = l.quantized ? (in + 3) / 4 * 4 : in;
    l.copied = l.pixel != in;
    return LC_OK;
  }

  lc_plan* const plan_;
  lc_prepared* const steps_;
  uint8_t* there_;  // whether a value's map is what its step made
};

}  // namespace

int32_t lc_check_plan(lc_plan* plan, lc_prepared* steps) { return Check(plan, steps).run(); }

void lc_release_steps(lc_prepared* steps, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    free(steps[i].inputs);
    for (lc_layer& l : steps[i].layers) free(l.offsets);
  }
}
