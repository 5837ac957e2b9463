// What the files of the runtime share: steps as they are prepared once, and how each is cut into tasks for a batch.
#pragma once
#include <stddef.h>

#include "leanconv.h"

enum {
  LC_CONV,
  LC_DEPTHWISE,
  LC_LINEAR,
  LC_AFFINE,
  LC_MAX_POOL,
  LC_AVG_POOL,
  LC_MEAN,
  LC_ADD,
  LC_MULTIPLY,
  LC_CONCAT,
  LC_ACTIVATION,
  LC_SOFTMAX,
  LC_BLOCK,
  LC_QUANTIZE,
  LC_DEQUANTIZE,
  LC_OPS
};
enum { LC_ACTS = 7, LC_PARTS = 3, LC_STAGES = 12 };

// One operation with its shapes, its packed weights and how it reads its input. Addresses of maps come with the batch.
struct lc_layer {
  int32_t op, act;
  int32_t count_padding;
  int32_t flat;    // conv: pixels do not know of each other (1x1, stride 1, no padding; linear)
  int32_t copied;  // conv: input rows are copied, with the zeros around them, before they are read
  float low, high;  // `act` as bounds; infinite where it is none
  int64_t height, width, channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_top, pad_left, pad_bottom, pad_right, dilation_height, dilation_width;
  int64_t groups;  // conv; depthwise: the multiplier
  int64_t pixel;   // numbers from a pixel of a copy, or of rows that wait for this layer, to the next
  int64_t wide;    // conv: pixels of a row of a copy
  int64_t taps, length;  // conv: a sum runs over `taps` stretches of `length` neighbouring numbers
  int64_t* offsets;      // conv: where they start, (2, taps): in the input itself, in a copy
  float* packed;  // in the engine's memory
  float* bias;  // conv: in panels like the weights
  const float *weight, *shift;  // of the plan while layers are prepared; affine: own copies

  // Over bytes: a number of x is x_scale (q - zero), of y y_scale (q - y_zero), of the second input likewise. Sums t are in
  // units of y_scale, and y = clamp(rint(t) + y_zero, low_byte, high_byte), but where `real`: there t is the number itself,
  // and y = act(t), or the byte nearest to act(t) * inverse.
  int32_t quantized, y_quantized;  // whether x is bytes, and y
  int32_t real;                    // y is float, or the activation is more than bounds
  int32_t zero, y_zero, second_zero;
  int32_t low_byte, high_byte;
  float factor;         // t of a number q - zero, of all operations without weights (mean, avg_pool: of area 1)
  float second_factor;  // t of a number of the second input
  float inverse;        // 1 / y_scale
  double x_scale, y_scale, second_scale;
  const int8_t* bytes;  // of the plan while layers are prepared, as are:
  const int32_t* sums;
  const float* scales;
  int32_t* starts;  // in the engine's memory: the bias, less what the zero point adds to all sums, and
  float* factors;   // t of a sum of 1, both for each channel; conv: in panels like the weights
};

// What a sum of 1 is, in the units of t, where a weight of 1 stands for `scale`.
float lc_factor_of(const lc_layer& l, float scale);

// Of concat's inputs.
struct lc_operand {
  int32_t zero;
  int32_t same;  // its bytes mean what those of the output do
  float factor;
};

// An operation over a batch, cut into `down` x `across` tasks; a task is a range of rows and a range of panels.
struct lc_work {
  const lc_layer* layer;  // the first of `stages` where there are several
  const lc_layer* stages[LC_STAGES];
  int64_t stages_count;
  int64_t images;
  const float* x;       // or bytes, like the others
  int64_t x_pixel;      // numbers from a pixel of x to the next
  const float* second;  // added before the activation; or the other operand; null: none
  float* y;
  int64_t y_pixel;
  int64_t rows;  // of y, counted over all images: of pixels; pixels where the layer is flat
  int64_t down, across;
  int32_t prepared;  // conv: x is a whole copy, zeros around each image
  int32_t copies;    // fill such a copy
  const float* const* inputs;  // concat
  const int64_t* channels;     // concat: of each input
  int64_t count;               // concat: of inputs
  const lc_operand* operands;  // concat of bytes: of each input
  const lc_layer* spread;      // add, multiply: shape of the second operand, in height, width, channels
  int64_t scratch_size;        // floats of a thread
};

typedef void (*lc_task)(const lc_work& work, int64_t task, float* scratch);
