// RequestBuilder: an input line becomes a Request, or the RowError that takes its place in the
// output. The form of the row, its sampling fields and the ids of its prompt are decided here and
// nowhere else. Used by several threads at once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "lib/core/request.h"
#include "lib/core/result.h"
#include "lib/job/openai_body.h"
#include "lib/job/row_fields.h"
#include "lib/job/sampling_fields.h"
#include "lib/text/chat_template.h"
#include "lib/text/grammar/grammars.h"
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
  const text::ChatTemplate* chat_template = nullptr;      // borrowed; null: there is none
  const text::PromptTemplate* prompt_template = nullptr;  // borrowed; over the members of a row
  std::string system = {};                                // system message of chats that have none
  bool apply_chat_template = false;                       // prompt rows become a user's message
  std::string served_model_name = {};           // what body.model must be; empty: anything
  text::grammar::Grammars* grammars = nullptr;  // borrowed; null: grammars are read and not kept
};

class RequestBuilder {
 public:
  // tokenizer: null when the model has none; then rows need prompt_token_ids.
  RequestBuilder(const BuilderOptions& options, const text::Tokenizer* tokenizer);

  // rendered: receives the text that a template made of the row; empty where none did.
  Expected<Request> build(int64_t index, std::string_view line,
                          std::string* rendered = nullptr) const;
  // For a line that is not read at all.
  static RowError line_too_long();

 private:
  // What a row's prompt is made of, before it is tokenised.
  struct Prompt {
    std::optional<std::string> text;
    std::vector<int32_t> ids;
    bool add_special_tokens = true;
    std::string_view param;
    bool templated = false;
  };
  Expected<SamplingFields> sampling_of(const RowFields& fields, std::string_view line) const;
  Expected<Prompt> prompt_of(const RowFields& fields, std::string_view line) const;
  Expected<Prompt> prompt_of(const OpenAiBody& body) const;
  Expected<Prompt> given_ids(const FieldValue& value, std::string_view name) const;
  Expected<Prompt> given_text(const RowFields& fields, std::string_view line) const;
  Expected<Prompt> chat(const text::ChatRow& row, const RowFields& fields) const;
  Expected<std::vector<int32_t>> encode(const Prompt& prompt) const;
  std::optional<RowError> fit(std::vector<int32_t>* ids, const SamplingFields& sampling) const;
  Expected<void> check_grammar(const StructuredField& field) const;
  Expected<std::vector<std::vector<int32_t>>> bad_words_of(
      const std::vector<std::string>& words) const;
  Expected<Request> score(int64_t index, const Prompt& prompt, const FieldValue& given,
                          const RowFields& fields, std::string_view line) const;
  Expected<Request> finish(int64_t index, const Prompt& prompt, const SamplingFields& sampling,
                           std::string* rendered) const;

  BuilderOptions options_;
  const text::Tokenizer* tokenizer_;
  FieldPicker picker_;
  OpenAiReader openai_;
};

// Hash of every value that answers depend on: part of a journal key.
uint64_t fingerprint(const BuilderOptions& options);

// Misspelt sampling fields that people write, and what they mean.
struct NearMiss {
  const char* written;
  const char* meant;
};
const std::vector<NearMiss>& near_misses();

}  // namespace mpinfer::job
