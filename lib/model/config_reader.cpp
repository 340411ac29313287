#include "lib/model/config_reader.h"

#include <cmath>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::model {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 64;

std::string shown(const Json& value) {
  return value.is_structured()
             ? std::string(value.type_name())
             : printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), 80);
}

}  // namespace

bool ConfigReader::has(const char* field) const {
  const auto at = object_.find(field);
  return at != object_.end() && !at->is_null();
}

bool ConfigReader::is_null(const char* field) const {
  const auto at = object_.find(field);
  return at != object_.end() && at->is_null();
}

void ConfigReader::refuse(const char* field, const std::string& what) const {
  throw Error(ExitCode::kModelRefused, fmt::format("{}: {} {}", where_, field, what));
}

const Json& ConfigReader::require(const char* field) const {
  if (!has(field)) refuse(field, "is missing");
  return object_.at(field);
}

int64_t ConfigReader::integer_of(const Json& value, const char* field, const Range& range) const {
  const bool whole = value.is_number_integer();
  // An unsigned beyond 63 bits would wrap in get<int64_t>; as a double it is outside every range.
  if (!whole || value.get<double>() < range.least || value.get<double>() > range.most) {
    refuse(field, fmt::format("is {}, not an integer from {:.0f} to {:.0f}", shown(value),
                              range.least, range.most));
  }
  return value.get<int64_t>();
}

int64_t ConfigReader::integer(const char* field, const Range& range) const {
  return integer_of(require(field), field, range);
}

int64_t ConfigReader::integer(const char* field, int64_t absent, const Range& range) const {
  return has(field) ? integer(field, range) : absent;
}

double ConfigReader::number_of(const Json& value, const char* field, const Range& range) const {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(number >= range.least && number <= range.most)) {
    refuse(field,
           fmt::format("is {}, not a number from {} to {}", shown(value), range.least, range.most));
  }
  return number;
}

double ConfigReader::number(const char* field, const Range& range) const {
  return number_of(require(field), field, range);
}

double ConfigReader::number(const char* field, double absent, const Range& range) const {
  return has(field) ? number(field, range) : absent;
}

bool ConfigReader::boolean(const char* field, bool absent) const {
  if (!has(field)) return absent;
  if (!raw(field).is_boolean()) {
    refuse(field, fmt::format("is {}, not true or false", shown(raw(field))));
  }
  return raw(field).get<bool>();
}

std::string ConfigReader::string(const char* field, const std::string& absent) const {
  if (!has(field)) return absent;
  if (!raw(field).is_string()) refuse(field, fmt::format("is {}, not a string", shown(raw(field))));
  return raw(field).get<std::string>();
}

const Json& ConfigReader::list_of(const char* field, size_t most_items) const {
  const Json& value = require(field);
  if (!value.is_array() || value.size() > most_items) {
    refuse(field, fmt::format("is not a list of at most {} items", most_items));
  }
  return value;
}

std::vector<int64_t> ConfigReader::integers(const char* field, size_t most_items,
                                            const Range& range) const {
  std::vector<int64_t> out;
  for (const Json& item : list_of(field, most_items)) {
    out.push_back(integer_of(item, field, range));
  }
  return out;
}

std::vector<double> ConfigReader::numbers(const char* field, size_t most_items,
                                          const Range& range) const {
  std::vector<double> out;
  for (const Json& item : list_of(field, most_items)) {
    out.push_back(number_of(item, field, range));
  }
  return out;
}

std::vector<std::string> ConfigReader::strings(const char* field, size_t most_items) const {
  std::vector<std::string> out;
  for (const Json& item : list_of(field, most_items)) {
    if (!item.is_string()) refuse(field, fmt::format("holds {}, not a string", shown(item)));
    out.push_back(item.get<std::string>());
  }
  return out;
}

ConfigReader ConfigReader::object(const char* field) const {
  const Json& value = require(field);
  if (!value.is_object()) refuse(field, fmt::format("is {}, not an object", shown(value)));
  return {value, fmt::format("{}: {}", where_, field)};
}

Json parse_json_object(const std::string& text, const std::string& path) {
  const auto guard = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) {
      throw Error(ExitCode::kModelRefused,
                  fmt::format("{}: nested deeper than {} levels", path, kMaxDepth));
    }
    return true;
  };
  try {
    Json json = Json::parse(text, guard);
    if (!json.is_object()) {
      throw Error(ExitCode::kModelRefused,
                  fmt::format("{}: is {}, not an object", path, json.type_name()));
    }
    return json;
  } catch (const Json::exception& error) {
    throw Error(ExitCode::kModelRefused,
                fmt::format("{}: not valid JSON: {}", path, printable(error.what())));
  }
}

}  // namespace mpinfer::model
