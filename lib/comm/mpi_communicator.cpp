#include "lib/comm/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "lib/comm/host_sum.h"
#include "lib/comm/mpi_handle.h"
#include "lib/comm/pause.h"
#include "lib/comm/single_communicator.h"
#include "lib/core/error.h"

namespace mpinfer::comm {
namespace {

class HostPending : public Pending {
 public:
  void add(std::unique_ptr<HostRequest> request) { requests_.push_back(std::move(request)); }
  bool test() override {
    std::erase_if(requests_, [](const auto& request) { return request->test(); });
    return requests_.empty();
  }

 private:
  std::vector<std::unique_ptr<HostRequest>> requests_;
};

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(const HostComm& comm, backend::Backend& backend, Watch& watch, const char* name)
      : comm_(comm.duplicate()), backend_(backend), watch_(watch), name_(name) {}

  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  backend::Buffer allocate(int64_t bytes) override { return backend_.allocate(bytes); }

  void all_reduce_sum(Stream, void* data, DType dtype, int64_t count) override {
    const int64_t width = size_of(dtype);
    std::vector<int64_t> counts(static_cast<size_t>(size()));
    for (int r = 0; r < size(); ++r)
      counts[static_cast<size_t>(r)] = share_of(count, size(), r).length;
    const Share mine = share_of(count, size(), rank());
    char* bytes = static_cast<char*>(data);
    exchange_and_sum(bytes + mine.begin * width, bytes, dtype, counts);
    for (auto& c : counts) c *= width;
    all_gather_v(Stream::kCompute, data, bytes + mine.begin * width, counts);
  }

  void all_gather(Stream stream, void* out, const void* in, int64_t bytes) override {
    all_gather_v(stream, out, in, std::vector<int64_t>(static_cast<size_t>(size()), bytes));
  }

  void all_gather_v(Stream, void* out, const void* in, std::span<const int64_t> bytes) override {
    const auto [counts, displacements] = layout_of(bytes);
    char* mine = static_cast<char*>(out) + displacements[static_cast<size_t>(rank())];
    const auto my_bytes = static_cast<size_t>(bytes[static_cast<size_t>(rank())]);
    if (mine != in && my_bytes > 0) std::memcpy(mine, in, my_bytes);
    MPI_Request request = MPI_REQUEST_NULL;
    MPINFER_MPI(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, out, counts.data(), displacements.data(),
                                MPI_BYTE, comm_.handle().comm, &request));
    finish(request);
  }

  void reduce_scatter_sum_v(Stream, void* out, const void* in, DType dtype,
                            std::span<const int64_t> counts) override {
    exchange_and_sum(out, in, dtype, counts);
  }

  void all_to_all(Stream, void* out, const void* in, int64_t bytes) override {
    MPI_Request request = MPI_REQUEST_NULL;
    const int count = checked_cast<int>(bytes);
    MPINFER_MPI(
        MPI_Ialltoall(in, count, MPI_BYTE, out, count, MPI_BYTE, comm_.handle().comm, &request));
    finish(request);
  }

  void broadcast(Stream, void* data, int64_t bytes, int root) override {
    const auto request = comm_.start_broadcast(data, bytes, root);
    poll_until([&] { return request->test(); });
  }

  std::unique_ptr<Pending> start_send_recv(Stream, const Transfer& send,
                                           const Transfer& receive) override {
    constexpr int kShiftTag = 1;
    auto pending = std::make_unique<HostPending>();
    if (receive.bytes > 0)
      pending->add(comm_.start_receive(receive.data, receive.bytes, receive.peer, kShiftTag));
    if (send.bytes > 0) pending->add(comm_.start_send(send.data, send.bytes, send.peer, kShiftTag));
    return pending;
  }

 private:
  struct CountsAndDisplacements {
    std::vector<int> counts;
    std::vector<int> displacements;
  };
  CountsAndDisplacements layout_of(std::span<const int64_t> bytes) const {
    CountsAndDisplacements layout;
    int64_t at = 0;
    for (const int64_t piece : bytes) {
      layout.counts.push_back(checked_cast<int>(piece));
      layout.displacements.push_back(checked_cast<int>(at));
      at += piece;
    }
    checked_cast<int>(at);
    return layout;
  }

  // out = sum over ranks of their piece number rank() of in, whose pieces have counts[] elements.
  void exchange_and_sum(void* out, const void* in, DType dtype, std::span<const int64_t> counts) {
    const int64_t width = size_of(dtype);
    const int64_t mine = counts[static_cast<size_t>(rank())];
    std::vector<int64_t> bytes(counts.begin(), counts.end());
    for (auto& b : bytes) b *= width;
    const auto [send_counts, send_at] = layout_of(bytes);
    const std::vector<int64_t> incoming(static_cast<size_t>(size()), mine * width);
    const auto [receive_counts, receive_at] = layout_of(incoming);
    scratch_.resize(static_cast<size_t>(mine * width * size()));
    MPI_Request request = MPI_REQUEST_NULL;
    MPINFER_MPI(MPI_Ialltoallv(in, send_counts.data(), send_at.data(), MPI_BYTE, scratch_.data(),
                               receive_counts.data(), receive_at.data(), MPI_BYTE,
                               comm_.handle().comm, &request));
    finish(request);
    if (mine == 0) return;
    sum_in_rank_order(out, scratch_.data(), size(), mine * width, dtype, mine);
  }

  void finish(MPI_Request started) {
    MpiRequest request({started});
    poll_until([&] { return request.test(); });
  }

  template <class Ready>
  void poll_until(Ready ready) {
    constexpr int kUnwatchedTurns = 10;
    for (int turn = 0; turn < kUnwatchedTurns; ++turn) {
      if (ready()) return;
    }
    const auto armed = watch_.arm(name_, -1);
    for (const Pause pause; !ready(); pause()) watch_.check();
  }

  HostComm comm_;
  backend::Backend& backend_;
  Watch& watch_;
  const char* name_;
  std::vector<char> scratch_;  // everybody's piece of this rank's share
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(const HostComm& comm, backend::Backend& backend,
                                                    Watch& watch, const char* name, AxisUse) {
  if (comm.size() == 1) return std::make_unique<SingleCommunicator>(backend);
  return std::make_unique<MpiCommunicator>(comm, backend, watch, name);
}

}  // namespace mpinfer::comm
