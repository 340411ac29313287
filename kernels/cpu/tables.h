// What each SIMD source file adds to a KernelTable for the target that Highway has chosen.
#pragma once

#include "kernels/cpu.h"

namespace mpinfer::kernels::cpu {

void fill_gemm(KernelTable& table);
void fill_attention(KernelTable& table);
void fill_elementwise(KernelTable& table);
void fill_sample(KernelTable& table);

}  // namespace mpinfer::kernels::cpu
