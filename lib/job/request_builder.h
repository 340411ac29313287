// RequestBuilder: an input line becomes a Request, or the RowError that takes its place in the
// output. The form of the row, its sampling fields and the ids of its prompt are decided here and
// nowhere else. Used by several threads at once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "lib/core/request.h"
#include "lib/core/result.h"
#include "lib/job/row_fields.h"
#include "lib/job/sampling_fields.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::job {

enum class RowParams : uint8_t { kAuto, kNested, kNone };
enum class TooLong : uint8_t { kError, kTruncateLeft, kTruncateRight };

// Throw Error(kUsage) for another name.
RowParams row_params(std::string_view name);
TooLong too_long(std::string_view name);

struct BuilderOptions {
  std::string field = "prompt";
  RowParams row_params = RowParams::kAuto;
  TooLong too_long = TooLong::kError;
  int64_t max_model_len = 0;
  int64_t vocab_size = 0;  // of the model
  SamplingFields defaults = {};
};

class RequestBuilder {
 public:
  // tokenizer: null when the model has none; then rows need prompt_token_ids.
  RequestBuilder(const BuilderOptions& options, const text::Tokenizer* tokenizer);

  Expected<Request> build(int64_t index, std::string_view line) const;
  // For a line that is not read at all.
  static RowError line_too_long();

 private:
  Expected<SamplingFields> sampling_of(const RowFields& fields) const;
  Expected<std::vector<int32_t>> prompt_of(const RowFields& fields) const;
  Expected<std::vector<int32_t>> encode(const FieldValue& prompt, const RowFields& fields) const;
  std::optional<RowError> fit(std::vector<int32_t>* ids, const SamplingFields& sampling) const;

  BuilderOptions options_;
  const text::Tokenizer* tokenizer_;
  FieldPicker picker_;
};

// Misspelt sampling fields that people write, and what they mean.
struct NearMiss {
  const char* written;
  const char* meant;
};
const std::vector<NearMiss>& near_misses();

}  // namespace mpinfer::job
