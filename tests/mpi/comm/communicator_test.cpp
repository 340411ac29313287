// The communicators against one suite: size 1, threads, MPI; and equal bits between them.
#include <thread>

#include "lib/backend/cpu_backend.h"
#include "lib/comm/mpi_communicator.h"
#include "lib/comm/single_communicator.h"
#include "lib/comm/thread_communicator.h"
#include "tests/mpi/comm/conformance.h"
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

}  // namespace

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
  Watch watch(
      {.first_seconds = 100, .step_seconds = 100, .rank = world.rank(), .host = host_name()});
  const auto communicator = make_mpi_communicator(world, *backend, watch, "test");
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
  auto communicator = make_mpi_communicator(world, *backend, watch, "tp");
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
