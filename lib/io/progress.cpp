#include "lib/io/progress.h"

#include <unistd.h>

#include <algorithm>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::io {
namespace {

constexpr auto kBarInterval = std::chrono::milliseconds(500);
constexpr auto kPlainInterval = std::chrono::seconds(10);

struct Totals {
  ReplicaProgress sum;
  double slowest = 1.0;  // share of its rows that the slowest replica has done
  double fastest = 0.0;
};

Totals totals_of(const std::vector<ReplicaProgress>& replicas) {
  Totals totals;
  for (const ReplicaProgress& replica : replicas) {
    totals.sum.num_answered += replica.num_answered;
    totals.sum.num_failed += replica.num_failed;
    totals.sum.num_waiting += replica.num_waiting;
    totals.sum.num_running += replica.num_running;
    totals.sum.kv_blocks_used += replica.kv_blocks_used;
    totals.sum.kv_blocks_total += replica.kv_blocks_total;
    totals.sum.prompt_tokens += replica.prompt_tokens;
    totals.sum.completion_tokens += replica.completion_tokens;
    if (replica.num_rows == 0) continue;
    const double done = static_cast<double>(replica.num_answered + replica.num_failed) /
                        static_cast<double>(replica.num_rows);
    totals.slowest = std::min(totals.slowest, done);
    totals.fastest = std::max(totals.fastest, done);
  }
  return totals;
}

}  // namespace

ProgressMode progress_mode(std::string_view name) {
  if (name == "bar") return ProgressMode::kBar;
  if (name == "plain") return ProgressMode::kPlain;
  if (name == "none") return ProgressMode::kNone;
  if (name == "auto") {
    return ::isatty(STDERR_FILENO) == 1 ? ProgressMode::kBar : ProgressMode::kPlain;
  }
  throw Error(ExitCode::kUsage,
              fmt::format("--progress {}: use auto, bar, plain or none", printable(name)));
}

std::string with_thousands(int64_t value) {
  std::string digits = std::to_string(value);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) {
    digits.insert(static_cast<size_t>(at), 1, ',');
  }
  return digits;
}

std::string format_duration(double seconds) {
  const auto total = static_cast<int64_t>(seconds + 0.5);
  if (total < 60) return fmt::format("{}s", total);
  if (total < 3600) return fmt::format("{}m{:02}s", total / 60, total % 60);
  return fmt::format("{}h{:02}m", total / 3600, total / 60 % 60);
}

std::string format_progress(const ProgressView& view) {
  const Totals totals = totals_of(view.replicas);
  const ReplicaProgress& sum = totals.sum;
  const int64_t done = sum.num_answered + sum.num_failed;
  const double seconds = std::max(view.seconds, 1e-3);
  std::string line = fmt::format(
      "{}/{} rows ({:.1f} %), {} failed, out {:.0f} tok/s (mean {:.0f}), in {:.0f} tok/s, "
      "running {}, waiting {}",
      with_thousands(done), with_thousands(view.num_rows),
      view.num_rows == 0 ? 100.0
                         : 100.0 * static_cast<double>(done) / static_cast<double>(view.num_rows),
      with_thousands(sum.num_failed), view.tokens_per_second,
      static_cast<double>(sum.completion_tokens) / seconds,
      static_cast<double>(sum.prompt_tokens) / seconds, sum.num_running, sum.num_waiting);
  if (sum.kv_blocks_total > 0) {
    line += fmt::format(", KV {:.0f} %", 100.0 * static_cast<double>(sum.kv_blocks_used) /
                                             static_cast<double>(sum.kv_blocks_total));
  }
  if (view.replicas.size() > 1) {
    line +=
        fmt::format(", replicas {:.0f}–{:.0f} %", 100.0 * totals.slowest, 100.0 * totals.fastest);
  }
  if (done > 0 && done < view.num_rows) {
    const double left = static_cast<double>(view.num_rows - done) / static_cast<double>(done);
    line += fmt::format(", ETA {}", format_duration(seconds * left));
  }
  return line;
}

ProgressLine::ProgressLine(ProgressMode mode, int64_t num_rows)
    : mode_(mode), num_rows_(num_rows), start_(Clock::now()), last_(start_) {}

bool ProgressLine::due() const {
  if (mode_ == ProgressMode::kNone) return false;
  const Clock::duration since = Clock::now() - last_;
  return mode_ == ProgressMode::kBar ? since >= kBarInterval : since >= kPlainInterval;
}

void ProgressLine::update(const std::vector<ReplicaProgress>& replicas) {
  const Clock::time_point now = Clock::now();
  ProgressView view{.num_rows = num_rows_,
                    .seconds = std::chrono::duration<double>(now - start_).count(),
                    .tokens_per_second = 0.0,
                    .replicas = replicas};
  const int64_t tokens = totals_of(replicas).sum.completion_tokens;
  const double since = std::chrono::duration<double>(now - last_).count();
  if (since > 0) view.tokens_per_second = static_cast<double>(tokens - last_tokens_) / since;
  last_ = now;
  last_tokens_ = tokens;
  shown_ = true;
  const std::string line = format_progress(view);
  print(mode_ == ProgressMode::kBar ? "\r\x1b[K" + line : line + "\n");
}

void ProgressLine::finish() {
  if (mode_ == ProgressMode::kBar && shown_) print("\r\x1b[K");
}

void ProgressLine::print(std::string_view text) const {
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace mpinfer::io
