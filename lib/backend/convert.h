// Element conversions between f32, bf16 and f16 on the host, round to nearest even.
#pragma once

#include "lib/core/dtype.h"

namespace mpinfer::backend {

uint16_t f16_from_float(float value);

// to[i * to_step] = from[i] for i in [0, count). Both types are kF32, kBF16 or kF16; equal types
// copy bits.
void convert_row(void* to, DType to_dtype, int64_t to_step, const void* from, DType from_dtype,
                 int64_t count);

}  // namespace mpinfer::backend
