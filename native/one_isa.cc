// The only file that is compiled once per instruction set (CMakeLists.txt gives LC_ISA, LC_BYTES, LC_UNROLL and the flags).
#include <stddef.h>

#include "leanconv.h"
#include "floats.h"
#include "simd.h"
#include "table.h"

namespace {
#include "kernels/common.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/philox.inl.h"
#include "kernels/dropout.inl.h"
#include "kernels/spread.inl.h"
#include "kernels/depthwise.inl.h"
#include "kernels/depthwise_rows.inl.h"
#include "kernels/depthwise_weight.inl.h"
#include "kernels/product.inl.h"
#include "kernels/pointwise.inl.h"
#include "kernels/channelwise.inl.h"
#include "kernels/peak.inl.h"
#include "kernels/engine_activations.inl.h"
typedef float Number;  // what layers of the runtime read
#include "kernels/engine_rows.inl.h"
#include "kernels/engine_product.inl.h"
#include "kernels/engine_depthwise.inl.h"
#include "kernels/engine_convolution.inl.h"
#include "kernels/engine_chain.inl.h"
#include "kernels/engine_maps.inl.h"
}  // namespace

#define LC_JOIN_(a, b) a##b
#define LC_JOIN(a, b) LC_JOIN_(a, b)
__attribute__((visibility("hidden"))) extern const lc_table LC_JOIN(lc_table_, LC_ISA);
const lc_table LC_JOIN(lc_table_, LC_ISA) = {
    mask_blocks, mask_revive, exact_rows, dropout_tasks, dropout_cuts, dropout_tiles, spread_rows,
    gather_rows,
    norm_stats, norm_merge, norm_settle, norm_factors, norm_apply, norm_sums, norm_add, norm_slopes,
    norm_regain, norm_gradient,
    depthwise_scratch, depthwise_blocks, depthwise_tasks, depthwise_pack, depthwise_pack_flipped, depthwise_rows,
    depthwise_input_rows, depthwise_weight, depthwise_sum,
    pointwise_plan, pointwise_panels, pointwise_tiles, pointwise_pack, pointwise_pack_flipped, pointwise_forward,
    pointwise_backward, pointwise_sum, channelwise_plan, channelwise_pack, channelwise_forward, channelwise_backward,
    channelwise_merge, channelwise_sum,
    {engine_packed, engine_pack, engine_panels, copy_height, engine_task, engine_scratch, peak_turns, peak_width},
};
