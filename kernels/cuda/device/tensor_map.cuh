// Tensors that the copy engine of sm_90a fetches in boxes (CUDA driver API, "Tensor Map Object
// Management"), 16-bit elements, 64 of them a row of a box: a panel in the 128-byte swizzle
// (warpgroup.cuh). What lies outside the tensor arrives as zeros.
#pragma once

#include <cuda.h>

#include "kernels/cuda/device/handover.cuh"

namespace mpinfer::kernels::cuda {

// sizes[i], the elements of dimension i, the innermost first; strides[i]: bytes between elements of
// dimension i + 1. False: the driver has no tensor maps, or refuses these sizes.
template <int kDimensions>
bool make_map(CUtensorMap& map, const void* base, const cuuint64_t (&sizes)[kDimensions],
              const cuuint64_t (&strides)[kDimensions - 1], const cuuint32_t (&box)[kDimensions]) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                     &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(
        result == cudaDriverEntryPointSuccess ? found : nullptr);
  }();
  cuuint32_t steps[kDimensions];
  for (cuuint32_t& step : steps) step = 1;
  return encode != nullptr &&
         encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kDimensions, const_cast<void*>(base), sizes,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Rows of a matrix, `stride` elements apart, in boxes of 64 elements and box_rows rows.
inline bool make_rows_map(CUtensorMap& map, const void* data, int64_t columns, int64_t rows,
                          int64_t stride, int box_rows) {
  return make_map<2>(map, data, {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)},
                     {static_cast<cuuint64_t>(stride) * 2},
                     {64, static_cast<cuuint32_t>(box_rows)});
}

// The box at (element, row) of a tensor of rows, counted by the barrier.
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, int element, int row,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(element), "r"(row), "r"(barrier)
      : "memory");
}
// To the same place in each block of the cluster whose bit is set, counted by its barrier.
__device__ inline void copy_box_to_blocks(uint32_t to, const CUtensorMap& map, int element, int row,
                                          uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(element), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}
// The other way; what lies outside the tensor is left out. What was written to shared memory is
// fenced before (fence_shared_writes, then a barrier).
__device__ inline void store_box(const CUtensorMap& map, int element, int row, uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
          &map),
      "r"(element), "r"(row), "r"(from)
      : "memory");
}

}  // namespace mpinfer::kernels::cuda
