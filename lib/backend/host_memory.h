// Memory of this machine as the CPU backend sees it: /proc/meminfo and the cgroup's limit,
// whichever is less.
#pragma once

#include "lib/backend/backend.h"

namespace mpinfer::backend {

MemoryInfo host_memory_info();

// 256-byte aligned, from 4 MiB on huge-page aligned and advised. Throws Error(kOutOfResource)
// naming the bytes asked for and free, also when the bytes exceed what is free now.
void* allocate_host_memory(int64_t bytes);
void release_host_memory(void* data) noexcept;

// Scratch floats at a cache-line boundary; growing forgets what was there.
class ScratchFloats {
 public:
  ScratchFloats() = default;
  ScratchFloats(const ScratchFloats&) = delete;
  ScratchFloats& operator=(const ScratchFloats&) = delete;
  ~ScratchFloats() { release_host_memory(data_); }
  void grow(int64_t floats);
  float* data() const { return data_; }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace mpinfer::backend
