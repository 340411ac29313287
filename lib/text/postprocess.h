// Post-processors of tokenizer.json, as far as ids go: what is put before and after a text when
// special tokens are asked for. TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel
// (nothing) and sequences of them.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/text/json_fields.h"

namespace mpinfer::text {

struct SpecialTokens {
  std::vector<int32_t> before;
  std::vector<int32_t> after;
};

// field: tokenizer.json's "post_processor", possibly null.
SpecialTokens read_post_processor(const Field& field);

}  // namespace mpinfer::text
