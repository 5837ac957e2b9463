// Depthwise offsets beyond 2^31 elements: the last rows of an image of 3 * 2^31 pixels of one plane of memory that nobody
// touches, so that it costs nothing. Prints "ok" or what is wrong. Compiled with LC_BYTES=16.
#include <stdio.h>
#include <sys/mman.h>

#include "../../native/leanconv.h"
#include "../../native/floats.h"
#include "../../native/simd.h"
#include "../../native/table.h"

namespace {
#include "../../native/kernels/common.inl.h"
#include "../../native/kernels/depthwise.inl.h"
#include "../../native/kernels/depthwise_rows.inl.h"
#include "../../native/kernels/depthwise_weight.inl.h"

float* reserve(int64_t floats) {
  void* p = mmap(nullptr, (size_t)floats * sizeof(float), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : (float*)p;
}

bool axes_hold() {  // positions on an axis of 2^40 inputs
  const int64_t far = (int64_t)1 << 40;
  const Axis a = axis_of(far, far / 2, 3, 2, 1, 1);
  const Class c = class_of(a, false, 0);
  const Span s = inside(c, far / 2 - 1, far);
  const Class f = class_of(a, true, 1);
  const Span g = inside(f, far / 2 - 1, far / 2);
  return c.base + c.jump * (far / 2 - 1) * c.stride == far - 3 && s.begin == 0 && s.end == 3 && f.taps == 2 &&
         f.count == far / 2 && g.begin == 0 && g.end == 1 && pixel(far, 1, 3, 5) == (3 * far + 1) * 5;
}
}  // namespace

int main() {
  if (!axes_hold()) return puts("an axis"), 0;
  const int64_t height = (int64_t)3 << 29, width = 1, channels = 4, last = height * width * channels;  // 6 * 2^30
  float weight[4 * 3] = {1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3}, scratch[1024];
  lc_depthwise d = {};
  d.images = 1, d.height = d.out_height = height, d.width = d.out_width = width, d.channels = channels, d.multiplier = 1;
  d.kernel_height = 3, d.kernel_width = 1, d.stride_height = d.stride_width = 1, d.pad_height = 1;
  d.dilation_height = d.dilation_width = 1;
  float *x = reserve(last), *y = reserve(last);
  if (!x || !y) return puts("no address space"), 0;
  d.x = x, d.y = y, d.weight = weight, d.scratch = scratch;
  for (int i = 1; i <= 8; ++i) x[last - i] = 1;  // two last rows
  depthwise_pack(d, 0, 1);
  depthwise_rows(d, height - 3, height);
  if (y[last - 1] != 3 || y[last - 5] != 5 || y[last - 9] != 3) return puts("forward"), 0;
  for (int i = 1; i <= 12; ++i) y[last - i] = i <= 8, x[last - i] = 0;
  depthwise_pack_flipped(d, 0, 1);
  depthwise_input_rows(d, height - 3, height);
  if (x[last - 1] != 5 || x[last - 5] != 3 || x[last - 9] != 1) return puts("input gradient"), 0;
  puts("ok");
  return 0;
}
