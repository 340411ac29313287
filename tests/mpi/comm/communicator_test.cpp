// The communicators against one suite: size 1, threads, MPI, NCCL; and equal bits between them.
#include <numeric>
#include <thread>

#include "lib/backend/cpu_backend.h"
#include "lib/backend/cuda_backend.h"
#include "lib/comm/mpi_communicator.h"
#include "lib/comm/nccl_communicator.h"
#include "lib/comm/single_communicator.h"
#include "lib/comm/thread_communicator.h"
#include "tests/mpi/comm/conformance.h"
#include "tests/mpi/comm/gpu_world.h"
#include "tests/support/catch.h"

namespace mpinfer::comm {
namespace {

constexpr int64_t kReals = 12345;

std::unique_ptr<backend::Backend> one_thread_backend() {
  return backend::make_cpu_backend({.threads = 1});
}

// What the thread communicator makes of the sum over num_ranks.
std::vector<float> sum_in_threads(int num_ranks, int* failures) {
  const auto backend = one_thread_backend();
  auto communicators = make_thread_communicators(
      std::vector<backend::Backend*>(static_cast<size_t>(num_ranks), backend.get()));
  std::vector<std::vector<float>> sums(static_cast<size_t>(num_ranks));
  std::vector<int> failed(static_cast<size_t>(num_ranks));
  std::vector<std::thread> threads;
  for (size_t r = 0; r < sums.size(); ++r) {
    threads.emplace_back([&, r] {
      failed[r] = run_conformance(*communicators[r]);
      sums[r] = sum_of_reals(*communicators[r], kReals);
    });
  }
  for (auto& thread : threads) thread.join();
  for (size_t r = 0; r < sums.size(); ++r) *failures += failed[r] + (sums[r] == sums[0] ? 0 : 1);
  return sums[0];
}

// The suite's vectors are on the host: every call goes through device memory and waits.
class OnDevice final : public Communicator {
 public:
  OnDevice(Communicator& inner, backend::Backend& backend) : inner_(inner), backend_(backend) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  backend::Buffer allocate(int64_t bytes) override { return inner_.allocate(bytes); }

  void all_reduce_sum(Stream stream, void* data, DType dtype, int64_t count) override {
    const backend::Buffer copy = up(data, count * mpinfer::size_of(dtype));
    inner_.all_reduce_sum(stream, copy.data(), dtype, count);
    down(data, copy);
  }
  void all_gather(Stream stream, void* out, const void* in, int64_t bytes) override {
    const backend::Buffer from = up(in, bytes);
    const backend::Buffer to = up(out, bytes * size());
    inner_.all_gather(stream, to.data(), from.data(), bytes);
    down(out, to);
  }
  void all_gather_v(Stream stream, void* out, const void* in,
                    std::span<const int64_t> bytes) override {
    const backend::Buffer to = up(out, std::accumulate(bytes.begin(), bytes.end(), int64_t{0}));
    const auto at = static_cast<const char*>(in) - static_cast<const char*>(out);
    inner_.all_gather_v(stream, to.data(), static_cast<char*>(to.data()) + at, bytes);
    down(out, to);
  }
  void reduce_scatter_sum_v(Stream stream, void* out, const void* in, DType dtype,
                            std::span<const int64_t> counts) override {
    const int64_t width = mpinfer::size_of(dtype);
    const backend::Buffer from =
        up(in, width * std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    const backend::Buffer to = up(out, width * counts[static_cast<size_t>(rank())]);
    inner_.reduce_scatter_sum_v(stream, to.data(), from.data(), dtype, counts);
    down(out, to);
  }
  void all_to_all(Stream stream, void* out, const void* in, int64_t bytes) override {
    const backend::Buffer from = up(in, bytes * size());
    const backend::Buffer to = up(out, bytes * size());
    inner_.all_to_all(stream, to.data(), from.data(), bytes);
    down(out, to);
  }
  void broadcast(Stream stream, void* data, int64_t bytes, int root) override {
    const backend::Buffer copy = up(data, bytes);
    inner_.broadcast(stream, copy.data(), bytes, root);
    down(data, copy);
  }
  std::unique_ptr<Pending> start_send_recv(Stream stream, const Transfer& send,
                                           const Transfer& receive) override {
    const backend::Buffer from = up(send.data, send.bytes);
    const backend::Buffer to = up(receive.data, receive.bytes);
    auto pending = inner_.start_send_recv(stream, {from.data(), send.bytes, send.peer},
                                          {to.data(), receive.bytes, receive.peer});
    while (!pending->test()) std::this_thread::yield();
    down(receive.data, to);
    return pending;
  }

 private:
  backend::Buffer up(const void* host, int64_t bytes) {
    backend::Buffer copy = backend_.allocate(bytes);
    backend_.upload(Stream::kCompute, copy.data(), host, bytes);
    backend_.synchronize();
    return copy;
  }
  void down(void* host, const backend::Buffer& copy) {
    backend_.download(Stream::kCompute, host, copy.data(), copy.bytes());
    backend_.synchronize();
  }

  Communicator& inner_;
  backend::Backend& backend_;
};

}  // namespace

TEST_CASE("the NCCL communicator, with the same bits on every rank", "[comm]") {
  const HostComm world = HostComm::world();
  if (!has_gpus(world)) return;
  const auto backend = backend::make_cuda_backend({.device = world.rank()});
  Watch watch(patient(world));
  const auto communicator =
      make_nccl_communicator(world, *backend, watch, "test", AxisUse::kCollectives);
  OnDevice on_device(*communicator, *backend);
  CHECK(run_conformance(on_device) == 0);
  const std::vector<float> sum = sum_of_reals(on_device, kReals);
  const std::string bytes(reinterpret_cast<const char*>(sum.data()), sum.size() * sizeof(float));
  for (const std::string& other : world.all_gather(bytes)) CHECK(other == bytes);
}

TEST_CASE("a communicator of one", "[comm]") {
  const auto backend = one_thread_backend();
  SingleCommunicator communicator(*backend);
  CHECK(run_conformance(communicator) == 0);
}

TEST_CASE("communicators of threads", "[comm]") {
  if (HostComm::world().rank() != 0) return;
  for (const int num_ranks : {1, 2, 3, 4, 8}) {
    CAPTURE(num_ranks);
    int failures = 0;
    sum_in_threads(num_ranks, &failures);
    CHECK(failures == 0);
  }
}

TEST_CASE("the MPI communicator, with the same bits as threads", "[comm]") {
  const auto backend = one_thread_backend();
  const HostComm world = HostComm::world();
  Watch watch(patient(world));
  const auto communicator =
      make_mpi_communicator(world, *backend, watch, "test", AxisUse::kCollectives);
  CHECK(communicator->size() == world.size());
  CHECK(run_conformance(*communicator) == 0);
  const std::vector<float> sum = sum_of_reals(*communicator, kReals);
  int failures = 0;
  CHECK(sum == sum_in_threads(world.size(), &failures));
  const std::string bytes(reinterpret_cast<const char*>(sum.data()), sum.size() * sizeof(float));
  for (const std::string& other : world.all_gather(bytes)) CHECK(other == bytes);
}

TEST_CASE("a peer that never comes is named at the deadline", "[comm]") {
  const HostComm world = HostComm::world();
  if (world.size() == 1) return;
  const auto backend = one_thread_backend();
  Watch watch({.first_seconds = 0.3,
               .step_seconds = 0.3,
               .grace_seconds = 60,
               .rank = world.rank(),
               .host = "here"});
  auto communicator = make_mpi_communicator(world, *backend, watch, "tp", AxisUse::kCollectives);
  static int32_t data[64] = {};
  if (world.rank() == 0) {
    try {
      communicator->broadcast(Stream::kCompute, data, sizeof(data), 1);
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kPeerFailure);
      const std::string what = error.what();
      CHECK(what.find("rank 0 on here") != std::string::npos);
      CHECK(what.find("tp") != std::string::npos);
    }
  }
  world.barrier();
  // The late ones still take part, so that the world can end in order.
  if (world.rank() != 0) communicator->broadcast(Stream::kCompute, data, sizeof(data), 1);
  // Rank 0's receive is still posted: its communicator may not be freed (a run would end here).
  [[maybe_unused]] const auto* kept = communicator.release();
}

}  // namespace mpinfer::comm
