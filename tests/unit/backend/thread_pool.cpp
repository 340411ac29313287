// The fork-join pool: every task once, from any number of threads, thousands of loops in a row and
// after sleep.
#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <vector>

#include "tests/support/catch.h"

namespace mpinfer::kernels::cpu {

TEST_CASE("every task runs once, whatever the number of threads and tasks") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      std::atomic<bool> thread_in_range{true};
      pool.run(count, [&](int64_t i, int thread) {
        runs[static_cast<size_t>(i)].fetch_add(1);
        if (thread < 0 || thread >= threads) thread_in_range = false;
      });
      CHECK(thread_in_range);
      for (const auto& run : runs) REQUIRE(run == 1);
    }
  }
}

TEST_CASE("loops follow one another without losing or repeating tasks") {
  ThreadPool pool(3);
  int64_t sum = 0;
  for (int64_t loop = 0; loop < 3000; ++loop) {
    std::atomic<int64_t> total{0};
    pool.run(4, [&](int64_t i, int) { total.fetch_add(loop * 4 + i); });
    sum += total;
    if (loop % 1000 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK(sum == 12000L * 11999L / 2);
}

TEST_CASE("what a task wrote is seen after run") {
  ThreadPool pool(4);
  std::vector<int> values(64);
  for (int loop = 1; loop <= 500; ++loop) {
    pool.run(64, [&](int64_t i, int) { values[static_cast<size_t>(i)] += 1; });
    for (const int value : values) REQUIRE(value == loop);
  }
}

}  // namespace mpinfer::kernels::cpu
