// The fields of an input line that a request is made of, picked out by a streaming JSON parser: no
// tree of an untrusted line is ever built. Nesting is limited to 128, a number to 1,000 characters;
// the last of duplicate keys wins. What is no JSON object is a RowError: invalid_json, or
// invalid_utf8.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "lib/core/result.h"

namespace mpinfer::job {

struct ArrayValue {  // of scalars; others only count
  int64_t size = 0;
  std::vector<int64_t> integers;
  std::vector<std::string> strings;
};
struct ObjectValue {  // of numbers; others only count
  int64_t size = 0;
  std::vector<std::pair<std::string, double>> numbers;
};

// null, true or false, an integer (uint64_t only beyond int64_t), another number, a string, an
// array, an object.
using FieldValue = std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string,
                                ArrayValue, ObjectValue>;

// "null", "a boolean", "an array", … for messages.
std::string_view type_name(const FieldValue& value);

struct RowFields {
  std::map<std::string, FieldValue, std::less<>> top;     // top-level fields that were asked for
  std::map<std::string, FieldValue, std::less<>> nested;  // every field of sampling_params
  std::optional<FieldValue> prompt;                       // at --field

  // A field of top; null: it is absent, or null.
  const FieldValue* find(std::string_view name) const;
};

class FieldPicker {
 public:
  // prompt_field: a top-level name or a dotted path. top_names: what else to pick at the top level.
  FieldPicker(std::string_view prompt_field, std::vector<std::string> top_names);
  Expected<RowFields> pick(std::string_view line) const;

 private:
  class Handler;
  std::string prompt_field_;
  std::vector<std::string> prompt_path_;
  std::vector<std::string> top_names_;  // sorted
};

}  // namespace mpinfer::job
