// Filters over one value: text, numbers, JSON.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "lib/text/jinja/interpreter.h"
#include "lib/text/jinja/json.h"
#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

Value made(Interpreter& in, std::string text) {
  in.budget().bytes(text.size());
  return Value::text(std::move(text));
}

std::string text_of(Interpreter& in, const Value& value) {
  return to_text(value, in.budget());
}

template <std::string (*transform)(std::string_view)>
Value transformed(Interpreter& in, const Value& value, const Arguments&) {
  return made(in, transform(text_of(in, value)));
}

// By way of the method of the same name.
Value as_method(Interpreter& in, const Value& value, const Arguments& arguments,
                std::string_view method) {
  const Value text = Value::text(text_of(in, value));
  return find_method(text, method)(in, text, arguments);
}

Value trim(Interpreter& in, const Value& value, const Arguments& arguments) {
  return as_method(in, value, arguments, "strip");
}

Value replace(Interpreter& in, const Value& value, const Arguments& arguments) {
  Arguments texts;
  texts.positional.push_back(Value::text(text_of(in, arguments.required(0, "old", "replace"))));
  texts.positional.push_back(Value::text(text_of(in, arguments.required(1, "new", "replace"))));
  if (const Value* count = arguments.find(2, "count")) texts.positional.push_back(*count);
  return as_method(in, value, texts, "replace");
}

Value center(Interpreter& in, const Value& value, const Arguments& arguments) {
  Arguments width;
  width.positional.push_back(Value(arguments.integer(0, "width", 80)));
  return as_method(in, value, width, "center");
}

Value otherwise(Interpreter&, const Value& value, const Arguments& arguments) {
  const Value* fallback = arguments.find(0, "default_value");
  const bool by_truth = arguments.flag(1, "boolean", false);
  if (value.is_undefined() || (by_truth && !truth(value)))
    return fallback != nullptr ? *fallback : Value::text("");
  return value;
}

Value length(Interpreter&, const Value& value, const Arguments&) {
  if (const std::string* text = value.text_or_null())
    return Value(static_cast<int64_t>(num_characters(*text)));
  if (const List* list = value.list_or_null())
    return Value(static_cast<int64_t>(list->items.size()));
  if (const Dict* dict = value.dict_or_null())
    return Value(static_cast<int64_t>(dict->items().size()));
  if (value.is_undefined()) return Value(int64_t{0});
  throw TemplateError(fmt::format("object of type '{}' has no length", type_name(value)));
}

Value absolute(Interpreter&, const Value& value, const Arguments&) {
  int64_t integer = 0;
  double number = 0.0;
  if (value.integer(&integer) && integer != INT64_MIN) return Value(std::abs(integer));
  if (value.number(&number)) return Value(std::abs(number));
  throw TemplateError(fmt::format("abs: '{}' is no number", type_name(value)));
}

bool parse_number(std::string_view text, double* out) {
  text = strip_right(strip_left(text));
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto end = std::from_chars(text.data(), text.data() + text.size(), *out);
  return end.ec == std::errc{} && end.ptr == text.data() + text.size() && !text.empty();
}

Value as_integer(Interpreter&, const Value& value, const Arguments& arguments) {
  const int64_t fallback = arguments.integer(0, "default", 0);
  int64_t integer = 0;
  double number = 0.0;
  if (value.integer(&integer)) return Value(integer);
  if (value.as<BigInteger>() != nullptr) return value;
  if (const std::string* text = value.text_or_null()) {
    std::string_view digits = strip_right(strip_left(*text));
    if (digits.starts_with('+')) digits.remove_prefix(1);
    const auto base =
        static_cast<int>(std::clamp<int64_t>(arguments.integer(1, "base", 10), 2, 36));
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), integer, base);
    if (end.ec == std::errc{} && end.ptr == digits.data() + digits.size()) return Value(integer);
    if (!parse_number(*text, &number)) return Value(fallback);
  } else if (!value.number(&number)) {
    if (value.is_undefined()) throw TemplateError("int: the value is undefined");
    return Value(fallback);
  }
  if (!(std::abs(number) < 9e18)) return Value(fallback);
  return Value(static_cast<int64_t>(number));
}

Value as_float(Interpreter&, const Value& value, const Arguments& arguments) {
  double number = 0.0;
  if (value.number(&number)) return Value(number);
  const std::string* text = value.text_or_null();
  if (text != nullptr && parse_number(*text, &number)) return Value(number);
  if (value.is_undefined()) throw TemplateError("float: the value is undefined");
  const Value* fallback = arguments.find(0, "default");
  return fallback != nullptr ? *fallback : Value(0.0);
}

Value round_number(Interpreter&, const Value& value, const Arguments& arguments) {
  double number = 0.0;
  if (!value.number(&number))
    throw TemplateError(fmt::format("round: '{}' is no number", type_name(value)));
  const int64_t precision = std::clamp<int64_t>(arguments.integer(0, "precision", 0), -300, 300);
  const std::string method = arguments.text(1, "method", "common");
  if (method != "common" && method != "ceil" && method != "floor")
    throw TemplateError("round: the method must be common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value(std::ceil(number * scale) / scale);
  if (method == "floor") return Value(std::floor(number * scale) / scale);
  if (precision < 0) return Value(std::nearbyint(number * scale) / scale);
  // Correctly rounded from the decimal digits, ties to even, as Python does.
  return Value(std::stod(fmt::format("{:.{}f}", number, precision)));
}

Value to_json_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  JsonStyle style;
  const Value* indent = arguments.find(1, "indent");
  const Value* ascii = arguments.find(0, "ensure_ascii");
  // transformers: tojson(x, ensure_ascii, indent, separators, sort_keys).
  style.ascii = ascii != nullptr && truth(*ascii);
  if (indent != nullptr && !indent->is_none()) {
    if (const std::string* text = indent->text_or_null()) {
      style.indent = *text;
    } else {
      const int64_t width = arguments.integer(1, "indent", 0);
      style.indent = std::string(static_cast<size_t>(std::clamp<int64_t>(width, 0, 1000)), ' ');
    }
    style.lines = true;
    style.item_separator = ",";
  }
  if (const Value* separators = arguments.find(2, "separators");
      separators != nullptr && !separators->is_none()) {
    const Values parts = iterate(*separators, in.budget());
    if (parts.size() != 2 || !parts[0].is_text() || !parts[1].is_text())
      throw TemplateError("tojson: separators must be two strings");
    style.item_separator = *parts[0].text_or_null();
    style.key_separator = *parts[1].text_or_null();
  }
  style.sort_keys = arguments.flag(3, "sort_keys", false);
  return Value::text(to_json(value, style, in.budget()));
}

Value escape(Interpreter& in, const Value& value, const Arguments&) {
  std::string out;
  for (const char c : text_of(in, value)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return made(in, std::move(out));
}

Value indent(Interpreter& in, const Value& value, const Arguments& arguments) {
  const Value* width = arguments.find(0, "width");
  std::string margin(4, ' ');
  if (width != nullptr && width->is_text()) {
    margin = *width->text_or_null();
  } else if (width != nullptr) {
    const int64_t count = std::clamp<int64_t>(arguments.integer(0, "width", 4), 0, 1000);
    margin = std::string(static_cast<size_t>(count), ' ');
  }
  const bool first = arguments.flag(1, "first", false);
  const bool blank = arguments.flag(2, "blank", false);
  const std::string text = text_of(in, value) + "\n";
  const std::vector<std::string_view> lines = split_lines(text, /*keep_ends=*/false);
  in.budget().bytes(text.size() + lines.size() * margin.size());
  std::string out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += '\n';
    if ((i == 0 && first) || (i > 0 && (blank || !lines[i].empty()))) out += margin;
    out += lines[i];
  }
  return made(in, std::move(out));
}

Value truncate(Interpreter& in, const Value& value, const Arguments& arguments) {
  const std::string text = text_of(in, value);
  const int64_t length = arguments.integer(0, "length", 255);
  const bool kill_words = arguments.flag(1, "killwords", false);
  const std::string end = arguments.text(2, "end", "...");
  const int64_t leeway = arguments.integer(3, "leeway", 5);
  const auto end_length = static_cast<int64_t>(num_characters(end));
  if (length < end_length) throw TemplateError("truncate: the length is below that of the end");
  if (static_cast<int64_t>(num_characters(text)) - length <= leeway) return made(in, text);
  std::string_view kept = substring(text, 0, length - end_length);
  if (!kill_words) kept = kept.substr(0, kept.rfind(' '));
  return made(in, std::string(kept) + end);
}

Value word_count(Interpreter& in, const Value& value, const Arguments&) {
  int64_t count = 0;
  bool word = false;
  const std::string text = text_of(in, value);
  for (const std::string_view character : characters(text)) {
    const bool part = character == "_" || all_are(character, CharacterClass::kAlnum);
    if (part && !word) ++count;
    word = part;
  }
  return Value(count);
}

Value url_encode(Interpreter& in, const Value& value, const Arguments&) {
  std::string out;
  for (const char c : text_of(in, value)) {
    const auto byte = static_cast<unsigned char>(c);
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
        std::string_view("-_.~/").find(c) != std::string_view::npos) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", byte);
    }
  }
  return made(in, std::move(out));
}

Value format(Interpreter& in, const Value& value, const Arguments& arguments) {
  if (!arguments.named.empty()) throw TemplateError("format: named arguments are not supported");
  return made(in, percent_format(text_of(in, value), arguments.positional, in.budget()));
}

Value attribute(Interpreter& in, const Value& value, const Arguments& arguments) {
  if (value.dict_or_null() != nullptr &&
      find_method(value, arguments.text(0, "name", "")) == nullptr)
    return Value::undefined(arguments.text(0, "name", ""));
  return in.attribute(value, arguments.text(0, "name", ""));
}

}  // namespace

Filter find_filter(std::string_view name) {
  using I = Interpreter;
  using V = Value;
  using A = Arguments;
  static const std::map<std::string_view, Filter> kTable = {
      {"abs", absolute},
      {"attr", attribute},
      {"capitalize", transformed<capitalize>},
      {"center", center},
      {"count", length},
      {"d", otherwise},
      {"default", otherwise},
      {"e", escape},
      {"escape", escape},
      {"float", as_float},
      {"forceescape", escape},
      {"format", format},
      {"indent", indent},
      {"int", as_integer},
      {"length", length},
      {"lower", transformed<to_lower>},
      {"replace", replace},
      {"round", round_number},
      {"safe", [](I& in, const V& v, const A&) { return V::text(text_of(in, v)); }},
      {"string", [](I& in, const V& v, const A&) { return V::text(text_of(in, v)); }},
      {"title", transformed<title_filter>},
      {"tojson", to_json_filter},
      {"trim", trim},
      {"truncate", truncate},
      {"upper", transformed<to_upper>},
      {"urlencode", url_encode},
      {"wordcount", word_count}};
  const auto found = kTable.find(name);
  return found == kTable.end() ? nullptr : found->second;
}

}  // namespace mpinfer::text::jinja
