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
#include "lib/text/regex.h"

namespace mpinfer::text {

// A text and its pieces, which follow each other; what lies between them is dropped.
struct Pieces {
  std::string_view text;    // borrowed, or of changed
  std::vector<Span> spans;  // never empty ones
  bool at_start = false;    // text begins at offset 0 of the whole input (Metaspace "first")
  std::string changed;      // text that a step rewrote
  std::vector<Span> next;   // working memory of the steps
  std::vector<Span> found;
  std::string rewritten;

  // One piece: all of text_in, which must outlive this use.
  void reset(std::string_view text_in, bool at_start_in);
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual Expected<void> apply(Pieces& pieces) const = 0;
  // Pieces are bytes of a byte-level vocabulary.
  virtual bool byte_level() const { return false; }
};

// field: tokenizer.json's "pre_tokenizer", possibly null (does nothing). ByteLevel must come last.
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Field& field);

}  // namespace mpinfer::text
