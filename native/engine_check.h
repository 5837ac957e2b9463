// What a plan's check asks about bytes.
#pragma once
#include "engine_steps.h"

bool lc_check_scale(const lc_value& v);  // float32, or a scale and a zero point that are in range
// Whether an operation may read and make such values, and what the layer then knows of them; null: no second input.
bool lc_check_bytes(const lc_step& s, const lc_value& x, const lc_value& y, const lc_value* second, lc_layer& l);
// Whether a layer over bytes has its tensors, and no sum of an output channel can leave 32 bits, or its unit 30.
bool lc_check_sums(const lc_step& s, int64_t weights, int64_t channels, lc_layer& l);
bool lc_operand_of(const lc_value& v, const lc_value& y, int32_t act, lc_operand* to);  // of concat; all bytes, or all floats
