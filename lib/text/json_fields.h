// Reading tokenizer.json: members with a type, each refusal naming file and field.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace mpinfer::text {

// A JSON value and where it stands ("tokenizer.json: pre_tokenizer.pretokenizers[1]").
class Field {
 public:
  Field(const nlohmann::json& value, std::string where)
      : value_(&value), where_(std::move(where)) {}

  const nlohmann::json& json() const { return *value_; }
  const std::string& where() const { return where_; }
  bool is_null() const { return value_->is_null(); }

  bool has(const char* name) const {
    return value_->is_object() && value_->contains(name) && !(*value_)[name].is_null();
  }
  Field at(const char* name) const;  // refused if absent
  Field item(size_t index) const;    // of an array
  size_t size() const;               // of an array, refused otherwise
  std::string text() const;
  std::string text(const char* name, const std::string& otherwise) const;
  bool flag(const char* name, bool otherwise) const;
  int64_t integer(int64_t least, int64_t most) const;
  [[noreturn]] void refuse(const std::string& rule) const;

 private:
  const nlohmann::json* value_;
  std::string where_;
};

}  // namespace mpinfer::text
