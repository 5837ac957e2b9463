// Depthwise convolution: checks sizes, packs weights and splits the passes over threads.
#include "split.h"

namespace {

enum { kMacsPerPart = 1 << 19 };  // about 10 microseconds of work: what waking a thread is worth
const int64_t kMost = (int64_t)1 << 58;

// Whether the product of sizes, none negative, stays below kMost.
bool product_fits(const int64_t* sizes, int count) {
  int64_t product = 1;
  bool empty = false;
  for (int i = 0; i < count; ++i) {
    if (sizes[i] < 0) return false;
    empty |= sizes[i] == 0;
    if (sizes[i] && (__builtin_mul_overflow(product, sizes[i], &product) || product > kMost)) return false;
  }
  return empty || product <= kMost;
}
template <typename... Sizes>
bool fits(Sizes... sizes) {
  const int64_t all[] = {sizes...};
  return product_fits(all, sizeof...(sizes));
}

int32_t check_sizes(const lc_depthwise* d) {
  if (const int32_t bad = check_head(d)) return bad;
  const bool positive = d->multiplier > 0 && d->kernel_height > 0 && d->kernel_width > 0 && d->stride_height > 0 &&
                        d->stride_width > 0 && d->dilation_height > 0 && d->dilation_width > 0;
  const bool small = positive && d->pad_height >= 0 && d->pad_height < kMost && d->pad_width >= 0 &&
                     d->pad_width < kMost && fits(d->images, d->height, d->width, d->channels, d->multiplier) &&
                     fits(d->images, d->out_height, d->out_width, d->channels, d->multiplier) &&
                     fits(d->channels + 64, d->multiplier, d->kernel_height, d->kernel_width, 64) &&
                     fits(d->images, d->out_height, d->out_width, d->channels + 64, d->multiplier, d->kernel_height,
                          d->kernel_width) &&
                     fits(d->out_height + 8, d->stride_height) && fits(d->out_width + 8, d->stride_width) &&
                     fits(d->kernel_height, d->dilation_height) && fits(d->kernel_width, d->dilation_width) &&
                     fits(d->stride_height, d->dilation_height) && fits(d->stride_width, d->dilation_width);
  return small ? LC_OK : LC_BAD_ARGUMENT;
}

int32_t check(const lc_depthwise* d) {
  if (const int32_t bad = check_sizes(d)) return bad;
  return d->scratch_size >= lc_table_of(d->isa).depthwise_scratch(*d) ? LC_OK : LC_BAD_ARGUMENT;
}

// Rows of which each costs what an output row costs, as many as a part is worth.
int64_t grain(const lc_depthwise* d) {
  const int64_t taps = d->kernel_height * d->kernel_width, row = d->out_width * d->channels * d->multiplier * taps;
  return row >= kMacsPerPart ? 1 : kMacsPerPart / (row > 0 ? row : 1);
}

}  // namespace

int32_t lc_depthwise_check(const lc_depthwise* d) { return check_sizes(d); }

int64_t lc_depthwise_scratch(const lc_depthwise* d) {
  if (const int32_t bad = check_sizes(d)) return -bad;
  return lc_table_of(d->isa).depthwise_scratch(*d);
}

int32_t lc_depthwise_forward(const lc_depthwise* d) {
  if (const int32_t bad = check(d)) return bad;
  const lc_table& table = lc_table_of(d->isa);
  table.depthwise_pack(*d, 0, table.depthwise_blocks(*d));
  return split(d, table.depthwise_rows, d->images * d->out_height, grain(d));
}

int32_t lc_depthwise_backward_input(const lc_depthwise* d) {
  if (const int32_t bad = check(d)) return bad;
  const lc_table& table = lc_table_of(d->isa);
  table.depthwise_pack_flipped(*d, 0, table.depthwise_blocks(*d));
  return split(d, table.depthwise_input_rows, d->images * d->height, grain(d));
}

int32_t lc_depthwise_backward_weight(const lc_depthwise* d) {
  if (const int32_t bad = check(d)) return bad;
  const lc_table& table = lc_table_of(d->isa);
  if (const int32_t bad = split(d, table.depthwise_weight, table.depthwise_tasks(*d), 1)) return bad;
  table.depthwise_sum(*d, 0, table.depthwise_blocks(*d));
  return LC_OK;
}
