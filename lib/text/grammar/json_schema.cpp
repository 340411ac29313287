#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "lib/core/log.h"
#include "lib/text/grammar/formats.h"
#include "lib/text/grammar/json_grammar.h"
#include "lib/text/grammar/number_range.h"
#include "lib/text/grammar/pattern.h"

namespace mpinfer::text::grammar {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kMaxDigits = 18;  // of a number: an integer fits 64 bits
constexpr double kMaxBound = 1e15;  // a double holds every whole number up to it
constexpr size_t kMaxVisited = 20'000;
constexpr size_t kMaxWritten = 1 << 17;

constexpr std::string_view kAnnotations[] = {
    "title",   "description", "default",  "examples", "deprecated",  "readOnly",     "writeOnly",
    "$schema", "$id",         "$comment", "$defs",    "definitions", "discriminator"};
// number: of integers too.
const std::map<std::string, std::string, std::less<>> kTypeOfKeyword = {
    {"properties", "object"},
    {"required", "object"},
    {"additionalProperties", "object"},
    {"items", "array"},
    {"minItems", "array"},
    {"maxItems", "array"},
    {"pattern", "string"},
    {"format", "string"},
    {"minLength", "string"},
    {"maxLength", "string"},
    {"minimum", "number"},
    {"maximum", "number"},
    {"exclusiveMinimum", "number"},
    {"exclusiveMaximum", "number"}};

bool is_annotation(std::string_view keyword) {
  return std::find(std::begin(kAnnotations), std::end(kAnnotations), keyword) !=
         std::end(kAnnotations);
}

bool is_type(const Json& value, std::string_view type) {
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "object") return value.is_object();
  return type == "array" && value.is_array();
}

// Made once: a schema may name them thousands of times.
const ExprPtr& free_value() {
  static const ExprPtr expr = json_value(kFreeDepth);
  return expr;
}
const ExprPtr& free_item() {
  static const ExprPtr expr = json_value(kFreeDepth - 1);
  return expr;
}
const ExprPtr& free_object() {
  static const ExprPtr expr = json_object(kFreeDepth);
  return expr;
}
const ExprPtr& character() {
  static const ExprPtr expr = json_character();
  return expr;
}

// After the first error every rule returns at once; its result is not looked at.
class Reader {
 public:
  Reader(const Json& root, const std::string& param) : root_(root), param_(param) {}

  Expected<ExprPtr> read() {
    ExprPtr expr = schema(root_, "#", 0);
    if (error_) return tl::unexpected(*error_);
    return expr;
  }

 private:
  ExprPtr refuse(const char* code, const std::string& path, const std::string& what) {
    if (!error_)
      error_ = RowError{
          code, fmt::format("{}: {} {}", param_, printable(path.substr(0, 300)), what), param_};
    return text("");
  }
  ExprPtr unsupported(const std::string& path, const std::string& what) {
    return refuse("unsupported", path, what);
  }
  ExprPtr invalid(const std::string& path, const std::string& what) {
    return refuse("invalid_param", path, what);
  }

  // A text of the schema itself; $ref may repeat it.
  ExprPtr literal(const std::string& written, const std::string& path) {
    num_written_ += written.size();
    if (num_written_ > kMaxWritten)
      return unsupported(path, fmt::format("makes more than {} bytes of names and values, $ref "
                                           "counted each time",
                                           kMaxWritten));
    return text(written);
  }

  ExprPtr schema(const Json& node, const std::string& path, int depth) {
    if (error_) return text("");
    if (depth > kMaxSchemaDepth)
      return unsupported(path, fmt::format("is nested deeper than {}", kMaxSchemaDepth));
    if (++visited_ > kMaxVisited)
      return unsupported(
          path, fmt::format("makes more than {} schemas, $ref counted each time", kMaxVisited));
    if (node.is_boolean() && node.get<bool>()) return free_value();
    if (!node.is_object()) return invalid(path, "must be an object");
    if (node.contains("$ref")) return reference(node, path, depth);
    for (const char* keyword : {"anyOf", "oneOf"}) {
      if (node.contains(keyword)) return any_of(node, keyword, path, depth);
    }
    if (node.contains("allOf")) return all_of(node, path, depth);
    if (node.contains("const")) {
      if (!only(node, path, {"const", "type"})) return text("");
      return values(node, {node["const"]}, path + "/const");
    }
    if (node.contains("enum")) {
      if (!only(node, path, {"enum", "type"})) return text("");
      if (!node["enum"].is_array() || node["enum"].empty())
        return invalid(path + "/enum", "must be a list of values");
      return values(node, {node["enum"].begin(), node["enum"].end()}, path + "/enum");
    }
    const std::vector<std::string> types = types_of(node, path);
    std::vector<ExprPtr> parts;
    for (const std::string& type : types) parts.push_back(typed(node, type, types, path, depth));
    if (error_) return text("");
    if (types.empty()) return free_value();
    return parts.size() == 1 ? parts.front() : choice(std::move(parts));
  }

  // False: the schema has another keyword, and that is the error.
  bool only(const Json& node, const std::string& path,
            std::initializer_list<std::string_view> allowed) {
    for (const auto& [key, value] : node.items()) {
      const bool known =
          std::find(allowed.begin(), allowed.end(), std::string_view(key)) != allowed.end();
      if (known || is_annotation(key)) continue;
      unsupported(path + "/" + key, "is a keyword that is not supported here");
      return false;
    }
    return true;
  }

  // What type says, or what the other keywords are about; empty: anything.
  std::vector<std::string> types_of(const Json& node, const std::string& path) {
    std::vector<std::string> types;
    if (!node.contains("type")) {
      for (const auto& [key, value] : node.items()) {
        if (is_annotation(key) || kTypeOfKeyword.contains(key)) continue;
        unsupported(path + "/" + key, "is a keyword that is not supported here");
        return {};
      }
      for (const auto& [keyword, type] : kTypeOfKeyword) {
        const bool listed = std::find(types.begin(), types.end(), type) != types.end();
        if (node.contains(keyword) && !listed) types.push_back(type);
      }
      if (types.size() > 1) unsupported(path, "has keywords of several types and no type");
      return types;
    }
    const Json& given = node["type"];
    const std::string where = path + "/type";
    if (given.is_string()) types.push_back(given.get<std::string>());
    if (given.is_array()) {
      for (const Json& type : given) {
        if (!type.is_string()) break;
        types.push_back(type.get<std::string>());
      }
    }
    const bool several = given.is_array() && types.size() == given.size();
    if (types.empty() || !(given.is_string() || several))
      invalid(where, "must be a type's name or a list of them");
    const bool known = std::all_of(types.begin(), types.end(), [](const std::string& type) {
      return type == "object" || type == "array" || type == "string" || type == "integer" ||
             type == "number" || type == "boolean" || type == "null";
    });
    if (!known) invalid(where, "names a type that JSON does not have");
    return types;
  }

  ExprPtr typed(const Json& node, const std::string& type, const std::vector<std::string>& types,
                const std::string& path, int depth) {
    // A keyword of another type in the list is read where that type is.
    for (const auto& [key, value] : node.items()) {
      if (key == "type") continue;
      const auto about = kTypeOfKeyword.find(key);
      const bool of_types = about != kTypeOfKeyword.end() &&
                            std::any_of(types.begin(), types.end(), [&](const std::string& each) {
                              return about->second == (each == "integer" ? "number" : each);
                            });
      if (!of_types && !is_annotation(key))
        return unsupported(path + "/" + key, "is a keyword that is not supported here");
    }
    if (type == "object") return object(node, path, depth);
    if (type == "array") return array(node, path, depth);
    if (type == "string") return string(node, path);
    if (type == "integer" || type == "number") return number(node, type == "integer", path);
    if (type == "boolean") return choice({text("true"), text("false")});
    return text("null");
  }

  ExprPtr object(const Json& node, const std::string& path, int depth) {
    const bool closed = node.contains("additionalProperties");
    if (closed && !node["additionalProperties"].is_boolean()) return dictionary(node, path, depth);
    std::set<std::string> required;
    if (node.contains("required")) {
      if (!node["required"].is_array()) return invalid(path + "/required", "must be a list");
      for (const Json& name : node["required"]) {
        if (!name.is_string()) return invalid(path + "/required", "must hold names");
        required.insert(name.get<std::string>());
      }
    }
    const bool listed = node.contains("properties");
    if (!listed && closed && !node["additionalProperties"].get<bool>() && required.empty())
      return text("{}");
    if (!listed && required.empty()) return free_object();
    if (!listed || !node["properties"].is_object())
      return invalid(path + "/properties", "must be an object that names every required member");
    if (closed && node["additionalProperties"].get<bool>())
      return unsupported(path + "/additionalProperties", "must be false beside properties");
    std::vector<ExprPtr> parts;
    std::vector<bool> flags;
    for (const auto& [name, property] : node["properties"].items()) {
      const ExprPtr value = schema(property, path + "/properties/" + name, depth + 1);
      if (error_) return text("");
      parts.push_back(concat({literal(Json(name).dump(), path + "/properties"), colon(), value}));
      flags.push_back(required.erase(name) > 0);
    }
    if (!required.empty()) {
      return unsupported(path + "/required",
                         fmt::format("names {}, which properties does not",
                                     printable(required.begin()->substr(0, 100))));
    }
    return concat({text("{"), members(std::move(parts), std::move(flags), comma()), text("}")});
  }

  // Members of any names, their values all of one schema.
  ExprPtr dictionary(const Json& node, const std::string& path, int depth) {
    const std::string where = path + "/additionalProperties";
    for (const char* keyword : {"properties", "required"}) {
      if (node.contains(keyword) && !node[keyword].empty())
        return unsupported(where, fmt::format("must be true or false beside {}", keyword));
    }
    const ExprPtr value = schema(node["additionalProperties"], where, depth + 1);
    if (error_) return text("");
    return concat(
        {text("{"), list(concat({json_string(), colon(), value}), comma(), 0, -1), text("}")});
  }

  // A whole number of kMaxDigits digits at most; of integers what a fraction leaves.
  void bound(const Json& node, const std::string& path, const char* keyword, bool low, bool integer,
             NumberRange* range) {
    if (!node.contains(keyword)) return;
    const Json& given = node[keyword];
    const std::string where = path + "/" + keyword;
    if (!given.is_number()) {
      invalid(where, "must be a number");
      return;
    }
    const auto value = given.get<double>();
    const bool exclusive = std::string_view(keyword).starts_with("exclusive");
    const bool whole = std::floor(value) == value;
    if (std::abs(value) > kMaxBound) {
      unsupported(where, fmt::format("is beyond {:.0f}", kMaxBound));
    } else if (!whole && !integer) {
      unsupported(where, "must be a whole number");
    } else {
      const auto bounded = static_cast<int64_t>(low ? std::ceil(value) : std::floor(value));
      const bool open = exclusive && whole;
      auto& side = low ? range->low : range->high;
      bool& side_open = low ? range->low_open : range->high_open;
      if (side && (low ? *side > bounded : *side < bounded)) return;
      side_open = open || (side == bounded && side_open);
      side = bounded;
    }
  }

  ExprPtr number(const Json& node, bool integer, const std::string& path) {
    NumberRange range;
    bound(node, path, "minimum", true, integer, &range);
    bound(node, path, "exclusiveMinimum", true, integer, &range);
    bound(node, path, "maximum", false, integer, &range);
    bound(node, path, "exclusiveMaximum", false, integer, &range);
    if (error_) return text("");
    if (!range.low && !range.high)
      return integer ? json_integer(kMaxDigits) : json_number(kMaxDigits);
    return integer ? integer_in(range, kMaxDigits) : number_in(range, kMaxDigits);
  }

  ExprPtr array(const Json& node, const std::string& path, int depth) {
    const auto [min, max] = range(node, path, "minItems", "maxItems", kMaxItems);
    const ExprPtr item =
        node.contains("items") ? schema(node["items"], path + "/items", depth + 1) : free_item();
    return error_ ? text("") : json_array(item, min, max);
  }

  ExprPtr string(const Json& node, const std::string& path) {
    const bool limited = node.contains("minLength") || node.contains("maxLength");
    for (const char* keyword : {"pattern", "format"}) {
      if (!node.contains(keyword)) continue;
      const std::string where = path + "/" + keyword;
      if (limited || (node.contains("pattern") && node.contains("format")))
        return unsupported(where, "beside another keyword of strings");
      if (!node[keyword].is_string()) return invalid(where, "must be a string");
      const std::string given = node[keyword].get<std::string>();
      if (keyword == std::string_view("pattern")) return matching(given, where);
      const auto pattern = pattern_of_format(given);
      if (!pattern) {
        return unsupported(where, fmt::format("is {}; known are {}",
                                              printable(given.substr(0, 100)), known_formats()));
      }
      return matching(*pattern, where);
    }
    const auto [min, max] = range(node, path, "minLength", "maxLength", kMaxLength);
    return concat({text("\""), repeat(character(), min, max), text("\"")});
  }

  ExprPtr matching(const std::string& given, const std::string& where) {
    num_written_ += given.size();
    if (num_written_ > kMaxWritten) return literal("", where);
    auto pattern = read_pattern(given, param_);
    if (!pattern) return refuse(pattern.error().code.c_str(), where, pattern.error().message);
    return concat({text("\""), inside_json_string(*pattern), text("\"")});
  }

  std::pair<int32_t, int32_t> range(const Json& node, const std::string& path, const char* low,
                                    const char* high, int32_t limit) {
    std::pair<int32_t, int32_t> out = {0, -1};
    const auto read = [&](const char* name, int32_t* value) {
      if (!node.contains(name)) return;
      const Json& given = node[name];
      const std::string where = path + "/" + name;
      if (!given.is_number_unsigned()) {
        invalid(where, "must be a whole number, 0 or more");
      } else if (given.get<uint64_t>() > static_cast<uint64_t>(limit)) {
        unsupported(where, fmt::format("is {}; the limit is {}", given.get<uint64_t>(), limit));
      } else {
        *value = given.get<int32_t>();
      }
    };
    read(low, &out.first);
    read(high, &out.second);
    if (!error_ && out.second >= 0 && out.second < out.first)
      invalid(path, fmt::format("{} {} is above {} {}", low, out.first, high, out.second));
    return out;
  }

  // oneOf is read as anyOf: that a value fits no second branch is not looked at.
  ExprPtr any_of(const Json& node, const char* keyword, const std::string& path, int depth) {
    if (!only(node, path, {keyword})) return text("");
    const Json& branches = node[keyword];
    if (!branches.is_array() || branches.empty())
      return invalid(path + "/" + keyword, "must be a list of schemas");
    std::vector<ExprPtr> parts;
    for (size_t i = 0; i < branches.size() && !error_; ++i)
      parts.push_back(schema(branches[i], fmt::format("{}/{}/{}", path, keyword, i), depth + 1));
    return choice(std::move(parts));
  }

  ExprPtr all_of(const Json& node, const std::string& path, int depth) {
    if (!only(node, path, {"allOf"})) return text("");
    const std::string where = path + "/allOf";
    if (!node["allOf"].is_array() || node["allOf"].empty())
      return invalid(where, "must be a list of schemas");
    if (node["allOf"].size() > 1) return unsupported(where, "has more than one schema");
    return schema(node["allOf"][0], where + "/0", depth + 1);
  }

  ExprPtr reference(const Json& node, const std::string& path, int depth) {
    if (!only(node, path, {"$ref"})) return text("");
    const std::string where = path + "/$ref";
    if (!node["$ref"].is_string()) return invalid(where, "must be a string");
    const std::string target = node["$ref"].get<std::string>();
    for (const std::string folder : {"$defs", "definitions"}) {
      const std::string prefix = "#/" + folder + "/";
      if (!target.starts_with(prefix)) continue;
      const std::string name = target.substr(prefix.size());
      const bool found = root_.is_object() && root_.contains(folder) && root_[folder].is_object() &&
                         root_[folder].contains(name);
      if (!found)
        return invalid(
            where, fmt::format("names {}, which is not there", printable(target.substr(0, 200))));
      if (!open_.insert(target).second)
        return unsupported(where, fmt::format("{} is recursive", printable(target.substr(0, 200))));
      ExprPtr expr = schema(root_[folder][name], target, depth + 1);
      open_.erase(target);
      return expr;
    }
    return unsupported(where, "must be #/$defs/NAME or #/definitions/NAME");
  }

  // The values themselves, written as compact JSON; those that type rules out are left out.
  ExprPtr values(const Json& node, const std::vector<Json>& list, const std::string& path) {
    const std::vector<std::string> types =
        node.contains("type") ? types_of(node, path) : std::vector<std::string>();
    std::vector<ExprPtr> parts;
    for (const Json& value : list) {
      const bool fits =
          types.empty() || std::any_of(types.begin(), types.end(),
                                       [&](const auto& type) { return is_type(value, type); });
      if (fits) parts.push_back(literal(value.dump(), path));
    }
    if (parts.empty()) return invalid(path, "has no value of the schema's type");
    return choice(std::move(parts));
  }

  const Json& root_;
  const std::string& param_;
  std::optional<RowError> error_;
  std::set<std::string> open_;  // references being followed
  size_t visited_ = 0;
  size_t num_written_ = 0;
};

}  // namespace

Expected<ExprPtr> read_schema(std::string_view schema, const std::string& param) {
  if (schema.size() > kMaxSchemaBytes) {
    return tl::unexpected(RowError{
        "unsupported",
        fmt::format("{} has {} bytes; the limit is {}", param, schema.size(), kMaxSchemaBytes),
        param});
  }
  bool too_deep = false;
  const auto guard = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > 4 * kMaxSchemaDepth;
    return !too_deep;
  };
  const Json json = Json::parse(schema, guard, /*allow_exceptions=*/false);
  if (too_deep) {
    return tl::unexpected(
        RowError{"unsupported",
                 fmt::format("{} is nested deeper than {}", param, 4 * kMaxSchemaDepth), param});
  }
  if (json.is_discarded()) {
    return tl::unexpected(RowError{"invalid_param", fmt::format("{} is no JSON", param), param});
  }
  return Reader(json, param).read();
}

}  // namespace mpinfer::text::grammar
