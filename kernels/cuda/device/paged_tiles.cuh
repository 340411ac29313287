// Tiles of a paged KV cache, fetched by the copy engine of sm_90a (PTX ISA,
// "cp.async.bulk.tensor"): K or V as a tensor [blocks, heads, tokens of a block, head_dim], of
// which one copy takes `tokens` of a block and 64 elements of each into a panel of the 128-byte
// swizzle (warpgroup.cuh). A block number outside the tensor gives zeros.
#pragma once

#include <numeric>

#include "kernels/cuda/device/tensor_map.cuh"

namespace mpinfer::kernels::cuda {

struct PagedMaps {
  CUtensorMap k, v;
  int32_t tokens;  // of one copy
};

// A tile of tile_tokens is made of whole copies, and none leaves its block. False: the driver has
// no tensor maps, or refuses these sizes.
inline bool make_paged_maps(PagedMaps& maps, const AttentionArgs& a, int32_t tile_tokens) {
  maps.tokens = std::gcd(a.block_size, tile_tokens);
  const auto bytes = [](int64_t elements) { return static_cast<cuuint64_t>(elements) * 2; };
  const auto make = [&](CUtensorMap& map, const void* base) {
    constexpr cuuint64_t kMostBytes = cuuint64_t{1} << 40;  // no device has more
    const cuuint64_t sizes[] = {
        static_cast<cuuint64_t>(a.head_dim), static_cast<cuuint64_t>(a.block_size),
        static_cast<cuuint64_t>(a.num_kv_heads), kMostBytes / bytes(a.block_stride)};
    const cuuint64_t strides[] = {bytes(a.head_dim), bytes(a.head_stride), bytes(a.block_stride)};
    const cuuint32_t box[] = {64, static_cast<cuuint32_t>(maps.tokens), 1, 1};
    return make_map<4>(map, base, sizes, strides, box);
  };
  return make(maps.k, a.k) && make(maps.v, a.v);
}

__device__ inline void copy_paged(uint32_t to, const CUtensorMap& map, int element, int token,
                                  int head, int block, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(&map), "r"(element), "r"(token), "r"(head), "r"(block), "r"(barrier)
      : "memory");
}

}  // namespace mpinfer::kernels::cuda
