// Expr: what a value may look like, as a tree over text: the one form that patterns, JSON schemas
// and choices are read into, and the one that automaton.h compiles.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mpinfer::text::grammar {

struct Expr;
using ExprPtr = std::shared_ptr<const Expr>;
using CodePointRange = std::pair<uint32_t, uint32_t>;  // both ends belong to it

struct Expr {
  enum class Kind : uint8_t {
    kText,     // these characters
    kSet,      // one character of ranges
    kConcat,   // parts one behind the other
    kChoice,   // one of parts
    kRepeat,   // parts[0], min to max times
    kList,     // parts[0], min to max times, separator between them
    kMembers,  // parts in order, those not required may be absent, separator between those present
  };
  Kind kind = Kind::kText;
  std::string text = {};                    // valid UTF-8
  std::vector<CodePointRange> ranges = {};  // ascending, disjoint, without surrogates
  std::vector<ExprPtr> parts = {};
  int32_t min = 0;
  int32_t max = 0;  // -1: no limit
  std::vector<bool> required = {};
  ExprPtr separator = nullptr;
};

ExprPtr text(std::string_view utf8);
ExprPtr set(std::vector<CodePointRange> ranges);  // in any order; surrogates are left out
ExprPtr concat(std::vector<ExprPtr> parts);
ExprPtr choice(std::vector<ExprPtr> parts);  // none: nothing matches
ExprPtr repeat(ExprPtr part, int32_t min, int32_t max);
ExprPtr list(ExprPtr part, ExprPtr separator, int32_t min, int32_t max);
ExprPtr members(std::vector<ExprPtr> parts, std::vector<bool> required, ExprPtr separator);

// Every character that is not in ranges.
std::vector<CodePointRange> complement(std::vector<CodePointRange> ranges);
// The text that expr matches, written inside a JSON string: quotes, backslashes and controls by
// their escapes, everything else as it is.
ExprPtr inside_json_string(const ExprPtr& expr);

}  // namespace mpinfer::text::grammar
