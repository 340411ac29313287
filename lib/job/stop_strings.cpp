#include "lib/job/stop_strings.h"

namespace mpinfer::job {

StopScan::StopScan(const text::Tokenizer& tokenizer, const SamplingParams& sampling)
    : sampling_(sampling), detokenizer_(tokenizer, sampling.skip_special_tokens) {}

const std::string* StopScan::push(int32_t token_id, int32_t num_tokens) {
  if (matched_ != nullptr) return matched_;
  text_ += detokenizer_.push(token_id);
  if (num_tokens <= sampling_.min_tokens) {
    searched_ = text_.size();
    return nullptr;
  }
  for (const std::string& stop : sampling_.stop) {
    const size_t from = searched_ + 1 > stop.size() ? searched_ + 1 - stop.size() : 0;
    const size_t at = text_.find(stop, from);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    const bool earlier = matched_ == nullptr || end < match_end_;
    if (earlier || (end == match_end_ && stop.size() > matched_->size())) {
      matched_ = &stop;
      match_end_ = end;
    }
  }
  searched_ = text_.size();
  return matched_;
}

std::string StopScan::text() const {
  if (matched_ == nullptr) return text_;
  return text_.substr(
      0, sampling_.include_stop_str_in_output ? match_end_ : match_end_ - matched_->size());
}

std::optional<std::string> StopStrings::push(const Request& request, int32_t token_id,
                                             int32_t num_tokens) {
  const auto running =
      running_.try_emplace({request.index, request.sample}, tokenizer_, request.sampling).first;
  const std::string* matched = running->second.scan.push(token_id, num_tokens);
  if (matched == nullptr) return std::nullopt;
  return *matched;
}

}  // namespace mpinfer::job
