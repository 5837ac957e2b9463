// Checks what a plan says about bytes, and turns scales into the factors that kernels multiply by.
#include "engine_check.h"

namespace {

const double kMostSum = (double)((int64_t)1 << 31), kMostUnits = (double)(1 << 30), kMostFactor = (double)(1 << 20);

bool is_product(int32_t op) { return op == LC_CONV || op == LC_DEPTHWISE || op == LC_LINEAR; }
double area_of(const lc_step& s, const lc_value& x) {  // of numbers that nobody checked
  return s.op == LC_MEAN ? (double)(x.height * x.width) : (double)s.kernel_height * (double)s.kernel_width;
}

// Which operations read bytes or floats and make what.
bool allowed(const lc_step& s, const lc_value& x, const lc_value& y, const lc_value* second) {
  const bool from = lc_is_bytes(x), to = lc_is_bytes(y);
  if (second && lc_is_bytes(*second) != (is_product(s.op) ? to : from)) return false;
  switch (s.op) {
    case LC_QUANTIZE: return !from && to && s.act == 0;
    case LC_DEQUANTIZE: return from && !to && s.act == 0;
    case LC_AFFINE:
    case LC_SOFTMAX: return !from && !to;
    case LC_MAX_POOL: return from == to && x.scale == y.scale && x.zero == y.zero && (!from || s.act <= 2);
    case LC_CONV:
    case LC_DEPTHWISE:
    case LC_LINEAR:
    case LC_MEAN:
    case LC_AVG_POOL: return from || !to;
    default: return from == to;
  }
}

// 0, ..., 6 of an activation, as bytes of y.
void set_bounds(lc_layer& l) {
  const bool kept = !l.real && (l.act == 1 || l.act == 2);
  l.low_byte = kept ? l.y_zero : 0, l.high_byte = 255;
  if (kept && l.act == 2) {
    const double six = __builtin_rint(6.0 / l.y_scale) + l.y_zero;
    if (six < 255) l.high_byte = (int32_t)six;
  }
}

}  // namespace

bool lc_check_scale(const lc_value& v) {
  if (v.scale == 0) return v.zero == 0;
  return v.scale >= 1e-30f && v.scale <= 1e30f && v.zero >= 0 && v.zero <= 255;
}

bool lc_check_bytes(const lc_step& s, const lc_value& x, const lc_value& y, const lc_value* second, lc_layer& l) {
  if (!allowed(s, x, y, second)) return false;
  l.quantized = lc_is_bytes(x), l.y_quantized = lc_is_bytes(y);
  if (!l.quantized && !l.y_quantized) return true;
  l.real = !l.y_quantized || l.act > 2 || s.op == LC_QUANTIZE;
  l.zero = x.zero, l.y_zero = y.zero, l.x_scale = x.scale, l.y_scale = y.scale;
  l.inverse = l.y_quantized ? (float)(1 / l.y_scale) : 0.0f;
  const double unit = l.real ? 1.0 : l.y_scale;
  if (second) {
    l.second_zero = second->zero, l.second_scale = second->scale;
    l.second_factor = (float)(l.second_scale / unit);
    if (!l.real && s.op != LC_MULTIPLY && !(l.second_factor < kMostFactor)) return false;
  }
  set_bounds(l);
  if (is_product(s.op) || s.op == LC_QUANTIZE) return true;
  const bool multiply = s.op == LC_MULTIPLY;
  l.factor = multiply ? (float)(l.x_scale * l.second_scale / unit) : (float)(l.x_scale / unit);
  if (s.op == LC_MEAN || s.op == LC_AVG_POOL)
    return 255.0 * area_of(s, x) < kMostSum && (l.real || 255.0 * l.factor < kMostUnits);
  return l.real || (multiply ? 255.0 * 255.0 * l.factor < kMostUnits : l.factor < kMostFactor);
}

bool lc_check_sums(const lc_step& s, int64_t weights, int64_t channels, lc_layer& l) {
  if (!s.bytes || !s.sums || !s.scales || s.weight || s.bias || s.bytes_size != weights || s.sums_size != channels ||
      s.scales_size != channels) return false;
  l.bytes = s.bytes, l.sums = s.sums, l.scales = s.scales;
  const bool beside = s.op != LC_DEPTHWISE;
  const int64_t each = weights / channels, channel = beside ? each : 1, apart = beside ? 1 : channels;
  for (int64_t c = 0; c < channels; ++c) {
    double most = __builtin_fabs((double)s.sums[c]);
    int64_t all = 0;
    for (int64_t k = 0; k < each; ++k) {
      const int64_t w = s.bytes[c * channel + k * apart];
      all += w < 0 ? -w : w;
    }
    most += 255.0 * (double)all;
    const bool sane = s.scales[c] >= 0 && s.scales[c] <= 1e30f;
    if (!sane || !(most < kMostSum) || !(most * (double)lc_factor_of(l, s.scales[c]) < kMostUnits)) return false;
  }
  return true;
}

float lc_factor_of(const lc_layer& l, float scale) {
  const double unit = l.x_scale * (double)scale;
  return (float)(l.real ? unit : unit / l.y_scale);
}

bool lc_operand_of(const lc_value& v, const lc_value& y, int32_t act, lc_operand* to) {
  if (lc_is_bytes(v) != lc_is_bytes(y)) return false;
  const double unit = act > 2 ? 1.0 : y.scale;
  *to = {v.zero, v.scale == y.scale && v.zero == y.zero, lc_is_bytes(y) ? (float)((double)v.scale / unit) : 1.0f};
  return to->factor < kMostFactor;
}
