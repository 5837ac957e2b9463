// The C interface of the native library: it knows nothing of Python or torch. One packed argument struct per call; the
// Python side (src/leanconv/_native) mirrors these structs, and LC_ABI changes whenever one of them, or their meaning, does.
#pragma once
#include <stdint.h>

#define LC_ABI 5

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "leanconv's native kernels are written for little-endian machines"
#endif

#define LC_API extern "C" __attribute__((visibility("default")))

enum { LC_OK = 0, LC_BAD_SIZE = 1, LC_BAD_ISA = 2, LC_BAD_ARGUMENT = 3, LC_PARALLEL_FAILED = 4, LC_NO_MEMORY = 5 };

typedef void (*lc_range)(int64_t begin, int64_t end, void* context);
// Calls `work` on parts of [begin, end) that cover it, on any threads; returns 0. torch_parallel_for has this signature.
typedef int32_t (*lc_parallel_for)(int64_t begin, int64_t end, int64_t grain, lc_range work, void* context);

// A mask of dropout: bool (rows, elements), contiguous. Numbers are Philox4x32-10; counter layout in kernels/philox.inl.h.
struct lc_mask {
  uint32_t size;  // sizeof(lc_mask)
  int32_t isa;    // index into lc_isas()
  uint64_t key;
  uint64_t sample;  // index of the first row's sample
  int64_t rows;
  int64_t elements;
  int64_t limit;  // lc_keep_mask: the 16-bit threshold; lc_keep_exact: how many stop
  uint8_t* out;
  lc_parallel_for parallel_for;  // null: this thread alone
};

enum { LC_F32 = 0, LC_BF16 = 1 };  // bf16 is a type of storage: computed in float32

// Batch normalisation over (rows, channels), contiguous, and the activation after it; see kernels/norm.inl.h.
struct lc_norm {
  uint32_t size;  // sizeof(lc_norm)
  int32_t isa;
  int32_t dtype;  // of x, y, dy, dx
  int32_t act;    // 0 none, 1 ReLU, 2 ReLU6, 3 hard-swish, 4 SiLU
  int32_t given;  // mean, rest and var are given; else forward computes them from x
  int32_t reserved;
  int64_t rows, channels;
  double eps;
  const void *x, *dy;
  void *y, *dx;
  const float *gamma, *beta;  // null: 1 and 0
  float *mean, *rest, *var;   // (channels): the mean as a float32 and what rounding left of it; the biased variance
  float *dgamma, *dbeta;      // (channels)
  void* scratch;              // lc_norm_scratch bytes, aligned to 64
  lc_parallel_for parallel_for;
  struct {  // filled in by the library
    int64_t width, rows, chunks, per_chunk;
    double* sums;
    float *shift, *a, *b, *k, *c;
  } plan;
};

// y = x * (keep ? scale : 0), the mask of lc_mask made on the way; x and y are (samples, elements), contiguous.
struct lc_dropout {
  uint32_t size;  // sizeof(lc_dropout)
  int32_t isa;
  int32_t dtype;  // of x and y
  int32_t exact;  // the mask is that of lc_keep_exact
  int32_t batch;  // one row for all samples, sample index 0
  int32_t reserved;
  uint64_t key;
  uint64_t sample;  // index of the first sample
  int64_t samples;
  int64_t elements;
  int64_t channels;  // above 1: a sample is (channels, positions), its elements are counted channels last; at most 4096
  int64_t limit;     // as of lc_mask
  double scale;
  void* x;
  void* y;
  int64_t* cuts;  // (rows of the mask, 2), scratch for exact counts of more than LC_DROPOUT_ROW elements; else null
  lc_parallel_for parallel_for;
};
enum { LC_DROPOUT_ROW = 4096 };

// Rows or columns, side by side in `part`, and the places in `full`, (rows, columns), where `keep` is 1: lc_spread_out takes
// them there, and the rest becomes 0; lc_gather_in takes them from there.
struct lc_spread {
  uint32_t size;  // sizeof(lc_spread)
  int32_t isa;
  int32_t by_rows;  // else columns
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  int64_t kept;    // how many ones `keep` holds
  int64_t stride;  // floats from one row of `part` to the next
  uint8_t* keep;   // (rows or columns), 0 or 1
  float* full;
  float* part;
  lc_parallel_for parallel_for;
};

// A depthwise convolution, images in NHWC: output channel c * multiplier + k comes from input channel c. Zeros stand
// around the input: pad_* of them before it, as many as the output needs behind it. Everything is contiguous.
struct lc_depthwise {
  uint32_t size;  // sizeof(lc_depthwise)
  int32_t isa;
  int64_t bf16;    // 0: x and y are float, 1: they are bfloat16; weights and sums are float always
  int64_t images;
  int64_t height, width, channels, multiplier;
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_height, pad_width;
  int64_t dilation_height, dilation_width;
  void* x;          // (images, height, width, channels): read by forward and backward_weight, else written
  void* y;          // (images, out_height, out_width, channels * multiplier): written by forward, else read
  float* weight;    // (channels * multiplier, kernel_height, kernel_width): written by backward_weight, else read
  float* bias;      // (channels * multiplier) or null, likewise; backward_input ignores it
  float* scratch;   // lc_depthwise_scratch() floats
  int64_t scratch_size;  // how many there are
  lc_parallel_for parallel_for;  // null: this thread alone
};

// What y passes: nothing; `after`, whose statistics forward computes, and backward gets dy of act(norm(y)); the same, and
// backward gets dy of norm(y), and the gradients of gamma and beta, from whoever made it.
enum { LC_PLAIN = 0, LC_MEASURED = 1, LC_MEASURED_GRADIENT = 2 };

// A pointwise convolution of rows of pixels between two batch norms; see kernels/pointwise.inl.h. Both norms are of `rows`
// rows; of them act, given, eps, gamma, beta, mean, rest, var, dgamma, dbeta count, the library fills in the others.
struct lc_pointwise {
  uint32_t size;  // sizeof(lc_pointwise)
  int32_t isa;
  int32_t dtype;     // of x, y, dy, dx
  int32_t normed;    // whether x passes `before`, whose statistics are there, and its activation
  int32_t measured;  // LC_PLAIN to LC_MEASURED_GRADIENT
  int32_t raw;       // backward leaves in dx the gradient behind the norm `before`, through its activation
  float scale;       // of what `keep` lets through
  int64_t rows, in_channels, out_channels;
  const void* x;        // (rows, in_channels)
  const uint8_t* keep;  // (rows, in_channels), 0 or 1; null: everything
  void* y;              // (rows, out_channels): written by forward, else read
  const void* dy;
  void* dx;             // (rows, in_channels)
  const float* weight;  // (out_channels, in_channels)
  float* dweight;
  void* scratch;  // lc_pointwise_scratch bytes, aligned to 64
  int64_t scratch_size;
  int64_t threads;  // that may run at once, 1 to 64
  lc_parallel_for parallel_for;
  lc_norm before, after;
  struct {  // filled in by the library
    int64_t held, chunks, groups, per_group, slot_size, kept;
    uint64_t* busy;
    double* sums;
    float *packed, *slots, *partials;
  } plan;
};

// A depthwise convolution, multiplier 1, between two batch norms; see kernels/channelwise.inl.h and lc_pointwise.
struct lc_channelwise {
  uint32_t size;  // sizeof(lc_channelwise)
  int32_t isa;
  int32_t normed, measured, raw;
  int32_t reserved;
  lc_depthwise conv;  // its sizes, x, y, weight and bf16; bias and scratch do not count
  const void* dy;
  void* dx;
  float* dweight;
  void* scratch;  // lc_channelwise_scratch bytes, aligned to 64
  int64_t scratch_size;
  int64_t threads;  // that may run at once, 1 to 64
  lc_parallel_for parallel_for;
  lc_norm before, after;
  struct {  // filled in by the library
    int64_t bands, chunks, groups, per_group, slot_size, in_size, out_size;
    uint64_t* busy;
    double* sums;
    float *packed, *slots, *partials;
  } plan;
};

// --- the runtime: src/leanconv/runtime/plan.py says what values, steps and their fields mean --------------------------

struct lc_value {
  int64_t height, width, channels;
  int64_t offset;  // into the arena, floats for one image; -1: none
  float scale;     // above 0: unsigned bytes q that stand for scale (q - zero); 0: float32
  int32_t zero;
};

struct lc_step {
  int32_t op;   // place in plan.OPS
  int32_t act;  // place in plan.ACTIVATIONS
  int32_t count_padding;
  int32_t reserved;
  int64_t* inputs;  // numbers of values; everything that a plan points to is only read
  int64_t inputs_count;
  int64_t output;
  lc_step* parts;
  int64_t parts_count;
  float* weight;  // null: none
  int64_t weight_size;
  float* bias;
  int64_t bias_size;
  int8_t* bytes;  // weights over bytes; `weight` and `bias` are null then
  int64_t bytes_size;
  int32_t* sums;  // their bias, in units of the input's scale times that of the channel
  int64_t sums_size;
  float* scales;  // of the weights of each output channel
  int64_t scales_size;
  int64_t groups;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, pad_bottom, pad_right, dilation_height, dilation_width;
};

struct lc_plan {
  uint32_t size;  // sizeof(lc_plan)
  int32_t isa;
  lc_value* values;
  int64_t values_count;
  lc_step* steps;
  int64_t steps_count;
  int64_t input, output;  // numbers of values
  int64_t memory;         // floats of the arena for one image
  int64_t threads;        // 1 to 64, the caller's one among them
  int64_t refused;        // out: the step that LC_BAD_ARGUMENT is about; -1: none in particular
  int32_t path;           // of steps over bytes: index into lc_paths(); -1: the best that does not exceed `isa`
  int32_t reserved;
};

struct lc_engine;

// One batch: `in` and `out` hold `images` maps one after another.
struct lc_batch {
  uint32_t size;  // sizeof(lc_batch)
  int32_t reserved;
  lc_engine* engine;
  int64_t images;
  int64_t in_size;  // floats
  int64_t out_size;
  float* in;  // only read
  float* out;
};

// Multiply-adds in registers, on the calling thread: how fast this processor can be.
struct lc_burst {
  uint32_t size;  // sizeof(lc_burst)
  int32_t isa;
  int64_t turns;  // 0 to 2^40
  int64_t count;  // out: multiply-adds done
  float* out;     // one number, so that the work is not left out
  int32_t path;   // of bytes by bytes in this way over bytes; -1: in single precision
  int32_t reserved;
};

LC_API int32_t lc_abi(void);
LC_API const char* lc_isas(void);                  // names, from the plainest to the best, separated by commas
LC_API int32_t lc_supported(int32_t isa);          // whether this processor runs it
LC_API const char* lc_paths(void);  // ways over bytes, from the plainest to the best, separated by commas
LC_API int32_t lc_path_supported(int32_t path);  // whether this processor, and the system, run it
LC_API int32_t lc_path_of(int32_t isa);          // the best one that does not exceed an instruction set
LC_API int32_t lc_peak(lc_burst* burst);
LC_API int32_t lc_keep_mask(const lc_mask* mask);  // 1 where the element's 16-bit number >= limit; at least one per row
LC_API int32_t lc_keep_exact(const lc_mask* mask);  // 0 for the `limit` smallest 32-bit words of each row, else 1
LC_API int32_t lc_dropout_apply(const lc_dropout* dropout);
LC_API int32_t lc_spread_out(const lc_spread* spread);
LC_API int32_t lc_gather_in(const lc_spread* spread);
LC_API int64_t lc_norm_scratch(int64_t rows, int64_t channels);  // bytes; -1 for sizes out of range
LC_API int32_t lc_norm_forward(lc_norm* norm);                    // y (null: not wanted), and mean, rest and var unless given
LC_API int32_t lc_norm_backward(lc_norm* norm);                   // dx, dgamma and dbeta from x, dy and what forward gave
LC_API int64_t lc_depthwise_scratch(const lc_depthwise* conv);  // floats that each of the three needs; negative: -failure
LC_API int32_t lc_depthwise_forward(const lc_depthwise* conv);
LC_API int32_t lc_depthwise_backward_input(const lc_depthwise* conv);
LC_API int32_t lc_depthwise_backward_weight(const lc_depthwise* conv);
LC_API int64_t lc_pointwise_scratch(const lc_pointwise* p, int32_t backward);  // bytes; negative: -failure
LC_API int32_t lc_pointwise_forward(lc_pointwise* p);   // y, and its statistics if measured
LC_API int32_t lc_pointwise_backward(lc_pointwise* p);  // dx, dweight, and dgamma and dbeta of the norms that are there
LC_API int64_t lc_channelwise_scratch(const lc_channelwise* p, int32_t backward);  // bytes; negative: -failure
LC_API int32_t lc_channelwise_forward(lc_channelwise* p);
LC_API int32_t lc_channelwise_backward(lc_channelwise* p);
// An engine keeps nothing of the plan that it was made from. It may be called from any thread: calls wait for each other.
// After fork, the child's calls run on the calling thread alone; none may be running while the process forks.
LC_API int32_t lc_engine_new(lc_plan* plan, lc_engine** engine);
LC_API int32_t lc_engine_run(const lc_batch* batch);
// Of the last run, for each of the plan's steps; of several that ran as one the last has the time of all, the others 0.
LC_API int32_t lc_engine_times(lc_engine* engine, double* seconds, int64_t steps);
LC_API void lc_engine_free(lc_engine* engine);  // null: nothing happens
