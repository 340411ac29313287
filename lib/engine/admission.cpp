#include "lib/engine/admission.h"

#include <algorithm>

namespace mpinfer::engine {

int32_t Admission::expected_completion(const Sequence& sequence) const {
  const auto& sampling = sequence.request.sampling;
  if (sampling.ignore_eos && sampling.stop.empty() && sampling.stop_token_ids.empty()) {
    return sampling.max_tokens;
  }
  const auto guess = static_cast<int64_t>(static_cast<double>(quantile_) * inflation_);
  const int64_t expected = std::max<int64_t>(guess, int64_t{sequence.num_sampled} + 1);
  return static_cast<int32_t>(std::min<int64_t>(sampling.max_tokens, expected));
}

void Admission::on_finished(const Sequence& sequence) {
  const auto length = static_cast<int32_t>(sequence.output.size());
  if (lengths_.size() < kHistory) {
    lengths_.push_back(length);
  } else {
    lengths_[next_] = length;
    next_ = (next_ + 1) % kHistory;
  }
  std::vector<int32_t> sorted = lengths_;
  const auto at = static_cast<std::ptrdiff_t>(kQuantile * static_cast<double>(sorted.size() - 1));
  std::nth_element(sorted.begin(), sorted.begin() + at, sorted.end());
  quantile_ = std::max<int32_t>(1, sorted[static_cast<size_t>(at)]);
  inflation_ = std::max(1.0, inflation_ * 0.99);
}

void Admission::on_preempted() {
  inflation_ = std::min(16.0, inflation_ * 1.2);
}

}  // namespace mpinfer::engine
