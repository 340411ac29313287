// ConfigReader: typed access to one object of config.json. A field that is absent or null takes the
// given default; a field of the wrong type or outside its range is Error(kModelRefused) naming
// file, field, value and range.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace mpinfer::model {

struct Range {
  double least = 0;
  double most = 0;
};

class ConfigReader {
 public:
  // where names the object in errors: "DIR/config.json" or "DIR/config.json: rope_scaling".
  ConfigReader(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  bool has(const char* field) const;      // there and not null
  bool is_null(const char* field) const;  // there and null
  const nlohmann::json& raw(const char* field) const { return object_.at(field); }
  const std::string& where() const { return where_; }

  int64_t integer(const char* field, const Range& range) const;
  int64_t integer(const char* field, int64_t absent, const Range& range) const;
  double number(const char* field, const Range& range) const;
  double number(const char* field, double absent, const Range& range) const;
  bool boolean(const char* field, bool absent) const;
  std::string string(const char* field, const std::string& absent) const;
  // A list of integers; at most most_items.
  std::vector<int64_t> integers(const char* field, size_t most_items, const Range& range) const;
  std::vector<double> numbers(const char* field, size_t most_items, const Range& range) const;
  std::vector<std::string> strings(const char* field, size_t most_items) const;
  ConfigReader object(const char* field) const;

  [[noreturn]] void refuse(const char* field, const std::string& what) const;

 private:
  const nlohmann::json& require(const char* field) const;
  double number_of(const nlohmann::json& value, const char* field, const Range& range) const;
  int64_t integer_of(const nlohmann::json& value, const char* field, const Range& range) const;
  const nlohmann::json& list_of(const char* field, size_t most_items) const;

  const nlohmann::json& object_;
  std::string where_;
};

// Text as a JSON object; nesting beyond 64 levels is refused.
nlohmann::json parse_json_object(const std::string& text, const std::string& path);

}  // namespace mpinfer::model
