// Stop strings are looked for in the detokenised text of a running sequence. The match whose end
// comes first wins (of two that end together, the longer); text of the first min_tokens tokens is
// not searched. The same scan cuts the final text, so verdict and text agree.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "lib/core/request.h"
#include "lib/engine/engine.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::job {

class StopScan {
 public:
  StopScan(const text::Tokenizer& tokenizer, const SamplingParams& sampling);

  // Adds the num_tokens-th token. The stop string, once one is matched; nothing is looked for after
  // that.
  const std::string* push(int32_t token_id, int32_t num_tokens);
  // The text so far, cut at the match unless include_stop_str_in_output.
  std::string text() const;

 private:
  const SamplingParams& sampling_;
  text::Detokenizer detokenizer_;
  std::string text_;
  size_t searched_ = 0;  // a match must end behind this
  const std::string* matched_ = nullptr;
  size_t match_end_ = 0;
};

class StopStrings : public engine::StopStringMatcher {
 public:
  explicit StopStrings(const text::Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  std::optional<std::string> push(const Request& request, int32_t token_id,
                                  int32_t num_tokens) override;
  void forget(const Request& request) override { running_.erase({request.index, request.sample}); }

 private:
  struct Running {
    SamplingParams sampling;
    StopScan scan;
    Running(const text::Tokenizer& tokenizer, const SamplingParams& params)
        : sampling(params), scan(tokenizer, sampling) {}
  };
  const text::Tokenizer& tokenizer_;
  std::map<std::pair<int64_t, int32_t>, Running> running_;  // by row and sample
};

}  // namespace mpinfer::job
