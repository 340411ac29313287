#include "lib/backend/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>

namespace mpinfer::backend {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kLarge = int64_t{4} << 20;
constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// The number behind a key in lines of "key number ..."; otherwise if the file or key is missing.
int64_t field_of(const char* path, const std::string& key, int64_t otherwise) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    int64_t value = 0;
    if (word == key && file >> value) return value;
    file.clear();
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return otherwise;
}

// A file of one number; "max" and a missing file give otherwise.
int64_t number_in(const char* path, int64_t otherwise) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : otherwise;
}

}  // namespace

MemoryInfo host_memory_info() {
  const int64_t total = field_of("/proc/meminfo", "MemTotal:", 0) * 1024;
  const int64_t available = field_of("/proc/meminfo", "MemAvailable:", 0) * 1024;
  const int64_t limit = number_in("/sys/fs/cgroup/memory.max", kUnlimited);
  if (limit == kUnlimited) return {.free_bytes = available, .total_bytes = total};
  const int64_t reclaimable = field_of("/sys/fs/cgroup/memory.stat", "inactive_file", 0);
  const int64_t used = number_in("/sys/fs/cgroup/memory.current", 0) - reclaimable;
  return {.free_bytes = std::clamp(limit - used, int64_t{0}, available),
          .total_bytes = std::min(limit, total)};
}

void* allocate_host_memory(int64_t bytes) {
  MPINFER_CHECK(bytes >= 0, "{} bytes", bytes);
  const int64_t alignment = bytes >= kLarge ? kHugePage : 256;
  if (bytes >= kLarge) {
    const int64_t free = host_memory_info().free_bytes;
    if (bytes > free) {
      throw Error(ExitCode::kOutOfResource,
                  fmt::format("{} bytes of host memory asked for, {} free", bytes, free));
    }
  }
  const int64_t rounded = (std::max(bytes, int64_t{1}) + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
  if (data == nullptr) {
    throw Error(ExitCode::kOutOfResource, fmt::format("{} bytes of host memory asked for, {} free",
                                                      bytes, host_memory_info().free_bytes));
  }
  if (bytes >= kLarge) madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
  return data;
}

void release_host_memory(void* data) noexcept {
  std::free(data);
}

void ScratchFloats::grow(int64_t floats) {
  if (floats <= size_) return;
  release_host_memory(data_);
  data_ = nullptr;
  size_ = 0;
  data_ = static_cast<float*>(allocate_host_memory(floats * int64_t{sizeof(float)}));
  size_ = floats;
}

}  // namespace mpinfer::backend
