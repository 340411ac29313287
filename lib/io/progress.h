// The progress line on rank 0's stderr: a bar that is rewritten on a terminal, a plain line every
// 10 s otherwise. A closed stderr is ignored.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/io/exchange.h"

namespace mpinfer::io {

enum class ProgressMode : uint8_t { kBar, kPlain, kNone };

// auto: a bar on a terminal, else plain. Throws Error(kUsage) for an unknown name.
ProgressMode progress_mode(std::string_view name);

struct ProgressView {
  int64_t num_rows = 0;
  double seconds = 0.0;            // since generation began
  double tokens_per_second = 0.0;  // output, now
  std::vector<ReplicaProgress> replicas = {};
};

// "1,204/10,000 rows (12.0 %), 3 failed · 5,120 tok/s out (mean …) · … · ETA 2m05s"
std::string format_progress(const ProgressView& view);
std::string format_duration(double seconds);  // 5s, 2m05s, 3h07m
std::string with_thousands(int64_t value);

class ProgressLine {
 public:
  ProgressLine(ProgressMode mode, int64_t num_rows);
  // Cheap when nothing is due.
  bool due() const;
  void update(const std::vector<ReplicaProgress>& replicas);
  void finish();  // clears the bar

 private:
  using Clock = std::chrono::steady_clock;
  void print(std::string_view text) const;

  ProgressMode mode_;
  int64_t num_rows_;
  Clock::time_point start_;
  Clock::time_point last_;
  int64_t last_tokens_ = 0;
  bool shown_ = false;
};

}  // namespace mpinfer::io
