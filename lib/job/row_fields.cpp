#include "lib/job/row_fields.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "lib/core/log.h"
#include "lib/job/json_text.h"

namespace mpinfer::job {
namespace {

constexpr size_t kMaxDepth = 128;
constexpr size_t kMaxNumberCharacters = 1000;

RowError invalid_json(std::string message) {
  return {"invalid_json", std::move(message), ""};
}

std::vector<std::string> split_path(std::string_view path) {
  std::vector<std::string> parts;
  while (true) {
    const size_t dot = path.find('.');
    parts.emplace_back(path.substr(0, dot));
    if (dot == std::string_view::npos) return parts;
    path.remove_prefix(dot + 1);
  }
}

}  // namespace

std::string_view type_name(const FieldValue& value) {
  static constexpr std::array<std::string_view, 8> kNames = {
      "null",     "a boolean", "an integer", "a huge integer",
      "a number", "a string",  "an array",   "an object"};
  return kNames[value.index()];
}

const FieldValue* RowFields::find(std::string_view name) const {
  const auto found = top.find(name);
  const bool none = found == top.end() || std::holds_alternative<std::monostate>(found->second);
  return none ? nullptr : &found->second;
}

class FieldPicker::Handler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Handler(const FieldPicker& picker) : picker_(picker) {}

  bool null() override { return scalar(std::monostate()); }
  bool boolean(bool value) override { return scalar(value); }
  bool number_integer(int64_t value) override { return scalar(value); }
  bool number_unsigned(uint64_t value) override {
    return value <= INT64_MAX ? scalar(static_cast<int64_t>(value)) : scalar(value);
  }
  bool number_float(double value, const std::string& text) override {
    if (text.size() > kMaxNumberCharacters) {
      error_ = invalid_json(fmt::format("a number of {} characters; the limit is {}", text.size(),
                                        kMaxNumberCharacters));
      return false;
    }
    return scalar(value);
  }
  bool string(std::string& value) override { return scalar(std::move(value)); }
  bool binary(nlohmann::json::binary_t& /*value*/) override { return false; }

  bool key(std::string& value) override {
    frames_.back().key = std::move(value);
    find_targets();
    return true;
  }
  bool start_object(size_t /*count*/) override { return start(ObjectValue(), true); }
  bool end_object() override { return end(); }
  bool start_array(size_t /*count*/) override { return start(ArrayValue(), false); }
  bool end_array() override { return end(); }

  bool parse_error(size_t /*position*/, const std::string& /*token*/,
                   const nlohmann::detail::exception& exception) override {
    std::string_view message = exception.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 5: …"
    if (const size_t at = message.find("] "); at != std::string_view::npos)
      message.remove_prefix(at + 2);
    error_ = invalid_json(printable(message));
    if (message.find("surrogate") != std::string_view::npos) error_.code = "invalid_utf8";
    return false;
  }

  const RowError& error() const { return error_; }
  bool is_object() const { return is_object_; }
  RowFields take() {
    if (picker_.prompt_path_.size() > 1 && !fields_.prompt) fields_.prompt = std::move(by_path_);
    return std::move(fields_);
  }

 private:
  struct Frame {
    bool object = false;
    std::string key;
  };

  bool scalar(FieldValue value) {
    if (array_ != nullptr && frames_.size() == array_depth_) {
      ++array_->size;
      if (const auto* integer = std::get_if<int64_t>(&value)) array_->integers.push_back(*integer);
      if (auto* text = std::get_if<std::string>(&value))
        array_->strings.push_back(std::move(*text));
      return true;
    }
    if (object_ != nullptr && frames_.size() == object_depth_) {
      ++object_->size;
      if (const auto* integer = std::get_if<int64_t>(&value))
        object_->numbers.emplace_back(frames_.back().key, static_cast<double>(*integer));
      if (const auto* real = std::get_if<double>(&value))
        object_->numbers.emplace_back(frames_.back().key, *real);
      return true;
    }
    assign(std::move(value));
    return true;
  }

  void assign(FieldValue value) {
    if (second_ != nullptr) *second_ = value;
    if (first_ != nullptr) *first_ = std::move(value);
    first_ = second_ = nullptr;
  }

  bool start(FieldValue value, bool object) {
    if (frames_.size() >= kMaxDepth) {
      error_ = invalid_json(fmt::format("nested deeper than {}", kMaxDepth));
      return false;
    }
    if (frames_.empty()) is_object_ = object;
    if (array_ != nullptr && frames_.size() == array_depth_) ++array_->size;
    if (object_ != nullptr && frames_.size() == object_depth_) ++object_->size;
    // The members of sampling_params are fields of their own.
    const bool collects = frames_.size() != 1 || frames_[0].key != "sampling_params";
    FieldValue* target = first_;
    assign(std::move(value));
    frames_.push_back({.object = object, .key = {}});
    if (!object && target != nullptr) {
      array_ = &std::get<ArrayValue>(*target);
      array_depth_ = frames_.size();
    }
    if (object && collects && target != nullptr) {
      object_ = &std::get<ObjectValue>(*target);
      object_depth_ = frames_.size();
    }
    return true;
  }

  bool end() {
    if (array_ != nullptr && frames_.size() == array_depth_) array_ = nullptr;
    if (object_ != nullptr && frames_.size() == object_depth_) object_ = nullptr;
    frames_.pop_back();
    return true;
  }

  // Where the value of the key just read goes: first_, and second_ when --field names a field that
  // is also asked for by name.
  void find_targets() {
    first_ = second_ = nullptr;
    const std::string& name = frames_.back().key;
    if (frames_.size() == 1) {
      if (name == "sampling_params") fields_.nested.clear();
      if (std::binary_search(picker_.top_names_.begin(), picker_.top_names_.end(), name)) {
        first_ = &(fields_.top[name] = std::monostate());
      }
      if (name == picker_.prompt_field_) add_target(&fields_.prompt);
    } else if (frames_.size() == 2 && frames_[0].key == "sampling_params" && frames_[0].object) {
      first_ = &(fields_.nested[name] = std::monostate());
    }
    if (picker_.prompt_path_.size() > 1 && on_prompt_path()) {
      by_path_.reset();
      if (frames_.size() == picker_.prompt_path_.size()) add_target(&by_path_);
    }
  }

  void add_target(std::optional<FieldValue>* target) {
    *target = std::monostate();
    (first_ == nullptr ? first_ : second_) = &**target;
  }

  bool on_prompt_path() const {
    if (frames_.size() > picker_.prompt_path_.size()) return false;
    for (size_t i = 0; i < frames_.size(); ++i) {
      if (!frames_[i].object || frames_[i].key != picker_.prompt_path_[i]) return false;
    }
    return true;
  }

  const FieldPicker& picker_;
  RowFields fields_;
  std::optional<FieldValue> by_path_;
  std::vector<Frame> frames_;
  FieldValue* first_ = nullptr;
  FieldValue* second_ = nullptr;
  ArrayValue* array_ = nullptr;
  size_t array_depth_ = 0;
  ObjectValue* object_ = nullptr;
  size_t object_depth_ = 0;
  bool is_object_ = false;
  RowError error_ = invalid_json("not JSON");
};

FieldPicker::FieldPicker(std::string_view prompt_field, std::vector<std::string> top_names)
    : prompt_field_(prompt_field),
      prompt_path_(split_path(prompt_field)),
      top_names_(std::move(top_names)) {
  std::sort(top_names_.begin(), top_names_.end());
}

Expected<RowFields> FieldPicker::pick(std::string_view line) const {
  if (const size_t valid = valid_utf8_prefix(line); valid != line.size()) {
    return tl::unexpected(RowError{
        "invalid_utf8", fmt::format("byte {} of the line is not valid UTF-8", valid + 1), ""});
  }
  // The parser takes a NUL byte for the end of its input.
  if (const size_t nul = line.find('\0'); nul != std::string_view::npos) {
    return tl::unexpected(
        invalid_json(fmt::format("byte {} of the line is a NUL; write it as \\u0000", nul + 1)));
  }
  Handler handler(*this);
  if (!nlohmann::json::sax_parse(line.begin(), line.end(), &handler)) {
    return tl::unexpected(handler.error());
  }
  if (!handler.is_object()) {
    return tl::unexpected(invalid_json("the line is JSON, but not an object"));
  }
  return handler.take();
}

}  // namespace mpinfer::job
