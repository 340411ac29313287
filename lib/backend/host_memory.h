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

}  // namespace mpinfer::backend
