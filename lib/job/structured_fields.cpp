#include "lib/job/structured_fields.h"

#include <fmt/core.h>

#include <algorithm>

#include "lib/core/log.h"
#include "lib/io/field_scanner.h"
#include "lib/job/raw_members.h"

namespace mpinfer::job {
namespace {

using Kind = GrammarSpec::Kind;
using Field = std::optional<StructuredField>;

constexpr std::string_view kNames[] = {"response_format", "structured_outputs", "guided_json",
                                       "guided_regex", "guided_choice"};

tl::unexpected<RowError> refuse(const char* code, std::string_view name, std::string_view what) {
  return tl::unexpected(RowError{code, fmt::format("{} {}", name, what), std::string(name)});
}

Field field(Kind kind, std::string text, std::string_view name) {
  StructuredField out;
  out.grammar.kind = kind;
  out.grammar.text = std::move(text);
  out.param = name;
  return out;
}

// A schema is an object, or its text in a string.
Expected<Field> schema(std::string_view object, std::string_view key, std::string_view name) {
  const std::string_view raw = raw_member(object, key);
  const bool quoted = raw.starts_with('"');
  if (!quoted && !raw.starts_with('{') && raw != "true")
    return refuse("invalid_param", name, "needs a schema that is an object, or its text");
  return field(Kind::kJsonSchema, quoted ? text_member(object, key) : std::string(raw), name);
}

Expected<Field> regex(std::string_view object, std::string_view key, std::string_view name) {
  if (!raw_member(object, key).starts_with('"'))
    return refuse("invalid_param", name, "needs a pattern that is a string");
  return field(Kind::kRegex, text_member(object, key), name);
}

Expected<Field> choice(std::string_view object, std::string_view key, std::string_view name) {
  return field(Kind::kChoice, std::string(raw_member(object, key)), name);
}

Expected<Field> response_format(std::string_view value) {
  constexpr std::string_view kName = "response_format";
  const std::string type = text_member(value, "type");
  if (type == "text") return Field();
  if (type == "json_object") return field(Kind::kJsonObject, "", kName);
  if (type == "json_schema") {
    const std::string_view inside = raw_member(value, "json_schema");
    if (inside.starts_with('{')) return schema(inside, "schema", kName);
    return refuse("invalid_param", kName, "needs json_schema, an object with schema");
  }
  return refuse("unsupported", kName,
                fmt::format("has type {}: text, json_object and json_schema are supported",
                            type.empty() ? "none" : printable(type.substr(0, 100))));
}

Expected<Field> structured_outputs(std::string_view value) {
  constexpr std::string_view kName = "structured_outputs";
  Field found;
  io::MemberScanner scanner(value);
  io::Member member;
  while (scanner.next(&member)) {
    const std::string key = member.decoded_key();
    if (member.value == "null" || member.value == "false") continue;
    Expected<Field> one = Field();
    if (key == "json") {
      one = schema(value, key, kName);
    } else if (key == "regex") {
      one = regex(value, key, kName);
    } else if (key == "choice") {
      one = choice(value, key, kName);
    } else if (key == "json_object") {
      one = field(Kind::kJsonObject, "", kName);
    } else {
      return refuse("unsupported", kName,
                    fmt::format("has {}: json, regex, choice and json_object are supported",
                                printable(key.substr(0, 100))));
    }
    if (!one) return one;
    if (found) return refuse("invalid_param", kName, "asks for two things at once");
    found = std::move(*one);
  }
  if (!found) return refuse("invalid_param", kName, "has none of json, regex, choice, json_object");
  return found;
}

Expected<Field> read_one(std::string_view object, std::string_view name, std::string_view value) {
  if (name == "guided_json") return schema(object, name, name);
  if (name == "guided_regex") return regex(object, name, name);
  if (name == "guided_choice") return choice(object, name, name);
  if (!value.starts_with('{')) return refuse("invalid_param", name, "must be an object");
  return name == "response_format" ? response_format(value) : structured_outputs(value);
}

}  // namespace

bool is_structured_field(std::string_view name) {
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

Expected<Field> read_structured_fields(std::string_view object) {
  Field found;
  for (const std::string_view name : kNames) {
    const std::string_view value = raw_member(object, name);
    if (value.empty()) continue;
    Expected<Field> one = read_one(object, name, value);
    if (!one) return one;
    if (!*one) continue;
    if (found) {
      return refuse("invalid_param", name,
                    fmt::format("and {} are both given: one a row", found->param));
    }
    found = std::move(*one);
  }
  return found;
}

}  // namespace mpinfer::job
