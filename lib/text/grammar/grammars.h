// Grammars: compiled grammars over one tokenizer's vocabulary, kept by their text, and the masks of
// their states, kept while there is room. May be used by several threads.
//
// A completion may only go where its value can still be completed; an end-of-text token is allowed
// exactly where the value may end, and alone where no token fits (a vocabulary without single
// bytes). Added tokens are never allowed.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "lib/core/result.h"
#include "lib/core/token_grammar.h"
#include "lib/text/grammar/automaton.h"
#include "lib/text/grammar/vocabulary.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::text::grammar {

// The automaton of a grammar. param: the field that is named in a refusal.
Expected<Automaton> compile(const GrammarSpec& spec, const std::string& param);

class Grammars : public TokenGrammars {
 public:
  // vocab_size: of the model. tokenizer is borrowed.
  Grammars(const Tokenizer& tokenizer, int64_t vocab_size, std::vector<int32_t> eos_token_ids);

  // Whether a row can have this grammar.
  Expected<void> check(const GrammarSpec& spec, const std::string& param);
  std::unique_ptr<TokenMatcher> start(const GrammarSpec& spec) override;

 private:
  class Matcher;
  using Mask = std::shared_ptr<const std::vector<uint32_t>>;
  struct Compiled {
    uint64_t number = 0;  // among all that were compiled
    Automaton automaton;
  };
  using CompiledPtr = std::shared_ptr<const Compiled>;
  // What was used last stands in front; behind the limit it is forgotten.
  template <class Key, class Value>
  struct Recent {
    std::list<std::pair<Key, Value>> entries = {};
    std::unordered_map<Key, typename std::list<std::pair<Key, Value>>::iterator> by_key = {};
    int64_t bytes = 0;
  };

  Expected<CompiledPtr> compiled(const GrammarSpec& spec, const std::string& param);
  void read_vocabulary();
  Mask mask(const Compiled& grammar, Automaton::State state, bool first);
  Mask make_mask(const Automaton* automaton, Automaton::State state, bool first) const;

  const Tokenizer& tokenizer_;
  int64_t vocab_size_;
  std::vector<int32_t> eos_token_ids_;
  std::once_flag vocabulary_read_;
  std::unique_ptr<Vocabulary> behind_;  // tokens behind others
  std::unique_ptr<Vocabulary> first_;   // as the first; null: the same
  Mask end_only_;
  std::mutex lock_;
  Recent<std::string, CompiledPtr> grammars_;  // guarded by lock_, as is the rest
  Recent<uint64_t, Mask> masks_;
  uint64_t num_compiled_ = 0;
};

}  // namespace mpinfer::text::grammar
