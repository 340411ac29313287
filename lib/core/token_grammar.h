// TokenGrammars: what the engine knows of grammars: a place in one that moves by tokens and says
// which tokens may come next. Made by lib/text/grammar, which knows the vocabulary's text.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/core/request.h"

namespace mpinfer {

// The place of one sequence.
class TokenMatcher {
 public:
  virtual ~TokenMatcher() = default;
  // A token that was not allowed leads to the end.
  virtual void advance(int32_t token_id) = 0;
  // One bit a token of the model's vocabulary, never all zero.
  virtual std::shared_ptr<const std::vector<uint32_t>> allowed() = 0;
};

class TokenGrammars {
 public:
  virtual ~TokenGrammars() = default;
  // spec: one that was compiled without error on the rank that read the row.
  virtual std::unique_ptr<TokenMatcher> start(const GrammarSpec& spec) = 0;
};

}  // namespace mpinfer
