// Ranks on cores that others want too: what waits for another rank must not give away a time slice
// at every look.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "lib/backend/cpu_backend.h"
#include "lib/comm/mpi_communicator.h"
#include "tests/support/catch.h"

namespace mpinfer::comm {
namespace {

using Clock = std::chrono::steady_clock;

// This thread and those it starts stay on one core, another one for each rank. False: too few.
bool stay_on_own_core(const HostComm& world) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return false;
  std::vector<size_t> cores;
  for (size_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &allowed)) cores.push_back(core);
  }
  // mpirun may have bound each rank already.
  const size_t mine = cores[static_cast<size_t>(world.rank()) % cores.size()];
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(mine, &one);
  const bool done = sched_setaffinity(0, sizeof(one), &one) == 0;
  const auto number = static_cast<int64_t>(mine);
  const bool apart = world.all_reduce_max(number) != world.all_reduce_min(number);
  return world.all_reduce_min(done && apart ? 1 : 0) == 1;
}

class Others {  // that compute on the cores of the thread that starts them
 public:
  explicit Others(int count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this] {
        while (!stop_) {
        }
      });
    }
  }
  ~Others() {
    stop_ = true;
    for (auto& thread : threads_) thread.join();
  }
  Others(const Others&) = delete;
  Others& operator=(const Others&) = delete;

 private:
  std::atomic<bool> stop_ = false;
  std::vector<std::thread> threads_;
};

// Seconds of one turn, the longest of all ranks.
template <class Turn>
double seconds_of(const HostComm& world, int turns, Turn turn) {
  world.barrier();
  const auto start = Clock::now();
  for (int i = 0; i < turns; ++i) turn();
  const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start);
  return static_cast<double>(world.all_reduce_max(took.count())) * 1e-9 / turns;
}

}  // namespace

TEST_CASE("a sum over two ranks on busy cores takes less than a turn of the others") {
  const HostComm world = HostComm::world();
  if (!stay_on_own_core(world)) {
    WARN("not tested: a core for each rank is needed");
    return;
  }
  const auto backend = backend::make_cpu_backend({.threads = 1});
  Watch watch({});
  const auto communicator =
      make_mpi_communicator(world, *backend, watch, "sum", AxisUse::kCollectives);
  std::vector<float> values(512, 1.0F);
  const auto sum = [&] {
    communicator->all_reduce_sum(backend::Stream::kCompute, values.data(), DType::kF32,
                                 static_cast<int64_t>(values.size()));
  };
  const Others others(3);
  const double turn = seconds_of(world, 30, [] { std::this_thread::yield(); });
  const double one_sum = seconds_of(world, 300, sum);
  INFO("a turn takes " << turn << " s, a sum " << one_sum << " s");
  constexpr double kSlowMessages = 1e-3;  // where nobody has to wait for a turn
  CHECK(one_sum < std::max(turn / 4, kSlowMessages));
}

}  // namespace mpinfer::comm
