// Added and special tokens: found in the text before anything else happens to it, the longest at
// the leftmost place, with lstrip, rstrip and single_word. One pass through a trie, linear but for
// the length of the longest token.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lib/text/json_fields.h"
#include "lib/text/normalize.h"
#include "lib/text/regex.h"

namespace mpinfer::text {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  std::string name;  // in decoded text: content, normalised if that is what is looked for
  bool special = false;
  bool lstrip = false;
  bool rstrip = false;
  bool single_word = false;
  bool normalized = false;
};

struct Section {  // of a text: an added token, or (id -1) text between them
  int32_t id = -1;
  Span span;
};

class AddedTokens {
 public:
  // field: tokenizer.json's "added_tokens" list.
  AddedTokens(const Field& field, const Normalizer& normalizer);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  // Tokens matched in the text as it came / after normalising.
  std::vector<Section> split_raw(std::string_view text) const { return split(text, raw_); }
  std::vector<Section> split_normalized(std::string_view text) const {
    return split(text, normalized_);
  }

 private:
  struct Trie {
    struct Node {
      std::vector<std::pair<unsigned char, int32_t>> next;
      int32_t token = -1;  // index into tokens_
    };
    std::vector<Node> nodes = {Node{}};
    bool starts[256] = {};
    void insert(std::string_view text, int32_t token);
    // Longest token that starts at text[at] → its index, and its end.
    int32_t longest(std::string_view text, size_t at, size_t* end) const;
  };
  std::vector<Section> split(std::string_view text, const Trie& trie) const;

  std::vector<AddedToken> tokens_;
  Trie raw_;
  Trie normalized_;
};

}  // namespace mpinfer::text
