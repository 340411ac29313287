// How products are fed on sm_90a: one thread fetches panels of 64 elements of
// weight and rows through a ring of stages, each with a barrier that says full and one that says
// empty. The weight does not depend on the kernel before, so the ring is filled with it while that
// one still runs; rows follow when it is done.
#pragma once

#include "kernels/cuda/device/tensor_map.cuh"
#include "kernels/cuda/device/warpgroup.cuh"

namespace mpinfer::kernels::cuda {

struct ProductMaps {  // boxes of 64 elements; what is asked for beyond the sizes is zero
  CUtensorMap weight, rows;
};

// 16-bit types, k and strides in eights, data aligned to 16 bytes.
inline bool product_ring_takes(const ProductArgs& a) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return a.a.dtype != ElementType::kF32 && a.k % 8 == 0 && a.a.stride % 8 == 0 &&
         aligned(a.a.data) && aligned(a.weight);
}

// False: the driver makes no tensor maps.
inline bool make_product_maps(ProductMaps& maps, const ProductArgs& a, int weight_box,
                              int rows_box) {
  return make_rows_map(maps.weight, a.weight, a.k, a.n, a.k, weight_box) &&
         make_rows_map(maps.rows, a.a.data, a.k, a.rows, a.a.stride, rows_box);
}

__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A ring in shared memory: barriers, then stages of weight_bytes and what the rows take.
struct RingMemory {
  static constexpr int kMostStages = 32;
  static constexpr int kBarrierBytes = 1024;  // keeps what follows aligned; half is the kernel's
  static constexpr int kRoom = 1024 + kBarrierBytes;  // beside the stages: to align, barriers
  static constexpr int kMostBytes = 226 * 1024;       // of a block, all of it
  uint32_t base;
  uint32_t weight_bytes;
  uint32_t stage_bytes;

  static __device__ uint32_t base_in(const void* shared) {
    return (shared_address(shared) + 1023U) & ~1023U;
  }
  __device__ uint32_t weight(int stage) const {
    return base + kBarrierBytes + static_cast<uint32_t>(stage) * stage_bytes;
  }
  __device__ uint32_t rows(int stage) const { return weight(stage) + weight_bytes; }
  __device__ uint32_t full(int stage) const { return base + static_cast<uint32_t>(stage) * 16; }
  __device__ uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ uint32_t others() const { return full(kMostStages); }
};

struct PanelPlace {
  int element;     // of weight and rows
  int weight_row;  // the box's first
  int row;
};

// Before the block's __syncthreads(), by one thread: barriers, and weights of the panels that the
// ring has room for. place_of(i): where panel i stands. consumers: threads that say empty.
template <class PlaceOf>
__device__ void fill_ring(const ProductMaps& maps, const RingMemory& memory, int stages,
                          int consumers, int panels, PlaceOf place_of) {
  for (int s = 0; s < stages; ++s) {
    barrier_init(memory.full(s), 1);
    barrier_init(memory.empty(s), consumers);
  }
  fence_barrier_init();
  for (int i = 0; i < min(stages, panels); ++i) {
    const PanelPlace at = place_of(i);
    barrier_expect(memory.full(i), memory.stage_bytes);
    copy_box(memory.weight(i), maps.weight, at.element, at.weight_row, memory.full(i));
  }
  prefetch_map(maps.rows);
}

// The same thread: their rows when the kernel before is done, then the other panels.
template <class PlaceOf>
__device__ void feed_ring(const ProductMaps& maps, const RingMemory& memory, int stages, int panels,
                          PlaceOf place_of) {
  wait_for_previous();
  Ring ring{stages};
  for (int i = 0; i < panels; ++i) {
    const PanelPlace at = place_of(i);
    if (i >= stages) {
      barrier_wait(memory.empty(ring.stage), ring.phase ^ 1);
      barrier_expect(memory.full(ring.stage), memory.stage_bytes);
      copy_box(memory.weight(ring.stage), maps.weight, at.element, at.weight_row,
               memory.full(ring.stage));
    }
    copy_box(memory.rows(ring.stage), maps.rows, at.element, at.row, memory.full(ring.stage));
    ring.advance();
  }
}

// A warpgroup: d = the product of so many panels, a's 64 rows and b's columns so many bytes into a
// stage. Every thread calls release(stage) when its warp has read that.
template <class T, int N, class Release>
__device__ void multiply_panels(float (&d)[N][4], const RingMemory& memory, Ring& ring, int panels,
                                uint32_t a, uint32_t b, Release release) {
  int before = 0;  // the stage of the step before
  for (int k = 0; k < panels; ++k) {
    barrier_wait(memory.full(ring.stage), ring.phase);
    const uint32_t stage = memory.weight(ring.stage);
    warpgroup_arrive();
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      warpgroup_multiply<T>(d, operand(stage + a + i * 32, 16, 1024),
                            operand(stage + b + i * 32, 16, 1024), k > 0 || i > 0);
    }
    warpgroup_commit();
    warpgroup_wait<1>();
    if (k > 0) release(before);
    before = ring.stage;
    ring.advance();
  }
  warpgroup_wait<0>();
  warpgroup_settle(d);
  release(before);
}

}  // namespace mpinfer::kernels::cuda
