#include "lib/comm/nccl_communicator.h"

#include <nccl.h>

#include <exception>
#include <optional>
#include <thread>

#include "lib/backend/cuda_backend.h"
#include "lib/comm/cuda_peers.h"
#include "lib/comm/cuda_piece_sums.h"
#include "lib/comm/single_communicator.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

// A receive that waits for its sender keeps a multiprocessor a block, which products then lack.
constexpr int kTransferBlocks = 2;

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kF16:
      return ncclFloat16;
    case DType::kI32:
      return ncclInt32;
    case DType::kI64:
      return ncclInt64;
    case DType::kU8:
      return ncclUint8;
  }
  return ncclUint8;
}

class EventPending final : public Pending {
 public:
  explicit EventPending(std::unique_ptr<backend::Event> event) : event_(std::move(event)) {}
  bool test() override { return event_->query(); }

 private:
  std::unique_ptr<backend::Event> event_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const HostComm& comm, backend::Backend& backend, Watch& watch, const char* name,
                   AxisUse use)
      : backend_(backend),
        watch_(watch),
        name_(name),
        rank_(comm.rank()),
        size_(comm.size()),
        peers_(comm, backend) {
    ncclUniqueId id{};
    if (rank_ == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    comm.broadcast(&id, sizeof(id), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (use == AxisUse::kTransfers) config.maxCTAs = kTransferBlocks;
    const auto armed = watch_.arm("start of NCCL", -1);
    check(ncclCommInitRankConfig(&nccl_, size_, id, rank_, &config), "ncclCommInitRankConfig");
  }
  ~NcclCommunicator() override {
    if (std::uncaught_exceptions() > 0) abandon();  // a destroy would wait for the peer
    if (nccl_ == nullptr) return;
    ncclCommFinalize(nccl_);
    ncclResult_t state = ncclInProgress;
    while (ncclCommGetAsyncError(nccl_, &state) == ncclSuccess && state == ncclInProgress)
      std::this_thread::yield();
    ncclCommDestroy(nccl_);
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void abandon() override {
    peers_.abandon();
    if (nccl_ != nullptr) ncclCommAbort(nccl_);
    nccl_ = nullptr;
  }
  backend::Buffer allocate(int64_t bytes) override {
    if (!piece_sums_.has_value()) piece_sums_.emplace(peers_, backend_, rank_, size_);
    return peers_.allocate(bytes);
  }

  void all_reduce_sum(Stream stream, void* data, DType dtype, int64_t count) override {
    if (count == 0) return;
    check(ncclAllReduce(data, data, static_cast<size_t>(count), nccl_type(dtype), ncclSum, nccl_,
                        of(stream)),
          "ncclAllReduce");
  }
  void all_gather(Stream stream, void* out, const void* in, int64_t bytes) override {
    if (bytes == 0) return;
    check(ncclAllGather(in, out, static_cast<size_t>(bytes), ncclUint8, nccl_, of(stream)),
          "ncclAllGather");
  }
  void all_gather_v(Stream stream, void* out, const void* in,
                    std::span<const int64_t> bytes) override {
    start_group();
    char* at = static_cast<char*>(out);
    for (int r = 0; r < size_; ++r) {
      const int64_t n = bytes[static_cast<size_t>(r)];
      if (n > 0) {
        check(ncclBroadcast(r == rank_ ? in : at, at, static_cast<size_t>(n), ncclUint8, r, nccl_,
                            of(stream)),
              "ncclBroadcast");
      }
      at += n;
    }
    end_group();
  }
  void reduce_scatter_sum_v(Stream stream, void* out, const void* in, DType dtype,
                            std::span<const int64_t> counts) override {
    start_group();
    const char* at = static_cast<const char*>(in);
    for (int r = 0; r < size_; ++r) {
      const int64_t n = counts[static_cast<size_t>(r)];
      if (n > 0) {
        check(ncclReduce(at, r == rank_ ? out : nullptr, static_cast<size_t>(n), nccl_type(dtype),
                         ncclSum, r, nccl_, of(stream)),
              "ncclReduce");
      }
      at += n * size_of(dtype);
    }
    end_group();
  }
  void all_to_all(Stream stream, void* out, const void* in, int64_t bytes) override {
    if (bytes == 0) return;
    start_group();
    for (int r = 0; r < size_; ++r) {
      check(ncclSend(static_cast<const char*>(in) + r * bytes, static_cast<size_t>(bytes),
                     ncclUint8, r, nccl_, of(stream)),
            "ncclSend");
      check(ncclRecv(static_cast<char*>(out) + r * bytes, static_cast<size_t>(bytes), ncclUint8, r,
                     nccl_, of(stream)),
            "ncclRecv");
    }
    end_group();
  }
  void broadcast(Stream stream, void* data, int64_t bytes, int root) override {
    if (bytes == 0) return;
    check(ncclBroadcast(data, data, static_cast<size_t>(bytes), ncclUint8, root, nccl_, of(stream)),
          "ncclBroadcast");
  }
  bool sum_add_norm(Stream stream, const SumAddNorm& sum) override {
    if (!peers_.sum_add_norm(stream, sum)) return false;
    if (sum.out.data == nullptr && !peers_.keeps_all_rows()) gather_rows(stream, sum.residual);
    return true;
  }
  bool may_sum_pieces() const override { return true; }
  PieceSums* begin_pieces(Stream stream, const SumAddNorm& step) override {
    return piece_sums_.has_value() && piece_sums_->begin(stream, step) ? &*piece_sums_ : nullptr;
  }
  std::unique_ptr<Pending> start_send_recv(Stream stream, const Transfer& send,
                                           const Transfer& receive) override {
    start_group();
    if (send.bytes > 0) {
      check(ncclSend(send.data, static_cast<size_t>(send.bytes), ncclUint8, send.peer, nccl_,
                     of(stream)),
            "ncclSend");
    }
    if (receive.bytes > 0) {
      check(ncclRecv(receive.data, static_cast<size_t>(receive.bytes), ncclUint8, receive.peer,
                     nccl_, of(stream)),
            "ncclRecv");
    }
    end_group();
    return std::make_unique<EventPending>(backend_.record(stream));
  }

 private:
  // Each rank's rows on every rank.
  void gather_rows(Stream stream, const backend::Matrix& rows) {
    MPINFER_CHECK(rows.stride == rows.cols, "rows of {} with stride {}", rows.cols, rows.stride);
    const int64_t row_bytes = rows.cols * mpinfer::size_of(rows.dtype);
    std::vector<int64_t> bytes;
    for (int r = 0; r < size_; ++r) {
      bytes.push_back((peers_.first_row(rows.rows, r + 1) - peers_.first_row(rows.rows, r)) *
                      row_bytes);
    }
    all_gather_v(stream, rows.data,
                 static_cast<char*>(rows.data) + peers_.first_row(rows.rows, rank_) * row_bytes,
                 bytes);
  }
  cudaStream_t of(Stream stream) const {
    return static_cast<cudaStream_t>(backend::cuda_stream(backend_, stream));
  }
  void start_group() {
    check(ncclGroupStart(), "ncclGroupStart");
    grouped_ = true;
  }
  void end_group() {
    grouped_ = false;
    check(ncclGroupEnd(), "ncclGroupEnd");
  }
  // A non-blocking call that is under way has not been enqueued yet: waits until it has, under the
  // deadline.
  void check(ncclResult_t status, const char* call) {
    if (status == ncclInProgress && !grouped_ && nccl_ != nullptr) {
      const auto armed = watch_.arm(call, -1);
      do {
        watch_.check();
        const ncclResult_t asked = ncclCommGetAsyncError(nccl_, &status);
        if (asked != ncclSuccess) status = asked;
      } while (status == ncclInProgress);
    }
    if (status == ncclSuccess || status == ncclInProgress) return;
    throw Error(ExitCode::kPeerFailure,
                fmt::format("{} on axis {}, rank {} of {}: {}{}", call, name_, rank_, size_,
                            ncclGetErrorString(status),
                            nccl_ == nullptr ? "" : fmt::format(" ({})", ncclGetLastError(nccl_))));
  }

  backend::Backend& backend_;
  Watch& watch_;
  const char* name_;
  int rank_;
  int size_;
  CudaPeers peers_;
  std::optional<CudaPieceSums> piece_sums_;  // of an axis that asked for shared memory
  ncclComm_t nccl_ = nullptr;
  bool grouped_ = false;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const HostComm& comm,
                                                     backend::Backend& backend, Watch& watch,
                                                     const char* name, AxisUse use) {
  if (comm.size() == 1) return std::make_unique<SingleCommunicator>(backend);
  return std::make_unique<NcclCommunicator>(comm, backend, watch, name, use);
}

}  // namespace mpinfer::comm
