// Tokenizer: Hugging Face tokenizer.json read as it is (byte-level and SentencePiece-style BPE).
// Ids and decoded text equal those of the `tokenizers` package. Immutable after load; encode and
// decode may run in several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/result.h"

namespace mpinfer::text {

class Tokenizer {
 public:
  // Reads directory/tokenizer.json (and tokenizer_config.json for what only it says).
  // Throws Error(kModelRefused) naming file, field and rule.
  static std::unique_ptr<Tokenizer> load(const std::string& directory);
  virtual ~Tokenizer() = default;

  // text: any bytes. invalid_utf8 for invalid UTF-8; tokenizer_error when a regex limit is hit.
  virtual Expected<std::vector<int32_t>> encode(std::string_view text,
                                                bool add_special_tokens) const = 0;
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const = 0;

  virtual int32_t vocab_size() const = 0;  // largest id + 1, added tokens included
  virtual bool is_special(int32_t id) const = 0;
  virtual std::string token_of(int32_t id) const = 0;  // as in the vocabulary; empty if unknown
  virtual std::vector<int32_t> ids_of_token(std::string_view token) const = 0;  // 0 or 1 ids
  // What the token adds to a text behind other tokens, or as its first (where some decoders drop a
  // space): bytes that need not be whole characters. Empty for added tokens, special or not.
  virtual std::string bytes_of(int32_t id, bool first) const = 0;
  virtual uint64_t fingerprint() const = 0;  // hash of tokenizer.json's bytes
};

// Text of a growing completion. push returns the text that is now certain (no split UTF-8
// sequence); finish returns the rest. The concatenation equals Tokenizer::decode of all ids.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens);
  ~Detokenizer();
  Detokenizer(Detokenizer&&) noexcept;
  Detokenizer& operator=(Detokenizer&&) noexcept;

  std::string push(int32_t id);
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mpinfer::text
