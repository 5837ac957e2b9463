// The only file that is compiled once per way over bytes (CMakeLists.txt gives LC_PATH, LC_BYTES and the flags).
#include <stddef.h>

#include "leanconv.h"
#include "floats.h"
#include "simd.h"
#include "table.h"

namespace {
#include "kernels/common.inl.h"
#include "kernels/engine_activations.inl.h"
typedef uint8_t Number;  // what layers read
#include "kernels/bytes_layout.inl.h"
#include "kernels/engine_rows.inl.h"
#include "kernels/bytes_epilogue.inl.h"
#include "kernels/bytes_finish.inl.h"
#include "kernels/bytes_quads.inl.h"
#include "kernels/bytes_tiles.inl.h"
#include "kernels/bytes_product.inl.h"
#include "kernels/bytes_dots.inl.h"
#include "kernels/bytes_depthwise_tiles.inl.h"
#include "kernels/bytes_depthwise_any.inl.h"
#include "kernels/bytes_depthwise_few.inl.h"
#include "kernels/bytes_depthwise.inl.h"
#include "kernels/engine_convolution.inl.h"
#include "kernels/engine_chain.inl.h"
#include "kernels/bytes_maps.inl.h"
#include "kernels/bytes_peak.inl.h"
}  // namespace

#define LC_JOIN_(a, b) a##b
#define LC_JOIN(a, b) LC_JOIN_(a, b)
__attribute__((visibility("hidden"))) extern const lc_runs LC_JOIN(lc_bytes_, LC_PATH);
const lc_runs LC_JOIN(lc_bytes_, LC_PATH) = {
    engine_packed, engine_pack, engine_panels, copy_height, engine_task, engine_scratch, bytes_peak, bytes_peak_width,
};
