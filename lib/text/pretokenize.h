// Pre-tokenisers of tokenizer.json: cut normalised text into the pieces that BPE sees one by one.
// Split, ByteLevel, Digits, Metaspace, Punctuation, Whitespace, WhitespaceSplit and sequences of
// them; others are refused.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/result.h"
#include "lib/text/json_fields.h"

namespace mpinfer::text {

struct Piece {
  std::string text;
  bool at_start = false;  // begins at offset 0 of the whole input (Metaspace "first")
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual Expected<void> apply(std::vector<Piece>& pieces) const = 0;
  // Pieces are bytes of a byte-level vocabulary.
  virtual bool byte_level() const { return false; }
};

// field: tokenizer.json's "pre_tokenizer", possibly null (does nothing). ByteLevel must come last.
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Field& field);

}  // namespace mpinfer::text
