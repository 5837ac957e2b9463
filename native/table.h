// What every instruction set provides: ranges of work, so that the threads are the dispatcher's matter.
#pragma once
#include "engine.h"
#include "leanconv.h"

// The runtime's part, for steps over floats or over bytes.
struct lc_runs {
  int64_t (*packed)(const lc_layer& layer);  // floats, weights and bias
  void (*pack)(lc_layer& layer);
  int64_t (*panels)(const lc_layer& layer);  // of a convolution
  int64_t (*copy_height)(const lc_layer& layer);
  lc_task (*task)(const lc_work& work);
  int64_t (*scratch)(const lc_work& work);  // floats for a thread
  void (*peak)(const lc_burst& burst, int64_t begin, int64_t end);  // turns
  int64_t (*peak_width)();                                          // multiply-adds of a turn
};

struct lc_table {
  void (*mask_blocks)(const lc_mask& mask, int64_t begin, int64_t end);  // blocks of 8 elements over all rows
  void (*mask_revive)(const lc_mask& mask, int64_t begin, int64_t end);  // rows
  void (*exact_rows)(const lc_mask& mask, int64_t begin, int64_t end);   // rows
  int64_t (*dropout_tasks)(const lc_dropout& dropout);                            // tiles, times turns
  void (*dropout_cuts)(const lc_dropout& dropout, int64_t begin, int64_t end);   // rows of the mask
  void (*dropout_tiles)(const lc_dropout& dropout, int64_t begin, int64_t end);  // tasks
  void (*spread_rows)(const lc_spread& spread, int64_t begin, int64_t end);      // rows of the full matrix
  void (*gather_rows)(const lc_spread& spread, int64_t begin, int64_t end);      // likewise
  void (*norm_stats)(const lc_norm& norm, int64_t begin, int64_t end);     // chunks of rows
  void (*norm_merge)(const lc_norm& norm, int64_t begin, int64_t end);     // columns
  void (*norm_settle)(const lc_norm& norm, int64_t begin, int64_t end);    // channels
  void (*norm_factors)(const lc_norm& norm, int64_t begin, int64_t end);   // channels
  void (*norm_apply)(const lc_norm& norm, int64_t begin, int64_t end);     // rows
  void (*norm_sums)(const lc_norm& norm, int64_t begin, int64_t end);      // chunks of rows
  void (*norm_add)(const lc_norm& norm, int64_t begin, int64_t end);       // columns
  void (*norm_slopes)(const lc_norm& norm, int64_t begin, int64_t end);    // channels
  void (*norm_regain)(const lc_norm& norm, int64_t begin, int64_t end);    // channels
  void (*norm_gradient)(const lc_norm& norm, int64_t begin, int64_t end);  // rows
  int64_t (*depthwise_scratch)(const lc_depthwise& conv);                // floats
  int64_t (*depthwise_blocks)(const lc_depthwise& conv);                 // blocks of channels
  int64_t (*depthwise_tasks)(const lc_depthwise& conv);                  // parts of the sums of backward_weight
  void (*depthwise_pack)(const lc_depthwise& conv, int64_t begin, int64_t end);          // blocks, for forward
  void (*depthwise_pack_flipped)(const lc_depthwise& conv, int64_t begin, int64_t end);  // for backward_input
  void (*depthwise_rows)(const lc_depthwise& conv, int64_t begin, int64_t end);          // rows of y, all images
  void (*depthwise_input_rows)(const lc_depthwise& conv, int64_t begin, int64_t end);    // rows of x
  void (*depthwise_weight)(const lc_depthwise& conv, int64_t begin, int64_t end);        // tasks
  void (*depthwise_sum)(const lc_depthwise& conv, int64_t begin, int64_t end);           // blocks
  int64_t (*pointwise_plan)(lc_pointwise& p, int64_t at, int64_t backward);             // end of the scratch memory
  int64_t (*pointwise_panels)(const lc_pointwise& p, int64_t backward);
  int64_t (*pointwise_tiles)(const lc_pointwise& p);                                    // of output channels
  void (*pointwise_pack)(const lc_pointwise& p, int64_t begin, int64_t end);            // panels, for forward
  void (*pointwise_pack_flipped)(const lc_pointwise& p, int64_t begin, int64_t end);    // for backward
  void (*pointwise_forward)(const lc_pointwise& p, int64_t begin, int64_t end);         // chunks of rows
  void (*pointwise_backward)(const lc_pointwise& p, int64_t begin, int64_t end);        // groups of chunks, or chunks
  void (*pointwise_sum)(const lc_pointwise& p, int64_t begin, int64_t end);             // tiles of output channels
  int64_t (*channelwise_plan)(lc_channelwise& p, int64_t at, int64_t backward);         // end of the scratch memory
  void (*channelwise_pack)(const lc_channelwise& p, int64_t backward);
  void (*channelwise_forward)(const lc_channelwise& p, int64_t begin, int64_t end);     // bands of rows
  void (*channelwise_backward)(const lc_channelwise& p, int64_t begin, int64_t end);    // groups of bands
  void (*channelwise_merge)(const lc_channelwise& p);
  void (*channelwise_sum)(const lc_channelwise& p);
  lc_runs engine;
};
