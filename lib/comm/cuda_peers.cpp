#include "lib/comm/cuda_peers.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "kernels/cuda.h"
#include "lib/backend/cuda_backend_impl.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

namespace cuda = kernels::cuda;

constexpr int64_t kFlagBytes = cuda::kPeerSumFlags * 4;

int64_t flags_at(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

CudaPeers::CudaPeers(const HostComm& comm, backend::Backend& backend)
    : comm_(comm), backend_(backend), abandoned_(backend.allocate_host(4)) {
  std::memset(abandoned_.data(), 0, 4);
  int device = 0;
  int processors = 0;
  const bool known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  num_processors_ = static_cast<int32_t>(comm.all_reduce_min(processors));
  const bool together = comm.split_host().size() == comm.size() && comm.size() <= cuda::kMostPeers;
  possible_ = comm.all_reduce_min(known && together ? 1 : 0) == 1;
}

CudaPeers::~CudaPeers() {
  for (const Region& region : regions_) {
    for (int peer = 0; peer < static_cast<int>(region.bases.size()); ++peer) {
      if (peer != comm_.rank()) cudaIpcCloseMemHandle(region.bases[static_cast<size_t>(peer)]);
    }
  }
}

backend::Buffer CudaPeers::allocate(int64_t bytes) {
  if (!possible_ || bytes == 0) return backend_.allocate(bytes);
  backend::Buffer buffer = backend_.allocate(flags_at(bytes) + kFlagBytes);
  auto* base = static_cast<char*>(buffer.data());
  backend_.fill_bytes(Stream::kCompute, base + flags_at(bytes), 0, kFlagBytes);
  backend_.synchronize();
  cudaIpcMemHandle_t mine{};
  bool seen = cudaIpcGetMemHandle(&mine, base) == cudaSuccess;
  const std::vector<std::string> handles =
      comm_.all_gather(std::string(reinterpret_cast<const char*>(&mine), sizeof(mine)));
  seen = comm_.all_reduce_min(seen ? 1 : 0) == 1;
  Region region{.bytes = bytes, .bases = {}};
  for (int peer = 0; seen && peer < comm_.size(); ++peer) {
    void* data = base;
    if (peer != comm_.rank()) {
      cudaIpcMemHandle_t handle{};
      std::memcpy(&handle, handles[static_cast<size_t>(peer)].data(), sizeof(handle));
      seen = cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess;
    }
    if (seen) region.bases.push_back(static_cast<char*>(data));
  }
  static_cast<void>(cudaGetLastError());  // a handle that cannot be opened is an answer, no error
  if (comm_.all_reduce_min(seen ? 1 : 0) == 0) {
    possible_ = false;
    for (size_t peer = 0; peer < region.bases.size(); ++peer) {
      if (static_cast<int>(peer) != comm_.rank()) cudaIpcCloseMemHandle(region.bases[peer]);
    }
    return buffer;
  }
  regions_.push_back(std::move(region));
  return buffer;
}

CudaPeers::Region* CudaPeers::region_of(const void* data, int64_t bytes) {
  const auto* at = static_cast<const char*>(data);
  for (Region& region : regions_) {
    const char* base = region.bases[static_cast<size_t>(comm_.rank())];
    if (at >= base && at - base <= region.bytes - bytes) return &region;
  }
  return nullptr;
}

bool CudaPeers::sum_add_norm(Stream stream, const SumAddNorm& sum) {
  const backend::Matrix& partial = sum.partial;
  const backend::Matrix& residual = sum.residual;
  const int64_t bytes = partial.rows * partial.cols * mpinfer::size_of(partial.dtype);
  Region* region = region_of(partial.data, bytes);
  const cuda::View kept = backend::view(residual);
  if (region == nullptr || !cuda::peer_sum_takes(kept, partial.cols)) return false;
  MPINFER_CHECK(partial.stride == partial.cols && residual.rows == partial.rows &&
                    residual.cols == partial.cols && residual.dtype == partial.dtype,
                "a sum of [{}, {}] onto [{}, {}]", partial.rows, partial.cols, residual.rows,
                residual.cols);
  if (partial.rows == 0) return true;
  const bool norm = sum.out.data != nullptr;
  MPINFER_CHECK(!norm || (sum.out.stride == sum.out.cols && sum.out.cols == partial.cols &&
                          region_of(sum.out.data, bytes) == region),
                "the norm of a sum goes beside its summands");
  const int rank = comm_.rank();
  const char* base = region->bases[static_cast<size_t>(rank)];
  cuda::PeerSumArgs args;
  args.rank = rank;
  args.size = comm_.size();
  for (int peer = 0; peer < comm_.size(); ++peer) {
    char* of_peer = region->bases[static_cast<size_t>(peer)];
    args.partial[peer] = of_peer + (static_cast<const char*>(partial.data) - base);
    if (norm) args.out[peer] = of_peer + (static_cast<const char*>(sum.out.data) - base);
    args.flags[peer] = reinterpret_cast<uint32_t*>(of_peer + flags_at(region->bytes));
  }
  args.abandoned = static_cast<const uint32_t*>(abandoned_.data());
  args.round = ++region->rounds;
  args.residual = kept;
  args.rows = partial.rows;
  args.first_row = first_row(partial.rows, rank);
  args.end_row = first_row(partial.rows, rank + 1);
  args.cols = partial.cols;
  args.scale = sum.scale;
  args.weight = norm ? static_cast<const float*>(sum.norm_weight) : nullptr;
  args.eps = sum.eps;
  cuda::peer_sum(static_cast<cudaStream_t>(backend::cuda_stream(backend_, stream)), args,
                 num_processors_);
  backend::check_launch();
  return true;
}

void CudaPeers::abandon() {
  *static_cast<volatile uint32_t*>(abandoned_.data()) = 1;
}

}  // namespace mpinfer::comm
