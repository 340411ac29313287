#include "lib/text/json_fields.h"

#include "lib/core/error.h"

namespace mpinfer::text {

void Field::refuse(const std::string& rule) const {
  throw Error(ExitCode::kModelRefused, fmt::format("{}: {}", where_, rule));
}

Field Field::at(const char* name) const {
  if (!value_->is_object() || !value_->contains(name))
    refuse(fmt::format("member \"{}\" is missing", name));
  return {(*value_)[name], where_ + (where_.ends_with(".json") ? ": " : ".") + name};
}

Field Field::item(size_t index) const {
  return {(*value_)[index], fmt::format("{}[{}]", where_, index)};
}

size_t Field::size() const {
  if (!value_->is_array()) refuse("must be a list");
  return value_->size();
}

std::string Field::text() const {
  if (!value_->is_string()) refuse("must be a string");
  return value_->get<std::string>();
}

std::string Field::text(const char* name, const std::string& otherwise) const {
  return has(name) ? at(name).text() : otherwise;
}

bool Field::flag(const char* name, bool otherwise) const {
  if (!has(name)) return otherwise;
  const Field field = at(name);
  if (!field.json().is_boolean()) field.refuse("must be true or false");
  return field.json().get<bool>();
}

int64_t Field::integer(int64_t least, int64_t most) const {
  const bool fits = value_->is_number_unsigned()
                        ? value_->get<uint64_t>() <= static_cast<uint64_t>(most)
                    : value_->is_number_integer() ? value_->get<int64_t>() <= most
                                                  : false;
  if (!fits || value_->get<int64_t>() < least)
    refuse(fmt::format("must be a whole number in {} … {}", least, most));
  return value_->get<int64_t>();
}

}  // namespace mpinfer::text
