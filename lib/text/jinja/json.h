// JSON into values and out of them as Python's json.dumps writes it.
#pragma once

#include <string>
#include <string_view>

#include "lib/text/jinja/value.h"

namespace mpinfer::text::jinja {

// text: one JSON value. Nested at most 128 deep, at most a million values. Throws TemplateError.
Value parse_json(std::string_view text);

struct JsonStyle {
  bool ascii = false;
  bool lines = false;  // one item a line
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
std::string to_json(const Value& value, const JsonStyle& style, Budget& budget);

}  // namespace mpinfer::text::jinja
