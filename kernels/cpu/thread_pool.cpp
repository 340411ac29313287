#include "kernels/cpu/thread_pool.h"

namespace mpinfer::kernels::cpu {
namespace {

constexpr int kSpins = 2000;  // some tens of microseconds

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : shares_(static_cast<size_t>(threads)) {
  workers_.reserve(static_cast<size_t>(threads));
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] { work(i); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::drain(int thread) {
  const size_t threads = shares_.size();
  for (size_t i = 0; i < threads; ++i) {
    Share& share = shares_[(static_cast<size_t>(thread) + i) % threads];
    for (;;) {
      const int64_t index = share.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= share.end) break;
      call_(context_, index, thread);
    }
  }
}

void ThreadPool::fork_join(int64_t count, Call call, const void* context) {
  call_ = call;
  context_ = context;
  const int64_t threads = std::ssize(shares_);
  for (int64_t i = 0; i < threads; ++i) {
    Share& share = shares_[static_cast<size_t>(i)];
    share.next.store(count * i / threads, std::memory_order_relaxed);
    share.end = count * (i + 1) / threads;
  }
  generation_.fetch_add(1);
  generation_.notify_all();
  drain(0);
  generation_.fetch_add(1);
  for (int spins = 0; active_.load() != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        generation_.wait(seen);
      }
    }
    seen = generation_.load();
    if (stop_.load()) return;
    if (seen % 2 == 0) continue;
    active_.fetch_add(1);
    if (generation_.load() == seen) drain(thread);
    active_.fetch_sub(1);
  }
}

}  // namespace mpinfer::kernels::cpu
