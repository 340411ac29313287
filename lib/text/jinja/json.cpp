#include "lib/text/jinja/json.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

constexpr size_t kMaxDepth = 128;
constexpr int64_t kMaxValues = 1'000'000;
constexpr size_t kMaxDigits = 1000;

class Reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return add(Value::none()); }
  bool boolean(bool value) override { return add(Value(value)); }
  bool number_integer(int64_t value) override { return add(Value(value)); }
  bool number_unsigned(uint64_t value) override {
    if (value <= INT64_MAX) return add(Value(static_cast<int64_t>(value)));
    return add(big(std::to_string(value)));
  }
  bool number_float(double value, const std::string& text) override {
    if (text.size() > kMaxDigits) throw TemplateError("a number of too many digits");
    if (text.find_first_of(".eE") == std::string::npos) return add(big(text));
    return add(Value(value));
  }
  bool string(std::string& value) override { return add(Value::text(std::move(value))); }
  bool binary(nlohmann::json::binary_t& /*value*/) override { return false; }
  bool key(std::string& value) override {
    frames_.back().key = std::move(value);
    return true;
  }
  bool start_object(size_t /*count*/) override { return start(true); }
  bool start_array(size_t /*count*/) override { return start(false); }
  bool end_object() override {
    Dict dict = std::move(frames_.back().dict);
    frames_.pop_back();
    return add(Value::dict(std::move(dict)));
  }
  bool end_array() override {
    Values list = std::move(frames_.back().list);
    frames_.pop_back();
    return add(Value::list(std::move(list)));
  }
  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*exception*/) override {
    throw TemplateError(fmt::format("not JSON at byte {}", position));
  }

  Value take() { return std::move(result_); }

 private:
  struct Frame {
    bool object = false;
    std::string key;
    Dict dict;
    Values list;
  };

  static Value big(std::string digits) {
    return Value(BigInteger{std::make_shared<const std::string>(std::move(digits))});
  }

  bool start(bool object) {
    if (frames_.size() >= kMaxDepth)
      throw TemplateError(fmt::format("nested deeper than {}", kMaxDepth));
    frames_.push_back({object, {}, {}, {}});
    return true;
  }

  bool add(Value value) {
    if (++count_ > kMaxValues) throw TemplateError(fmt::format("more than {} values", kMaxValues));
    if (frames_.empty()) {
      result_ = std::move(value);
    } else if (frames_.back().object) {
      frames_.back().dict.set(std::move(frames_.back().key), std::move(value));
    } else {
      frames_.back().list.push_back(std::move(value));
    }
    return true;
  }

  std::vector<Frame> frames_;
  Value result_;
  int64_t count_ = 0;
};

void append_escape(std::string* out, char32_t code) {
  if (code >= 0x10000) {
    const char32_t rest = code - 0x10000;
    append_escape(out, 0xd800 + (rest >> 10));
    append_escape(out, 0xdc00 + (rest & 0x3ff));
    return;
  }
  *out += fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
}

void append_text(std::string* out, std::string_view text, bool ascii) {
  *out += '"';
  for (const std::string_view character : characters(text)) {
    const char32_t code = code_point(character);
    static constexpr std::string_view kFrom = "\"\\\n\r\t\b\f";
    static constexpr std::string_view kTo = "\"\\nrtbf";
    const size_t known = code < 0x80 ? kFrom.find(character) : std::string_view::npos;
    if (known != std::string_view::npos) {
      *out += '\\';
      *out += kTo[known];
    } else if (code < 0x20 || (ascii && code > 0x7e)) {
      append_escape(out, code);
    } else {
      *out += character;
    }
  }
  *out += '"';
}

class Writer {
 public:
  Writer(const JsonStyle& style, Budget& budget) : style_(style), budget_(budget) {}

  void write(const Value& value) {
    budget_.step();
    const size_t before = out_.size();
    int64_t integer = 0;
    if (const std::string* text = value.text_or_null()) {
      append_text(&out_, *text, style_.ascii);
      budget_.bytes(out_.size() - before);
    } else if (value.is_none()) {
      out_ += "null";
    } else if (const bool* flag = value.as<bool>()) {
      out_ += *flag ? "true" : "false";
    } else if (value.integer(&integer)) {
      out_ += std::to_string(integer);
    } else if (const auto* big = value.as<BigInteger>()) {
      out_ += *big->digits;
    } else if (const double* real = value.as<double>()) {
      const std::string number = float_text(*real);
      out_ += number == "inf"    ? "Infinity"
              : number == "-inf" ? "-Infinity"
              : number == "nan"  ? "NaN"
                                 : number;
    } else if (const List* list = value.list_or_null()) {
      write_list(*list);
    } else if (const Dict* dict = value.dict_or_null()) {
      write_dict(*dict);
    } else {
      throw TemplateError(
          fmt::format("object of type {} is not JSON serializable", type_name(value)));
    }
    if (out_.size() > static_cast<size_t>(Budget::kMaxTextBytes)) budget_.bytes(out_.size());
  }

  std::string take() { return std::move(out_); }

 private:
  void line() {
    if (!style_.lines) return;
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += style_.indent;
  }

  void write_list(const List& list) {
    out_ += '[';
    ++level_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      line();
      write(list.items[i]);
    }
    --level_;
    if (!list.items.empty()) line();
    out_ += ']';
  }

  void write_dict(const Dict& dict) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items()) items.push_back(&item);
    if (style_.sort_keys) {
      std::stable_sort(items.begin(), items.end(), [&](const auto* a, const auto* b) {
        return compare(a->first, b->first, budget_) < 0;
      });
    }
    out_ += '{';
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      line();
      write_key(items[i]->first);
      out_ += style_.key_separator;
      write(items[i]->second);
    }
    --level_;
    if (!items.empty()) line();
    out_ += '}';
  }

  void write_key(const Value& key) {
    if (key.list_or_null() != nullptr)
      throw TemplateError("keys must be strings, numbers, booleans or none");
    if (key.is_text()) return write(key);
    out_ += '"';
    write(key);
    out_ += '"';
  }

  const JsonStyle& style_;
  Budget& budget_;
  std::string out_;
  int level_ = 0;
};

}  // namespace

Value parse_json(std::string_view text) {
  Reader reader;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &reader))
    throw TemplateError("not JSON");
  return reader.take();
}

std::string to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  Writer writer(style, budget);
  writer.write(value);
  std::string out = writer.take();
  budget.bytes(out.size());
  return out;
}

}  // namespace mpinfer::text::jinja
