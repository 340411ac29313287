// Sum over the ranks of a tensor-parallel group through each other's memory, with the residual sum
// and the norm that follow. Of two ranks each sums up every row from both ranks' summands; of more,
// each works on its own rows: it reads every rank's summands, keeps the new residual, and writes
// the normed row into every rank's memory. A row crosses a link once in each direction, and all
// ranks hold the same bits, summed in the order of ranks. Where the copy engines carry the rows
// between ranks (piece_sum), the same sums are taken within this rank's memory.
#include <algorithm>

#include "kernels/cuda/device/common.cuh"
#include "kernels/cuda_peers.h"

namespace mpinfer::kernels::cuda {
namespace {

constexpr int kVector = 8;
constexpr int kMostThreads = 512;
// Blocks of so many threads that fit on a multiprocessor, for two ranks and for more.
constexpr int kResident[] = {2, 1};

__device__ inline void signal(uint32_t* flag, uint32_t round) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(round) : "memory");
}
__device__ inline uint32_t signalled(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// A peer that never comes is the host's to notice: it sets *abandoned.
__device__ inline void await(const uint32_t* flag, uint32_t round, const uint32_t* abandoned) {
  for (uint32_t polls = 1; static_cast<int32_t>(signalled(flag) - round) < 0; ++polls) {
    if (polls % 4096 == 0 && *static_cast<const volatile uint32_t*>(abandoned) != 0) break;
  }
}

// This block of every rank has come here. phase 0: what ran before on each rank is complete; 1: so
// is what each has written.
__device__ inline void meet(const PeerSumArgs& a, int phase) {
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < a.size && peer != a.rank) {
    const int64_t at = (int64_t{phase} * kPeerSumBlocks + blockIdx.x) * kMostPeers;
    signal(a.flags[peer] + at + a.rank, a.round);
    await(a.flags[a.rank] + at + peer, a.round, a.abandoned);
  }
  __syncthreads();
}

__device__ inline void await_summands(const PeerSumArgs& a, const uint32_t* arrived) {
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < a.size && peer != a.rank) await(arrived + peer, a.round, a.abandoned);
  __syncthreads();
}

template <class T>
__device__ inline Vector<T, kVector> load_fresh(const T* from) {  // past the first-level cache
  Vector<T, kVector> out;
  constexpr int kWords = static_cast<int>(sizeof(out) / sizeof(uint4));
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    reinterpret_cast<uint4*>(&out)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
  return out;
}

// What a thread holds of a row: a vector of every rank's summand and of the residual.
template <class T, int kPeers>
struct Summands {
  Vector<T, kVector> parts[kPeers];
  Vector<T, kVector> residual;

  __device__ void load(const PeerSumArgs& a, int64_t row, int64_t c) {
#pragma unroll
    for (int peer = 0; peer < kPeers; ++peer) {
      if (peer < a.size)
        parts[peer] = load_fresh(static_cast<const T*>(a.partial[peer]) + row * a.cols + c);
    }
    const T* old = static_cast<const T*>(a.residual.data) + row * a.residual.stride + c;
    residual = *reinterpret_cast<const Vector<T, kVector>*>(old);
  }
  __device__ float value(const PeerSumArgs& a, int i) const {
    float sum = 0.0F;
#pragma unroll
    for (int peer = 0; peer < kPeers; ++peer)
      if (peer < a.size) sum += to_float(parts[peer].v[i]);
    return to_float(residual.v[i]) + a.scale * sum;
  }
};

// arrived: of piece_sum, else null. One block a row at a time, kChunks vectors a thread; kPeers: at
// least the number of ranks. With two ranks and one vector a thread the next row is on its way
// while this one is summed up.
template <class T, int kChunks, int kPeers>
__global__ void __launch_bounds__(kMostThreads, kResident[kPeers > 2])
    peer_sum_kernel(PeerSumArgs a, const uint32_t* arrived) {
  wait_for_previous();
  if (arrived != nullptr) {
    await_summands(a, arrived);
  } else {
    meet(a, 0);
  }
  let_next_start();
  const auto column = [](int chunk) {
    return (static_cast<int64_t>(threadIdx.x) + chunk * int64_t{blockDim.x}) * kVector;
  };
  Summands<T, kPeers> next;
  int64_t row = a.first_row + blockIdx.x;
  if (kChunks == 1 && row < a.end_row && column(0) < a.cols) next.load(a, row, column(0));
  for (; row < a.end_row; row += gridDim.x) {
    T* residual = static_cast<T*>(a.residual.data) + row * a.residual.stride;
    float values[kChunks][kVector];
    float squares = 0.0F;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int64_t c = column(chunk);
      if (c >= a.cols) break;
      Summands<T, kPeers> now;
      if (kChunks == 1) {
        now = next;
        if (row + gridDim.x < a.end_row) next.load(a, row + gridDim.x, c);
      } else {
        now.load(a, row, c);
      }
      Vector<T, kVector> sum;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float value = now.value(a, i);
        sum.v[i] = from_float<T>(value);
        values[chunk][i] = value;
        squares += value * value;
      }
      *reinterpret_cast<Vector<T, kVector>*>(residual + c) = sum;
    }
    const float inverse = a.weight == nullptr
                              ? 1.0F
                              : rsqrtf(block_sum(squares) / static_cast<float>(a.cols) + a.eps);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int64_t c = column(chunk);
      if (c >= a.cols) break;
      Vector<T, kVector> to;
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        to.v[i] = from_float<T>(values[chunk][i] * inverse *
                                (a.weight == nullptr ? 1.0F : a.weight[c + i]));
#pragma unroll
      for (int peer = 0; peer < kPeers; ++peer) {
        if (peer < a.size && a.out[peer] != nullptr) {
          T* out = static_cast<T*>(a.out[peer]) + row * a.cols + c;
          *reinterpret_cast<Vector<T, kVector>*>(out) = to;
        }
      }
    }
  }
  if (arrived == nullptr) meet(a, 1);
}

__global__ void peer_wait_kernel(PeerWaitArgs a) {
  wait_for_previous();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer >= a.size || peer == a.rank) return;
  if (a.of_peers[peer] != nullptr) signal(a.of_peers[peer], a.round);
  await(a.flags + peer, a.round, a.abandoned);
}

void start(cudaStream_t stream, const PeerSumArgs& args, const uint32_t* arrived,
           int32_t num_processors) {
  const int64_t vectors = args.cols / kVector;
  const int64_t threads = std::min<int64_t>(kMostThreads, (vectors + 31) / 32 * 32);
  const int64_t chunks = (vectors + threads - 1) / threads;
  // Every rank starts as many blocks, all of which fit at once; a rank may own a row less.
  const int64_t fit = num_processors * kResident[args.size > 2 ? 1 : 0] * (kMostThreads / threads);
  const bool all = args.end_row - args.first_row == args.rows;
  const int64_t rows = all ? args.rows : (args.rows + args.size - 1) / args.size;
  const int64_t blocks = std::max<int64_t>(1, std::min({rows, fit, int64_t{kPeerSumBlocks}}));
  with_type(args.residual.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto with = [&](auto kernel) {
      launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), 0,
             stream, args, arrived);
    };
    if (args.size == 2) {
      return with(chunks == 1   ? peer_sum_kernel<T, 1, 2>
                  : chunks == 2 ? peer_sum_kernel<T, 2, 2>
                                : peer_sum_kernel<T, 4, 2>);
    }
    if (args.size <= 4) {
      return with(chunks <= 2 ? peer_sum_kernel<T, 2, 4> : peer_sum_kernel<T, 4, 4>);
    }
    with(chunks <= 2 ? peer_sum_kernel<T, 2, 8> : peer_sum_kernel<T, 4, 8>);
  });
}

}  // namespace

bool peer_sum_takes(const View& residual, int64_t cols) {
  return cols % kVector == 0 && cols <= 4 * kVector * kMostThreads &&
         aligned_for(residual, kVector);
}

void peer_sum(cudaStream_t stream, const PeerSumArgs& args, int32_t num_processors) {
  start(stream, args, nullptr, num_processors);
}

void piece_sum(cudaStream_t stream, const PeerSumArgs& args, const uint32_t* arrived,
               int32_t num_processors) {
  start(stream, args, arrived, num_processors);
}

void peer_wait(cudaStream_t stream, const PeerWaitArgs& args) {
  launch(peer_wait_kernel, dim3(1), dim3(32), 0, stream, args);
}

}  // namespace mpinfer::kernels::cuda
