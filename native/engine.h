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
  LC_OPS
};
enum { LC_ACTS = 7, LC_PARTS = 3 };

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
  int64_t pixel;   // conv: floats from a pixel of a copy to the next
  int64_t wide;    // conv: pixels of a row of a copy
  int64_t taps, length;  // conv: a sum runs over `taps` stretches of `length` neighbouring floats
  int64_t* offsets;      // conv: where they start, (2, taps): in the input itself, in a copy
  float* packed;
  float* bias;  // conv: in panels like the weights
  const float *weight, *shift;  // of the plan while layers are prepared; affine: own copies
};

// An operation over a batch, cut into `down` x `across` tasks; a task is a range of rows and a range of panels.
struct lc_work {
  const lc_layer* layer;  // block: the first of several
  int64_t images;
  const float* x;
  int64_t x_pixel;      // floats from a pixel of x to the next
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
  const lc_layer* spread;      // add, multiply: shape of the second operand, in height, width, channels
  int64_t scratch_size;        // floats of a thread
};

typedef void (*lc_task)(const lc_work& work, int64_t task, float* scratch);
