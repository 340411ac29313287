// Tokens of a template: text, and what stands between the delimiters. Whitespace control as in
// jinja2 with trim_blocks and lstrip_blocks on (what transformers sets). Refuses with TemplateError
// naming the line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lib/text/jinja/value.h"

namespace mpinfer::text::jinja {

enum class TokenKind : uint8_t {
  kText,
  kPrintBegin,
  kPrintEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;  // decoded for strings
};

std::vector<Token> tokenize(std::string_view source);

}  // namespace mpinfer::text::jinja
