// Calls every function of the C interface over many shapes, to be built with sanitizers (CMake: LEANCONV_SANITIZE).
//
// Every array is a heap block of exactly its size, so the address sanitizer sees an access beside it. Each case runs at
// every instruction set of this processor under several settings: in one thread or in parts on threads of this program
// (which the thread sanitizer follows), blocks aligned or not, memory filled with other bits before. The bits written
// must be the same under all settings: so nothing depends on threads or alignment, and nothing uninitialised is read or
// left unwritten.
//
// To add functions: a family in kFamilies that names them, and a function that makes its cases from `Run`.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "../../native/leanconv.h"

// Blocks lie far apart, so that an access a row of pixels away hits no other one. Ignored without the sanitizer.
extern "C" const char* __asan_default_options() { return "redzone=2048:max_redzone=2048:detect_leaks=0"; }

namespace {

// Up to five uneven parts, each on a thread of its own.
int32_t on_threads(int64_t begin, int64_t end, int64_t, lc_range work, void* context) {
  const int64_t count = end - begin, cuts[] = {0, count / 7, count / 3, (count + 1) / 2, count - count / 5, count};
  std::vector<std::thread> threads;
  for (int i = 0; i < 5; ++i)
    if (cuts[i] < cuts[i + 1])
      threads.emplace_back([=] { work(begin + cuts[i], begin + cuts[i + 1], context); });
  for (std::thread& thread : threads) thread.join();
  return 0;
}
int32_t fails(int64_t, int64_t, int64_t, lc_range, void*) { return 1; }

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state_ >> 33);
  }
  int64_t below(int64_t n) { return (int64_t)(next() % (uint64_t)n); }
  template <size_t N>
  int64_t of(const int64_t (&values)[N]) {
    return values[below(N)];
  }

 private:
  uint64_t state_;
};

// One pass over all cases under one setting.
class Run {
 public:
  Run(int32_t isa, lc_parallel_for pool, int offset, int fill) : isa(isa), pool(pool), offset_(offset), fill_(fill) {}
  Run(const Run&) = delete;
  ~Run() { release(); }

  const int32_t isa;
  const lc_parallel_for pool;

  // A block of `count` elements that the library may only read: normal numbers around zero, or any bits.
  const float* floats(int64_t count) {
    float* p = block<float>(count);
    for (int64_t i = 0; i < count; ++i) p[i] = (float)(random_.below(4001) - 2000) / 700.0f;
    return p;
  }
  const void* numbers(int64_t count, bool bf16) {
    if (!bf16) return floats(count);
    uint16_t* p = block<uint16_t>(count);
    for (int64_t i = 0; i < count; ++i) {
      const float number = (float)(random_.below(4001) - 2000) / 700.0f;
      memcpy(p + i, (const char*)&number + 2, 2);  // the upper half of a float
    }
    return p;
  }
  // A block that the library writes; its bits are compared.
  template <typename T>
  T* result(int64_t count) {
    T* p = block<T>(count);
    results_.push_back({(const uint8_t*)p, count * (int64_t)sizeof(T), size_of<T>});
    return p;
  }
  void* results(int64_t count, bool bf16) {
    return bf16 ? (void*)result<uint16_t>(count) : (void*)result<float>(count);
  }
  // A block for whatever the library likes.
  template <typename T>
  T* scratch(int64_t count) {
    return block<T>(count);
  }
  void* aligned_scratch(int64_t bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, (size_t)bytes)) abort();
    memset(p, fill_, (size_t)bytes);
    blocks_.push_back(p);
    return p;
  }

  // The end of a case: `failure` of its calls must be `wanted`; what was written is remembered, the blocks are freed.
  void done(const std::string& name, int32_t failure, int32_t wanted = LC_OK) {
    uint64_t hash = 14695981039346656037u;
    double size = 0;
    for (const Span& r : results_) size += wanted == LC_OK ? r.size(r.at, r.bytes) : 0;
    for (const Span& r : results_)
      for (int64_t i = 0; wanted == LC_OK && i < r.bytes; ++i) hash = (hash ^ r.at[i]) * 1099511628211u;
    names.push_back(name + (failure == wanted ? "" : ", failure " + std::to_string(failure)));
    hashes.push_back(hash);
    sizes.push_back(size);
    good &= failure == wanted;
    release();
    random_ = Random(names.size());
  }

  std::vector<std::string> names;
  std::vector<uint64_t> hashes;
  std::vector<double> sizes;  // of what was written: the sum of its absolute values
  bool good = true;

 private:
  struct Span {
    const uint8_t* at;
    int64_t bytes;
    double (*size)(const uint8_t* at, int64_t bytes);
  };

  template <typename T>
  static double size_of(const uint8_t* at, int64_t bytes) {
    double sum = 0;
    for (int64_t i = 0; i < bytes; i += (int64_t)sizeof(T)) {
      T bits;
      memcpy(&bits, at + i, sizeof(T));
      float number = (float)bits;
      if (sizeof(T) == 2) {  // bfloat16: the upper half of a float
        const uint32_t whole = (uint32_t)bits << 16;
        memcpy(&number, &whole, 4);
      }
      sum += number < 0 ? -(double)number : (double)number;
    }
    return sum;
  }

  template <typename T>
  T* block(int64_t count) {
    const size_t bytes = (size_t)(count + offset_) * sizeof(T);
    void* p = malloc(bytes);
    if (p == nullptr) abort();
    memset(p, fill_, bytes);
    blocks_.push_back(p);
    return (T*)p + offset_;
  }
  void release() {
    for (void* p : blocks_) free(p);
    blocks_.clear(), results_.clear();
  }

  const int offset_, fill_;
  Random random_{0};
  std::vector<void*> blocks_;
  std::vector<Span> results_;
};

std::string told(std::initializer_list<int64_t> values) {
  std::string text;
  for (const int64_t v : values) text += (text.empty() ? "" : " ") + std::to_string(v);
  return text;
}

const int64_t kExtremes[] = {0, 1, 2, 3, 7, 64, 1 << 16, (int64_t)1 << 31, (int64_t)1 << 40, (int64_t)1 << 57,
                             (int64_t)1 << 58, (int64_t)1 << 62, INT64_MAX, INT64_MIN, -1};

// --- masks ----------------------------------------------------------------------------------------------------------

void one_mask(Run& run, bool exact, int64_t rows, int64_t elements, int64_t limit, uint64_t sample) {
  lc_mask m = {sizeof(lc_mask), run.isa, 0x9E3779B97F4A7C15u, sample, rows, elements, limit, nullptr, run.pool};
  m.out = run.result<uint8_t>(rows * elements);
  run.done(told({exact, rows, elements, limit}), exact ? lc_keep_exact(&m) : lc_keep_mask(&m));
}

void masks(Run& run) {
  for (const int64_t rows : {0, 1, 3, 40})
    for (const int64_t elements : {0, 1, 2, 7, 8, 9, 63, 64, 65, 129, 255, 600}) {
      one_mask(run, false, rows, elements, 40000, 5);
      one_mask(run, true, rows, elements, elements / 2, UINT64_MAX - 1);
    }
  for (const int64_t limit : {0, 1, 65535}) one_mask(run, false, 5, 37, limit, UINT64_MAX);
  for (const int64_t limit : {0, 1, 4096, 4097}) one_mask(run, true, 2, 4097, limit, 0);
  one_mask(run, false, 3, 70001, 30000, 1);
  one_mask(run, false, 21001, 7, 30000, 1);
  one_mask(run, true, 70, 2000, 1000, 1);

  Random random(1);
  for (int i = 0; i < 2000; ++i) {  // sizes alone
    const int64_t rows = random.of(kExtremes), elements = random.of(kExtremes), limit = random.of(kExtremes);
    const bool plain = rows >= 0 && elements >= 0 && elements <= (int64_t)1 << 62 && limit >= 0 &&
                       rows <= INT64_MAX / (elements + 7);
    const bool none = plain && (rows == 0 || elements == 0);
    if (plain && !none) continue;  // would be written
    lc_mask m = {sizeof(lc_mask), run.isa, 1, 1, rows, elements, limit, nullptr, run.pool};
    run.done("mask " + told({rows, elements, limit}), lc_keep_mask(&m),
             none && limit <= 65535 ? LC_OK : LC_BAD_ARGUMENT);
    run.done("exact " + told({rows, elements, limit}), lc_keep_exact(&m),
             none && limit <= elements ? LC_OK : LC_BAD_ARGUMENT);
  }
  lc_mask m = {sizeof(lc_mask), run.isa, 1, 1, 4, 100000, 9, nullptr, fails};
  m.out = run.scratch<uint8_t>(400000);
  run.done("a pool that fails", lc_keep_mask(&m), LC_PARALLEL_FAILED);
}

// --- batch normalisation --------------------------------------------------------------------------------------------

void one_norm(Run& run, int64_t rows, int64_t channels, int32_t bf16, int32_t act, bool given, bool affine) {
  lc_norm n = {};
  n.size = sizeof n, n.isa = run.isa, n.dtype = bf16, n.act = act, n.given = given, n.eps = 1e-5;
  n.rows = rows, n.channels = channels, n.parallel_for = run.pool;
  const int64_t size = rows * channels;
  n.x = run.numbers(size, bf16), n.dy = run.numbers(size, bf16);
  n.y = run.results(size, bf16), n.dx = run.results(size, bf16);
  if (affine) n.gamma = run.floats(channels), n.beta = run.floats(channels);
  float** vectors[] = {&n.mean, &n.rest, &n.var, &n.dgamma, &n.dbeta};
  for (float** v : vectors) {
    *v = rows ? run.result<float>(channels) : run.scratch<float>(channels);
    for (int64_t c = 0; given && c < channels; ++c) (*v)[c] = 0.5f + (float)(c % 7);
  }
  n.scratch = run.aligned_scratch(lc_norm_scratch(rows, channels));
  int32_t failure = lc_norm_forward(&n);
  if (!failure) failure = lc_norm_backward(&n);
  run.done(told({rows, channels, bf16, act, given, affine}), failure);
}

void norms(Run& run) {
  int number = 0;
  for (const int64_t rows : {0, 1, 2, 3, 7, 16, 17, 50})
    for (const int64_t channels : {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100}) {
      one_norm(run, rows, channels, number % 2, number % 5, number % 3 == 0, number % 4 != 0);
      ++number;
    }
  for (const int64_t channels : {1023, 1024, 1025, 1040, 2050})
    for (const int32_t bf16 : {0, 1}) one_norm(run, 9, channels, bf16, (int32_t)(channels % 5), false, true);
  for (int32_t act = 0; act < 5; ++act) one_norm(run, 4099, 17, act % 2, act, false, true);
  one_norm(run, 2048, 33, 0, 1, true, false);
  one_norm(run, 70000, 1, 1, 4, false, true);
  one_norm(run, 40, 2050, 0, 2, false, true);

  for (const int64_t rows : kExtremes)
    for (const int64_t channels : kExtremes) {
      lc_norm n = {};
      n.size = sizeof n, n.isa = run.isa, n.rows = rows, n.channels = channels, n.parallel_for = run.pool;
      const int64_t bytes = lc_norm_scratch(rows, channels);
      if (bytes < 0) run.done(told({rows, channels}), lc_norm_forward(&n), LC_BAD_ARGUMENT);
      if (bytes < 0) run.done(told({rows, channels}), lc_norm_backward(&n), LC_BAD_ARGUMENT);
      if (bytes >= 0 && (rows < 0 || channels < 1)) run.done("scratch of " + told({rows, channels}), 1);
    }
}

// --- depthwise convolution ------------------------------------------------------------------------------------------

struct Conv {
  int64_t images, height, width, channels, multiplier;
  int64_t kernel_height, kernel_width;
  int64_t stride_height = 1, stride_width = 1, pad_height = 0, pad_width = 0, dilation_height = 1, dilation_width = 1;
  int64_t bf16 = 0, more = 0;  // rows and columns of the output beyond those of equal padding on both sides
};

int64_t out_of(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t more) {
  const int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1;
  return (room < 0 ? 0 : room / stride + 1) + more;
}

lc_depthwise of(const Run& run, const Conv& c) {
  lc_depthwise d = {};
  d.size = sizeof d, d.isa = run.isa, d.bf16 = c.bf16, d.images = c.images, d.parallel_for = run.pool;
  d.height = c.height, d.width = c.width, d.channels = c.channels, d.multiplier = c.multiplier;
  d.kernel_height = c.kernel_height, d.kernel_width = c.kernel_width;
  d.stride_height = c.stride_height, d.stride_width = c.stride_width;
  d.pad_height = c.pad_height, d.pad_width = c.pad_width;
  d.dilation_height = c.dilation_height, d.dilation_width = c.dilation_width;
  return d;
}

void one_conv(Run& run, const Conv& c, bool bias) {
  lc_depthwise d = of(run, c);
  d.out_height = out_of(c.height, c.kernel_height, c.stride_height, c.pad_height, c.dilation_height, c.more);
  d.out_width = out_of(c.width, c.kernel_width, c.stride_width, c.pad_width, c.dilation_width, c.more);
  const int64_t x_size = c.images * c.height * c.width * c.channels, wide = c.channels * c.multiplier;
  const int64_t y_size = c.images * d.out_height * d.out_width * wide, w_size = wide * c.kernel_height * c.kernel_width;
  const std::string name = told({c.images, c.height, c.width, c.channels, c.multiplier, c.kernel_height, c.kernel_width,
                                 c.stride_height, c.stride_width, c.pad_height, c.pad_width, c.dilation_height,
                                 c.dilation_width, c.bf16, c.more, bias});
  for (const auto step : {lc_depthwise_forward, lc_depthwise_backward_input, lc_depthwise_backward_weight}) {
    const bool writes_y = step == lc_depthwise_forward, writes_x = step == lc_depthwise_backward_input;
    const bool writes_w = step == lc_depthwise_backward_weight;
    d.x = writes_x ? run.results(x_size, c.bf16) : (void*)run.numbers(x_size, c.bf16);
    d.y = writes_y ? run.results(y_size, c.bf16) : (void*)run.numbers(y_size, c.bf16);
    d.weight = writes_w ? run.result<float>(w_size) : (float*)run.floats(w_size);
    d.bias = !bias ? nullptr : writes_w ? run.result<float>(wide) : (float*)run.floats(wide);
    d.scratch_size = lc_depthwise_scratch(&d);
    d.scratch = run.scratch<float>(d.scratch_size);
    run.done((writes_y ? "forward " : writes_x ? "input " : "weight ") + name, step(&d));
  }
}

void convolutions(Run& run) {
  const Conv large[] = {
      {8, 14, 14, 64, 1, 3, 3, 1, 1, 1, 1},
      {6, 15, 15, 48, 1, 5, 5, 2, 2, 2, 2},
      {4, 14, 14, 33, 2, 3, 3, 1, 1, 1, 1},
      {3, 13, 13, 40, 1, 7, 7, 1, 1, 3, 3, 1, 1, 1},
      {3, 21, 9, 50, 1, 3, 3, 1, 1, 2, 2, 2, 2, 1},
      {2, 1, 300, 40, 1, 1, 31, 1, 1, 0, 15},
      {5, 40, 40, 7, 3, 3, 3, 2, 1, 1, 0},
      {2, 3, 3, 600, 2, 5, 5, 1, 1, 2, 2},
  };
  for (const Conv& c : large) one_conv(run, c, true);
  for (const int64_t empty : {0, 1, 2}) {
    one_conv(run, {empty == 0 ? 0 : 1, empty == 1 ? 0 : 4, empty == 2 ? 0 : 4, 5, 1, 3, 3, 1, 1, 1, 1}, true);
    one_conv(run, {1, 2, 2, 20, 1 + empty, 5, 5}, true);  // no output
  }

  const int64_t kernels[] = {1, 2, 3, 4, 5, 7, 9}, channels[] = {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40};
  const int64_t sides[] = {1, 2, 3, 5, 6, 7, 8, 13, 14, 15}, ones[] = {1, 1, 1, 2, 3};
  Random random(2);
  for (int i = 0; i < 160; ++i) {
    Conv c;
    c.images = 1 + random.below(2), c.height = random.of(sides), c.width = random.of(sides);
    c.channels = random.of(channels), c.multiplier = random.of(ones);
    c.kernel_height = random.of(kernels), c.kernel_width = random.below(2) ? c.kernel_height : random.of(kernels);
    c.stride_height = random.of(ones), c.stride_width = random.below(2) ? c.stride_height : random.of(ones);
    c.pad_height = random.below(c.kernel_height + 1), c.pad_width = random.below(c.kernel_width + 1);
    c.dilation_height = random.of(ones), c.dilation_width = random.below(2) ? c.dilation_height : random.of(ones);
    c.bf16 = random.below(2), c.more = random.below(2);
    one_conv(run, c, random.below(2));
  }

  for (int i = 0; i < 8000; ++i) {  // sizes alone: refused, or scratch memory of a size that can be
    Conv c = {1, 9, 9, 5, 1, 3, 3, 1, 1, 1, 1};
    int64_t* const fields[] = {&c.images, &c.height, &c.width, &c.channels, &c.multiplier, &c.kernel_height,
                               &c.kernel_width, &c.stride_height, &c.stride_width, &c.pad_height, &c.pad_width,
                               &c.dilation_height, &c.dilation_width};
    lc_depthwise d = {};
    int64_t out_height = 9, out_width = 9;
    for (int64_t changes = 1 + random.below(6); changes > 0; --changes) {
      const int64_t which = random.below(15);
      (which == 13 ? out_height : which == 14 ? out_width : *fields[which]) = random.of(kExtremes);
    }
    d = of(run, c), d.out_height = out_height, d.out_width = out_width;
    const int64_t floats = lc_depthwise_scratch(&d);
    d.scratch_size = -1;
    const std::string name = "scratch " + told({c.images, c.height, c.width, c.channels, c.multiplier, c.kernel_height,
                                                c.kernel_width, out_height, out_width});
    run.done(name, floats < 0 ? (int32_t)-floats : LC_BAD_ARGUMENT, LC_BAD_ARGUMENT);
    run.done(name, lc_depthwise_forward(&d), LC_BAD_ARGUMENT);
  }
}

// --- all of them ----------------------------------------------------------------------------------------------------

// --- dropout --------------------------------------------------------------------------------------------------------

void one_dropout(Run& run, lc_dropout d) {
  d.size = sizeof d, d.isa = run.isa, d.key = 0x9E3779B97F4A7C15u, d.parallel_for = run.pool, d.scale = 1.25;
  d.x = (void*)run.numbers(d.samples * d.elements, d.dtype);
  d.y = run.results(d.samples * d.elements, d.dtype);
  if (d.exact && d.elements > LC_DROPOUT_ROW) d.cuts = run.scratch<int64_t>(2 * (d.batch ? 1 : d.samples));
  run.done(told({d.dtype, d.exact, d.batch, d.samples, d.elements, d.channels, d.limit}), lc_dropout_apply(&d));
}

void dropouts(Run& run) {
  int number = 0;
  for (const int64_t samples : {0, 1, 3, 20})
    for (const int64_t elements : {0, 1, 7, 8, 9, 63, 65, 255, 257, 600, 5000}) {
      const int32_t exact = number % 2, batch = number % 3 == 0, dtype = number % 5 == 0;
      ++number;
      one_dropout(run, {0, 0, dtype, exact, batch, 0, 0, 3, samples, elements, 1, exact ? elements / 3 : 40000});
    }
  for (const int64_t channels : {2, 3, 16, 17, 64, 100})
    for (const int64_t positions : {1, 5, 16, 33})
      one_dropout(run, {0, 0, (int32_t)(positions % 2), 0, 0, 0, 0, 1, 4, channels * positions, channels, 30000});
  one_dropout(run, {0, 0, 0, 0, 0, 0, 0, UINT64_MAX, 2, 70001, 1, 65535});

  Random random(4);
  for (int i = 0; i < 500; ++i) {
    lc_dropout d = {sizeof d, run.isa, 0, 0, 0, 0, 1, 1, random.of(kExtremes), random.of(kExtremes), random.of(kExtremes),
                    random.of(kExtremes), 1.0, nullptr, nullptr, nullptr, run.pool};
    if (d.samples >= 0 && d.elements >= 0 && d.channels >= 0) continue;  // may be right
    run.done(told({d.samples, d.elements, d.channels, d.limit}), lc_dropout_apply(&d), LC_BAD_ARGUMENT);
  }
}

void one_spread(Run& run, bool gathers, int32_t by_rows, int64_t rows, int64_t columns, int64_t every) {
  lc_spread s = {sizeof s, run.isa, by_rows, 0, rows, columns, 0, 0, nullptr, nullptr, nullptr, run.pool};
  const int64_t marks = by_rows ? rows : columns, room = by_rows || gathers ? 0 : 3;
  s.keep = run.scratch<uint8_t>(marks);
  for (int64_t i = 0; i < marks; ++i) s.kept += s.keep[i] = i % every == 0;
  s.stride = (by_rows ? columns : s.kept) + room;
  const int64_t height = by_rows ? s.kept : rows, part = height > 0 ? height * s.stride - room : 0;
  s.part = gathers ? run.result<float>(part) : (float*)run.floats(part);
  s.full = gathers ? (float*)run.floats(rows * columns) : run.result<float>(rows * columns);
  run.done(told({gathers, by_rows, rows, columns, every}), gathers ? lc_gather_in(&s) : lc_spread_out(&s));
}

void spreads(Run& run) {
  for (const bool gathers : {false, true})
    for (const int32_t by_rows : {0, 1})
      for (const int64_t rows : {0, 1, 7, 300})
        for (const int64_t columns : {0, 1, 15, 16, 17, 400})
          for (const int64_t every : {1, 2, 5}) one_spread(run, gathers, by_rows, rows, columns, every);
}

// --- convolutions between two batch norms ---------------------------------------------------------------------------

// A norm's vectors; its gradients are read where `given_gradients`, else written where there is a norm at all.
lc_norm between(Run& run, int64_t channels, int32_t act, bool given, bool there, bool written, bool given_gradients) {
  lc_norm n = {};
  n.act = act, n.given = given, n.eps = 1e-3;
  if (!there) return n;
  n.gamma = run.floats(channels), n.beta = run.floats(channels);
  float** moments[] = {&n.mean, &n.rest, &n.var};
  for (float** const m : moments) {
    *m = written ? run.result<float>(channels) : run.scratch<float>(channels);
    for (int64_t c = 0; !written && c < channels; ++c) (*m)[c] = m == moments[1] ? 1e-8f : 0.5f + (float)(c % 7);
  }
  float** gradients[] = {&n.dgamma, &n.dbeta};
  for (float** g : gradients) *g = given_gradients ? (float*)run.floats(channels) : run.result<float>(channels);
  return n;
}

struct Setting {
  int32_t bf16, act, after;
  int32_t normed, measured, raw, given, drops;
};

Setting setting(int number) {
  return {number % 3 == 0, number % 5, (number / 2) % 5, number % 4 != 0, number % 3, number % 2, number % 7 == 0, number % 6 == 0};
}

void fill(float* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = 0.0f;
}

void one_pointwise(Run& run, int64_t rows, int64_t in, int64_t out, Setting s) {
  for (const int32_t backward : {0, 1}) {
    lc_pointwise p = {};
    p.size = sizeof p, p.isa = run.isa, p.dtype = s.bf16, p.normed = s.normed, p.raw = s.raw, p.scale = 1.25f;
    p.measured = backward ? s.measured : s.measured > 0 && !s.given;
    p.rows = rows, p.in_channels = in, p.out_channels = out, p.threads = 3, p.parallel_for = run.pool;
    p.x = run.numbers(rows * in, s.bf16);
    p.y = backward ? (void*)run.numbers(rows * out, s.bf16) : run.results(rows * out, s.bf16);
    p.weight = run.floats(in * out);
    if (s.drops) {
      uint8_t* keep = run.scratch<uint8_t>(rows * in);
      for (int64_t i = 0; i < rows * in; ++i) keep[i] = i % 3 != 0;
      p.keep = keep;
    }
    p.before = between(run, in, s.act, s.given, s.normed, false, false);
    p.after = between(run, out, s.after, s.given, p.measured, !backward && rows, backward && s.measured == 2);
    if (!s.normed || !backward || !rows) fill(p.before.dgamma, p.before.dgamma ? in : 0), fill(p.before.dbeta, p.before.dbeta ? in : 0);
    if (p.measured == 1 && (!backward || !rows)) fill(p.after.dgamma, out), fill(p.after.dbeta, out);
    if (backward) {
      p.dy = run.numbers(rows * out, s.bf16), p.dx = run.results(rows * in, s.bf16);
      p.dweight = rows ? run.result<float>(in * out) : run.scratch<float>(in * out);
    }
    p.scratch_size = lc_pointwise_scratch(&p, backward);
    p.scratch = run.aligned_scratch(p.scratch_size);
    run.done(told({backward, rows, in, out, s.bf16, s.act, s.after, s.normed, s.measured, s.raw, s.given, s.drops}),
             backward ? lc_pointwise_backward(&p) : lc_pointwise_forward(&p));
  }
}

void pointwises(Run& run) {
  int number = 0;
  for (const int64_t rows : {0, 1, 13, 15, 100})
    for (const int64_t in : {1, 16, 17, 230})
      for (const int64_t out : {1, 5, 15, 65}) one_pointwise(run, rows, in, out, setting(number++));
  one_pointwise(run, 700, 450, 240, setting(1));
  one_pointwise(run, 3000, 20, 33, setting(2));
  one_pointwise(run, 9000, 7, 9, setting(9));

  Random random(5);
  for (int i = 0; i < 500; ++i) {
    lc_pointwise p = {};
    p.size = sizeof p, p.isa = run.isa, p.parallel_for = run.pool;
    p.rows = random.of(kExtremes), p.in_channels = random.of(kExtremes), p.out_channels = random.of(kExtremes);
    p.threads = 1 + random.below(2) * 64;
    if (lc_pointwise_scratch(&p, i % 2) >= 0) continue;
    run.done(told({p.rows, p.in_channels, p.out_channels}), lc_pointwise_forward(&p), LC_BAD_ARGUMENT);
    run.done(told({p.rows, p.in_channels, p.out_channels}), lc_pointwise_backward(&p), LC_BAD_ARGUMENT);
  }
}

void one_channelwise(Run& run, const Conv& c, Setting s) {
  for (const int32_t backward : {0, 1}) {
    lc_channelwise p = {};
    p.size = sizeof p, p.isa = run.isa, p.normed = s.normed, p.raw = s.raw, p.threads = 3, p.parallel_for = run.pool;
    p.measured = backward ? s.measured : s.measured > 0 && !s.given;
    lc_depthwise& d = p.conv;
    d = of(run, c), d.bf16 = s.bf16;
    d.out_height = out_of(c.height, c.kernel_height, c.stride_height, c.pad_height, c.dilation_height, c.more);
    d.out_width = out_of(c.width, c.kernel_width, c.stride_width, c.pad_width, c.dilation_width, c.more);
    const int64_t x_size = c.images * c.height * c.width * c.channels, w_size = c.channels * c.kernel_height * c.kernel_width;
    const int64_t y_size = c.images * d.out_height * d.out_width * c.channels;
    const bool none = x_size == 0 || y_size == 0;
    d.x = (void*)run.numbers(x_size, s.bf16);
    d.y = backward || none ? (void*)run.numbers(y_size, s.bf16) : run.results(y_size, s.bf16);
    d.weight = (float*)run.floats(w_size);
    p.before = between(run, c.channels, s.act, s.given, s.normed, false, false);
    p.after = between(run, c.channels, s.after, s.given, p.measured, !backward && !none, backward && s.measured == 2);
    if (p.before.dgamma && (!backward || none)) fill(p.before.dgamma, c.channels), fill(p.before.dbeta, c.channels);
    if (p.measured == 1 && (!backward || none)) fill(p.after.dgamma, c.channels), fill(p.after.dbeta, c.channels);
    if (backward) {
      p.dy = run.numbers(y_size, s.bf16);
      p.dx = none ? (void*)run.numbers(x_size, s.bf16) : run.results(x_size, s.bf16);
      p.dweight = none ? run.scratch<float>(w_size) : run.result<float>(w_size);
    }
    p.scratch_size = lc_channelwise_scratch(&p, backward);
    p.scratch = run.aligned_scratch(p.scratch_size);
    run.done(told({backward, c.images, c.height, c.width, c.channels, c.kernel_height, c.stride_height, c.pad_height,
                   c.dilation_height, c.more, s.bf16, s.act, s.after, s.normed, s.measured, s.raw, s.given}),
             backward ? lc_channelwise_backward(&p) : lc_channelwise_forward(&p));
  }
}

void channelwises(Run& run) {
  int number = 0;
  for (const int64_t channels : {1, 3, 8, 15, 16, 17, 33})
    for (const int64_t side : {1, 4, 7, 9})
      for (const int64_t stride : {1, 2, 3}) {
        const int64_t kernel = 1 + 2 * (number % 3), dilation = 1 + number % 2, pad = number % 5;
        one_channelwise(run, {2, side, side + 2, channels, 1, kernel, kernel, stride, stride, pad, pad, dilation, dilation},
                        setting(number));
        ++number;
      }
  one_channelwise(run, {0, 5, 5, 8, 1, 3, 3, 1, 1, 1, 1, 1, 1}, setting(1));
  one_channelwise(run, {2, 70, 70, 40, 1, 3, 3, 1, 1, 1, 1, 1, 1}, setting(1));   // several bands
  one_channelwise(run, {1, 75, 90, 33, 1, 5, 5, 2, 2, 2, 2, 1, 1}, setting(5));
  one_channelwise(run, {1, 60, 80, 35, 1, 3, 3, 1, 1, 2, 2, 2, 2}, setting(3));
  one_channelwise(run, {1, 3, 3, 20, 1, 3, 3, 1, 1, 9, 9, 1, 1}, setting(2));     // rows of zeros alone
  one_channelwise(run, {70, 3, 3, 5, 1, 3, 3, 2, 2, 1, 1, 1, 1}, setting(7));     // more images than groups
  one_channelwise(run, {1, 9, 1500, 16, 1, 3, 3, 1, 1, 1, 1, 1, 1, 0, 1}, setting(1));

  Random random(6);
  for (int i = 0; i < 500; ++i) {
    lc_channelwise p = {};
    p.size = sizeof p, p.isa = run.isa, p.threads = 1 + random.below(2) * 64, p.parallel_for = run.pool;
    int64_t* const sizes[] = {&p.conv.images, &p.conv.height, &p.conv.width, &p.conv.channels, &p.conv.out_height,
                              &p.conv.out_width, &p.conv.kernel_height, &p.conv.stride_height, &p.conv.pad_height};
    p.conv.multiplier = p.conv.kernel_width = p.conv.stride_width = p.conv.dilation_height = p.conv.dilation_width = 1;
    for (int64_t* size : sizes) *size = random.of(kExtremes);
    if (lc_channelwise_scratch(&p, i % 2) >= 0) continue;
    run.done("refused " + std::to_string(i), lc_channelwise_forward(&p), LC_BAD_ARGUMENT);
    run.done("refused " + std::to_string(i), lc_channelwise_backward(&p), LC_BAD_ARGUMENT);
  }
}

// --- the runtime ----------------------------------------------------------------------------------------------------

#include "engine_cases.inl.h"
#include "bytes_cases.inl.h"

void bursts(Run& run) {
  for (const int64_t turns : {(int64_t)0, (int64_t)1, (int64_t)1000}) {
    lc_burst burst = {sizeof(lc_burst), run.isa, turns, 0, run.result<float>(1), -1, 0};
    const int32_t failure = lc_peak(&burst);
    run.good &= *burst.out == 12.0f && burst.count >= turns * 48;
    run.done("burst " + std::to_string(turns), failure);
  }
  float out;
  for (int32_t path = 0; path < 6; ++path) {  // as many cases on every machine
    lc_burst burst = {sizeof(lc_burst), run.isa, 1000, 0, &out, path, 0};
    const bool there = lc_path_supported(path);
    const int32_t failure = lc_peak(&burst);
    run.good &= !there || ((out == 48000.0f || out == 0) && burst.count >= 1000 * 192);
    run.done("burst of bytes " + std::to_string(path), failure, there ? LC_OK : LC_BAD_ISA);
  }
  lc_burst unknown = {sizeof(lc_burst), run.isa, 1, 0, &out, 99, 0};
  run.done("refused burst", lc_peak(&unknown), LC_BAD_ISA);
  for (const int64_t turns : {(int64_t)-1, ((int64_t)1 << 40) + 1}) {
    lc_burst burst = {sizeof(lc_burst), run.isa, turns, 0, &out, -1, 0};
    run.done("refused burst", lc_peak(&burst), LC_BAD_ARGUMENT);
  }
  lc_burst nowhere = {sizeof(lc_burst), run.isa, 1, 0, nullptr, -1, 0};
  run.done("refused burst", lc_peak(&nowhere), LC_BAD_ARGUMENT);
}

struct Family {
  const char* calls;  // what it calls, separated by spaces; a test compares them with the library's functions
  void (*cases)(Run&);
};
const Family kFamilies[] = {
    {"lc_keep_mask lc_keep_exact", masks},
    {"lc_norm_scratch lc_norm_forward lc_norm_backward", norms},
    {"lc_depthwise_scratch lc_depthwise_forward lc_depthwise_backward_input lc_depthwise_backward_weight", convolutions},
    {"lc_dropout_apply", dropouts},
    {"lc_spread_out lc_gather_in", spreads},
    {"lc_pointwise_scratch lc_pointwise_forward lc_pointwise_backward", pointwises},
    {"lc_channelwise_scratch lc_channelwise_forward lc_channelwise_backward", channelwises},
    {"lc_engine_new lc_engine_run lc_engine_times lc_engine_free", [](Run& run) {
       engines(run);
       bytes_engines(run);
     }},
    {"lc_peak", bursts},
};

// Whether a pass went well and wrote the same bits as the first one; what did not is printed.
bool compare(const Run& first, const Run& run, int32_t isa, const char* setting) {
  bool good = run.good && run.names == first.names;
  for (size_t i = 0; i < run.names.size(); ++i) {
    const char* const name = run.names[i].c_str();
    if (strstr(name, "failure")) printf("isa %d, %s: %s\n", isa, setting, name);
    if (i >= first.hashes.size() || run.hashes[i] == first.hashes[i]) continue;
    printf("isa %d: %s gives other bits: %s\n", isa, setting, name);
    good = false;
  }
  return good;
}

}  // namespace

// `--list`: the functions that the cases call. `--threads`: the cases on threads alone, for the thread sanitizer.
// `--sizes`: what they wrote, summed up, a line each, to be compared with another processor's. The exit status is 0 where
// all is well.
int main(int argc, char** argv) {
  const bool list = argc > 1 && !strcmp(argv[1], "--list"), sizes = argc > 1 && !strcmp(argv[1], "--sizes"),
             threads_alone = sizes || (argc > 1 && !strcmp(argv[1], "--threads"));
  for (const Family& family : kFamilies)
    if (list) puts(family.calls);
  if (list) return 0;
  bool good = lc_abi() == LC_ABI;
  size_t cases = 0;
  int isas = 1;
  for (const char* p = lc_isas(); *p; ++p) isas += *p == ',';
  for (int32_t isa = 0; isa < isas; ++isa) {
    if (!lc_supported(isa)) continue;
    for (const Family& family : kFamilies) {
      Run threads(isa, on_threads, 0, 0xFF), alone(isa, nullptr, 0, 0), apart(isa, on_threads, 1, 0x7F);
      family.cases(threads);
      good &= compare(threads, threads, isa, "threads");
      cases += threads.names.size();
      for (size_t i = 0; sizes && i < threads.names.size(); ++i)
        printf("%d %s %s\t%.9g\n", isa, family.calls, threads.names[i].c_str(), threads.sizes[i]);
      if (threads_alone) continue;
      family.cases(alone), family.cases(apart);
      good &= compare(threads, alone, isa, "one thread");
      good &= compare(threads, apart, isa, "blocks off their alignment");
    }
  }
  const lc_mask unknown = {sizeof(lc_mask), isas, 1, 1, 1, 8, 9, nullptr, nullptr};
  const lc_mask other = {1, 0, 1, 1, 1, 8, 9, nullptr, nullptr};
  good &= lc_keep_mask(&unknown) == LC_BAD_ISA && lc_keep_mask(&other) == LC_BAD_SIZE;
  printf("%zu cases of %s: %s\n", cases, lc_isas(), good ? "ok" : "not as they should be");
  return good ? 0 : 1;
}
