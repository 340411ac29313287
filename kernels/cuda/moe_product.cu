// Grouped products of the experts by mma: tiles of 64 sorted rows by 128 outputs, four warps of 32
// by 64, rows gathered and weight tiles copied by cp.async through three stages. The path of
// devices before and after sm_90 (moe_hopper.cu).
#include "kernels/cuda/device/experts.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 64;
constexpr int kColumns = 128;
constexpr int kStages = 3;
constexpr uint32_t kABytes = kRows * 128;
constexpr uint32_t kStageBytes = kABytes + kColumns * 128;
constexpr int kSharedBytes = kStages * static_cast<int>(kStageBytes);
constexpr int kTileBytes = static_cast<int>(kExpertTileRows * kExpertTileCols) * 2;
static_assert(kRows == kExpertRows);

__device__ inline uint32_t place_in_rows(int row, int chunk) {
  return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) * 16));
}

template <class T, bool kGather>
__device__ void multiply_tile(const ExpertProduct& a, const ExpertTile& tile, int column,
                              uint32_t shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int begin = tile.place;
  const int rows = tile.rows;
  const auto panels = static_cast<int>((a.in_features + 63) / 64);
  const int chunk = thread % 8;
  constexpr int kPasses = kRows / 16;
  const T* from[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int place = begin + min(thread / 8 + i * 16, rows - 1);
    const int64_t row = kGather ? a.order.choices[place] / a.top_k : place;
    from[i] = static_cast<const T*>(a.a.data) + row * a.a.stride + chunk * 8;
  }
  const char* weight = static_cast<const char*>(a.weights) + tile.expert * a.stride_bytes +
                       int64_t{column / 2} * panels * kTileBytes + column % 2 * (kTileBytes / 2) +
                       thread * 16;
  const auto fetch = [&](int k) {
    if (k < panels) {
      const uint32_t a_to = shared + static_cast<uint32_t>(k % kStages) * kStageBytes;
      const uint32_t b_to = a_to + kABytes + static_cast<uint32_t>(thread * 16);
      const bool valid = k * 64 + chunk * 8 < a.in_features;
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        copy_async(a_to + place_in_rows(thread / 8 + i * 16, chunk),
                   valid ? from[i] + k * 64 : from[i], valid);
      }
#pragma unroll
      for (int i = 0; i < kColumns / 16; ++i) {
        copy_async(b_to + static_cast<uint32_t>(i * 2048),
                   weight + int64_t{k} * kTileBytes + i * 2048, true);
      }
    }
    commit_copies();
  };
  float d[2][8][4] = {};
  const int warp_row = warp / 2 * 32;
  const int warp_column = warp % 2 * 64;
  for (int k = 0; k < kStages - 1; ++k) fetch(k);
  for (int k = 0; k < panels; ++k) {
    wait_copies<kStages - 2>();
    __syncthreads();
    fetch(k + kStages - 1);
    const uint32_t a_at = shared + static_cast<uint32_t>(k % kStages) * kStageBytes;
    const uint32_t b_at = a_at + kABytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t left[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_matrices(left[m],
                      a_at + place_in_rows(warp_row + m * 16 + lane % 16, i * 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t right[4];
        load_matrices(right, b_at + place_in_rows(warp_column + n * 16 + lane / 16 * 8 + lane % 8,
                                                  i * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply<T>(d[m][2 * n], left[m], right[0], right[1]);
          multiply<T>(d[m][2 * n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }
  wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = warp_row + m * 16 + lane / 4 + h * 8;
      if (r >= rows) continue;
      T* row = static_cast<T*>(a.out.data) + (begin + r) * a.out.stride;
#pragma unroll
      for (int n = 0; n < 8; n += 2) {  // four neighbours of the weight (expert_row)
        const int64_t c = int64_t{column} * kColumns + warp_column + n * 8 + lane % 4 * 4;
        if (c >= a.out_features) continue;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = d[m][n + i % 2][2 * h + i / 2];
          if (a.bias != nullptr) v[i] += a.bias[tile.expert * a.out_features + c + i];
        }
        if constexpr (kGather) {
          *reinterpret_cast<uint32_t*>(row + c / 2) =
              pack<T>(gate_value(a.gate, v[0], v[1], a.alpha, a.limit),
                      gate_value(a.gate, v[2], v[3], a.alpha, a.limit));
        } else {
          *reinterpret_cast<uint2*>(row + c) = {pack<T>(v[0], v[1]), pack<T>(v[2], v[3])};
        }
      }
    }
  }
}

template <class T, bool kGather>
__global__ void __launch_bounds__(kThreads) expert_kernel(ExpertProduct a) {
  extern __shared__ __align__(128) char memory[];
  wait_for_previous();
  const auto column_tiles = static_cast<int>((a.out_features + kColumns - 1) / kColumns);
  const int tiles = *a.order.num_tiles * column_tiles;
  for (int t = static_cast<int>(blockIdx.x); t < tiles; t += static_cast<int>(gridDim.x)) {
    multiply_tile<T, kGather>(a, a.order.tiles[t / column_tiles], t % column_tiles,
                              shared_address(memory));
  }
  let_next_start();
}

template <class T, bool kGather>
void launch_product(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  static const cudaError_t raised = cudaFuncSetAttribute(
      expert_kernel<T, kGather>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  static_cast<void>(raised);
  launch(expert_kernel<T, kGather>, static_cast<unsigned>(2 * num_processors), kThreads,
         kSharedBytes, stream, args);
}

}  // namespace

void expert_product(cudaStream_t stream, const ExpertProduct& args, int num_processors) {
  const bool gated = args.gate != ExpertGate::kNone;
  if (args.a.dtype == ElementType::kBF16) {
    return gated ? launch_product<bf16, true>(stream, args, num_processors)
                 : launch_product<bf16, false>(stream, args, num_processors);
  }
  gated ? launch_product<__half, true>(stream, args, num_processors)
        : launch_product<__half, false>(stream, args, num_processors);
}

}  // namespace mpinfer::kernels::cuda
