// A fork-join pool for loops of a few microseconds and more: workers spin briefly for the next
// loop, then sleep. The caller works too. Each thread starts with its own
// consecutive share of the tasks and then takes from the others'. Which thread runs which task is
// not fixed, so a task's result must not depend on it. Tasks must not throw and must not call
// run().
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace mpinfer::kernels::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, thread) for every index in [0, count), thread in [0, size()); returns when
  // all are done.
  template <class Task>
  void run(int64_t count, const Task& task) {
    if (count <= 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; ++i) task(i, 0);
      return;
    }
    fork_join(
        count,
        [](const void* context, int64_t index, int thread) {
          (*static_cast<const Task*>(context))(index, thread);
        },
        &task);
  }

 private:
  using Call = void (*)(const void* context, int64_t index, int thread);

  void fork_join(int64_t count, Call call, const void* context);
  void work(int thread);
  void drain(int thread);

  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares_;  // one a thread
  // Odd while a loop is open. A worker counts itself active before it looks at an open loop; run()
  // closes the loop once no task is left and then waits for active workers only, never for one that
  // has not woken.
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> active_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace mpinfer::kernels::cpu
