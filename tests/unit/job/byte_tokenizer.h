// The byte-level tokenizer of the tiny golden models: one token a byte, three special ones.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lib/text/tokenizer.h"

namespace mpinfer::tests {

inline std::unique_ptr<text::Tokenizer> byte_tokenizer() {
  return text::Tokenizer::load(MPINFER_SOURCE_DIR "/tests/golden/llama-8h4kv");
}

inline std::vector<int32_t> ids_of(const text::Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text, false).value();
}

}  // namespace mpinfer::tests
