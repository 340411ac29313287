#include "lib/text/grammar/json_grammar.h"

namespace mpinfer::text::grammar {
namespace {

ExprPtr optional(ExprPtr part) {
  return repeat(std::move(part), 0, 1);
}

ExprPtr hex_digit() {
  return set({{'0', '9'}, {'a', 'f'}, {'A', 'F'}});
}

}  // namespace

ExprPtr comma() {
  return concat({text(","), optional(text(" "))});
}

ExprPtr colon() {
  return concat({text(":"), optional(text(" "))});
}

// No \u of a surrogate: half a pair would be no text.
ExprPtr json_character() {
  const ExprPtr hex = hex_digit();
  return choice({
      set(complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}})),
      concat({text("\\"), set({{'"', '"'},
                               {'\\', '\\'},
                               {'/', '/'},
                               {'b', 'b'},
                               {'f', 'f'},
                               {'n', 'n'},
                               {'r', 'r'},
                               {'t', 't'}})}),
      concat({text("\\u"), set({{'0', '9'}, {'a', 'c'}, {'A', 'C'}, {'e', 'f'}, {'E', 'F'}}),
              repeat(hex, 3, 3)}),
      concat({text("\\u"), set({{'d', 'd'}, {'D', 'D'}}), set({{'0', '7'}}), repeat(hex, 2, 2)}),
  });
}

ExprPtr json_string() {
  return concat({text("\""), repeat(json_character(), 0, -1), text("\"")});
}

ExprPtr json_integer(int32_t max_digits) {
  const ExprPtr more = repeat(set({{'0', '9'}}), 0, max_digits < 0 ? -1 : max_digits - 1);
  return concat({optional(text("-")), choice({text("0"), concat({set({{'1', '9'}}), more})})});
}

// The exponent has two digits at most: with limited digits, what is drawn is a finite double.
ExprPtr json_number(int32_t max_digits) {
  const ExprPtr digit = set({{'0', '9'}});
  const ExprPtr fraction = concat({text("."), repeat(digit, 1, max_digits)});
  const ExprPtr exponent = concat({set({{'e', 'e'}, {'E', 'E'}}),
                                   optional(set({{'+', '+'}, {'-', '-'}})), repeat(digit, 1, 2)});
  return concat({json_integer(max_digits), optional(fraction), optional(exponent)});
}

ExprPtr json_array(const ExprPtr& item, int32_t min, int32_t max) {
  return concat({text("["), list(item, comma(), min, max), text("]")});
}

ExprPtr json_object(int depth) {
  const ExprPtr member = concat({json_string(), colon(), json_value(depth - 1)});
  return concat({text("{"), list(member, comma(), 0, -1), text("}")});
}

ExprPtr json_value(int depth) {
  std::vector<ExprPtr> kinds = {json_string(), json_number(-1), text("true"), text("false"),
                                text("null")};
  if (depth > 0) {
    kinds.push_back(json_object(depth));
    kinds.push_back(json_array(json_value(depth - 1), 0, -1));
  }
  return choice(std::move(kinds));
}

}  // namespace mpinfer::text::grammar
