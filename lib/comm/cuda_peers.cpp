#include "lib/comm/cuda_peers.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "kernels/cuda_peers.h"
#include "lib/backend/cuda_backend_impl.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

namespace cuda = kernels::cuda;

constexpr int64_t kFlagBytes = (cuda::kPeerSumFlags + CudaPeers::kPieceFlags) * 4;

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
  Region region{.rank = comm_.rank(), .bytes = bytes, .bases = {}};
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

bool CudaPeers::Region::holds(const backend::Matrix& rows) const {
  const auto* at = static_cast<const char*>(rows.data);
  const char* base = bases[static_cast<size_t>(rank)];
  const int64_t size = rows.rows * rows.stride * mpinfer::size_of(rows.dtype);
  return at >= base && at - base <= bytes - size;
}

char* CudaPeers::Region::of(int peer, const void* data) const {
  return bases[static_cast<size_t>(peer)] +
         (static_cast<const char*>(data) - bases[static_cast<size_t>(rank)]);
}

uint32_t* CudaPeers::Region::sum_flags(int peer) const {
  return reinterpret_cast<uint32_t*>(bases[static_cast<size_t>(peer)] + flags_at(bytes));
}

uint32_t* CudaPeers::Region::piece_flags(int peer) const {
  return sum_flags(peer) + cuda::kPeerSumFlags;
}

CudaPeers::Region* CudaPeers::region_of(const backend::Matrix& rows) {
  for (Region& region : regions_) {
    if (region.holds(rows)) return &region;
  }
  return nullptr;
}

bool CudaPeers::sum_add_norm(Stream stream, const SumAddNorm& sum) {
  const backend::Matrix& partial = sum.partial;
  const backend::Matrix& residual = sum.residual;
  Region* region = region_of(partial);
  const cuda::View kept = backend::view(residual);
  if (region == nullptr || !cuda::peer_sum_takes(kept, partial.cols)) return false;
  MPINFER_CHECK(partial.stride == partial.cols && residual.rows == partial.rows &&
                    residual.cols == partial.cols && residual.dtype == partial.dtype,
                "a sum of [{}, {}] onto [{}, {}]", partial.rows, partial.cols, residual.rows,
                residual.cols);
  if (partial.rows == 0) return true;
  const bool norm = sum.out.data != nullptr;
  MPINFER_CHECK(!norm || (sum.out.stride == sum.out.cols && sum.out.cols == partial.cols &&
                          region->holds(sum.out)),
                "the norm of a sum goes beside its summands");
  const int rank = comm_.rank();
  cuda::PeerSumArgs args;
  args.rank = rank;
  args.size = comm_.size();
  for (int peer = 0; peer < comm_.size(); ++peer) {
    args.partial[peer] = region->of(peer, partial.data);
    if (norm && (peer == rank || !keeps_all_rows()))
      args.out[peer] = region->of(peer, sum.out.data);
    args.flags[peer] = region->sum_flags(peer);
  }
  args.abandoned = abandoned();
  args.round = ++region->rounds;
  args.residual = kept;
  args.rows = partial.rows;
  args.first_row = keeps_all_rows() ? 0 : first_row(partial.rows, rank);
  args.end_row = keeps_all_rows() ? partial.rows : first_row(partial.rows, rank + 1);
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
