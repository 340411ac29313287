// Methods of text, lists, dictionaries and loops; what a call was given.
#include <fmt/core.h>

#include <algorithm>
#include <limits>
#include <map>

#include "lib/text/jinja/interpreter.h"
#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

using Table = std::map<std::string_view, Method>;

const std::string& text_of(const Value& value) {
  return *value.text_or_null();
}

// A text argument, or none.
std::string optional_text(const Arguments& arguments, size_t place, std::string_view name) {
  const Value* value = arguments.find(place, name);
  if (value == nullptr || value->is_none()) return "";
  return arguments.text(place, name, "");
}

std::string required_text(const Arguments& arguments, size_t place, std::string_view name,
                          std::string_view callee) {
  arguments.required(place, name, callee);
  return arguments.text(place, name, "");
}

Value texts(const std::vector<std::string_view>& parts, Budget& budget) {
  budget.bytes(parts.size() * sizeof(Value));
  Values out;
  for (const std::string_view part : parts) out.push_back(Value::text(std::string(part)));
  return Value::list(std::move(out));
}

Value made(Interpreter& in, std::string text) {
  in.budget().bytes(text.size());
  return Value::text(std::move(text));
}

enum class Side : uint8_t { kLeft, kRight, kBoth };
template <Side side>
Value strip(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string chars = optional_text(arguments, 0, "chars");
  std::string_view text = text_of(self);
  const Value* given = arguments.find(0, "chars");
  if (given == nullptr || given->is_none() || !chars.empty()) {
    if (side != Side::kRight) text = strip_left(text, chars);
    if (side != Side::kLeft) text = strip_right(text, chars);
  }
  return made(in, std::string(text));
}

template <bool last>
Value split(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string separator = optional_text(arguments, 0, "sep");
  const int64_t most = arguments.integer(1, "maxsplit", -1);
  const Value* given = arguments.find(0, "sep");
  const std::string_view text = text_of(self);
  in.budget().bytes(text.size());
  if (given == nullptr || given->is_none()) {
    if (last && most >= 0) throw TemplateError("rsplit needs a separator when maxsplit is given");
    return texts(split_spaces(text, most), in.budget());
  }
  if (separator.empty()) throw TemplateError("empty separator");
  return texts(last ? split_last(text, separator, most) : split_at(text, separator, most),
               in.budget());
}

template <bool at_start>
Value has_affix(Interpreter&, const Value& self, const Arguments& arguments) {
  const Value& given = arguments.required(0, "prefix", at_start ? "startswith" : "endswith");
  const Values parts =
      given.list_or_null() != nullptr ? given.list_or_null()->items : Values{given};
  const std::string_view text = text_of(self);
  for (const Value& part : parts) {
    const std::string* affix = part.text_or_null();
    if (affix == nullptr) {
      throw TemplateError(fmt::format("{} needs a string, not {}",
                                      at_start ? "startswith" : "endswith", type_name(part)));
    }
    if (at_start ? text.starts_with(*affix) : text.ends_with(*affix)) return Value(true);
  }
  return Value(false);
}

template <bool at_start>
Value remove_affix(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string affix = required_text(arguments, 0, "prefix", "removeprefix");
  std::string_view text = text_of(self);
  if (at_start && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!at_start && text.ends_with(affix)) text.remove_suffix(affix.size());
  return made(in, std::string(text));
}

template <std::string (*transform)(std::string_view)>
Value transformed(Interpreter& in, const Value& self, const Arguments&) {
  return made(in, transform(text_of(self)));
}

std::string swap_case(std::string_view text) {
  std::string out;
  for (const std::string_view character : characters(text)) {
    const std::string upper = to_upper(character);
    out += upper == character ? to_lower(character) : upper;
  }
  return out;
}

template <CharacterClass which>
Value is_class(Interpreter&, const Value& self, const Arguments&) {
  return Value(all_are(text_of(self), which));
}

Value replace(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string from = required_text(arguments, 0, "old", "replace");
  const std::string to = required_text(arguments, 1, "new", "replace");
  const std::string& text = text_of(self);
  // Bounded before it is made: every match could be replaced.
  size_t matches = from.empty() ? text.size() + 1 : 0;
  for (size_t at = 0; !from.empty() && (at = text.find(from, at)) != std::string::npos;
       at += from.size())
    ++matches;
  in.budget().bytes(text.size());
  if (to.size() > from.size()) in.budget().bytes(text.size() + matches * (to.size() - from.size()));
  return made(in, replace_all(text, from, to, arguments.integer(2, "count", -1)));
}

template <bool last, bool must>
Value find(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string part = required_text(arguments, 0, "sub", "find");
  const std::string& text = text_of(self);
  in.budget().bytes(text.size());
  const int64_t start = arguments.integer(1, "start", 0);
  const auto length = static_cast<int64_t>(num_characters(text));
  const int64_t stop = arguments.integer(2, "end", length);
  const int64_t from = std::clamp<int64_t>(start < 0 ? start + length : start, 0, length);
  const int64_t to = std::clamp<int64_t>(stop < 0 ? stop + length : stop, 0, length);
  const std::string_view window = substring(text, from, to);
  const size_t at = last ? window.rfind(part) : window.find(part);
  if (at == std::string_view::npos || start > length) {
    if (must) throw TemplateError("substring not found");
    return Value(int64_t{-1});
  }
  return Value(from + static_cast<int64_t>(num_characters(window.substr(0, at))));
}

Value count(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string part = required_text(arguments, 0, "sub", "count");
  const std::string& text = text_of(self);
  in.budget().bytes(text.size());
  if (part.empty()) return Value(static_cast<int64_t>(num_characters(text)) + 1);
  int64_t found = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
  return Value(found);
}

Value join(Interpreter& in, const Value& self, const Arguments& arguments) {
  std::string out;
  bool first = true;
  for (const Value& part : iterate(arguments.required(0, "iterable", "join"), in.budget())) {
    if (!part.is_text())
      throw TemplateError(fmt::format("join expects strings, not {}", type_name(part)));
    if (!first) out += text_of(self);
    first = false;
    out += text_of(part);
    if (out.size() > static_cast<size_t>(Budget::kMaxTextBytes)) break;
  }
  return made(in, std::move(out));
}

Value split_lines_of(Interpreter& in, const Value& self, const Arguments& arguments) {
  in.budget().bytes(text_of(self).size());
  return texts(split_lines(text_of(self), arguments.flag(0, "keepends", false)), in.budget());
}

template <Side side>
Value justify(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string& text = text_of(self);
  arguments.required(0, "width", "center");
  const int64_t width = arguments.integer(0, "width", 0);
  const std::string fill = arguments.text(1, "fillchar", " ");
  const auto length = static_cast<int64_t>(num_characters(text));
  if (num_characters(fill) != 1) throw TemplateError("the fill must be one character");
  if (width <= length) return made(in, text);
  in.budget().bytes(static_cast<size_t>(std::min<int64_t>(width, 1 << 30)) * fill.size());
  const int64_t room = width - length;
  const int64_t left = side == Side::kLeft    ? 0
                       : side == Side::kRight ? room
                                              : room / 2 + (room & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += text;
  for (int64_t i = left; i < room; ++i) out += fill;
  return made(in, std::move(out));
}

Value zero_fill(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string& text = text_of(self);
  const int64_t width = arguments.integer(0, "width", 0);
  const auto length = static_cast<int64_t>(num_characters(text));
  if (width <= length) return made(in, text);
  in.budget().bytes(static_cast<size_t>(std::min<int64_t>(width, 1 << 30)));
  const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  return made(in, text.substr(0, sign) + std::string(static_cast<size_t>(width - length), '0') +
                      text.substr(sign));
}

template <bool last>
Value partition(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string separator = required_text(arguments, 0, "sep", "partition");
  if (separator.empty()) throw TemplateError("empty separator");
  const std::string& text = text_of(self);
  in.budget().bytes(text.size());
  const size_t at = last ? text.rfind(separator) : text.find(separator);
  Values out;
  if (at == std::string::npos) {
    out = {self, Value::text(""), Value::text("")};
    if (last) std::swap(out[0], out[2]);
  } else {
    out = {Value::text(text.substr(0, at)), Value::text(separator),
           Value::text(text.substr(at + separator.size()))};
  }
  return Value::list(std::move(out), /*tuple=*/true);
}

// "{} {name} {0}": places and names only.
Value format(Interpreter& in, const Value& self, const Arguments& arguments) {
  const std::string& text = text_of(self);
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c) {
      out += c;
      ++i;
    } else if (c == '{') {
      const size_t end = text.find('}', i);
      if (end == std::string::npos) throw TemplateError("format: a { without its }");
      const std::string field = text.substr(i + 1, end - i - 1);
      const bool place =
          std::all_of(field.begin(), field.end(), [](char d) { return d >= '0' && d <= '9'; });
      if (field.size() > 6 && place) throw TemplateError("format: no such argument");
      const size_t at = field.empty() ? next++
                        : place       ? static_cast<size_t>(std::stoi(field))
                                      : SIZE_MAX;
      const Value* value = arguments.find(at, place ? "" : field);
      if (value == nullptr)
        throw TemplateError(fmt::format("format: no argument {}", field.substr(0, 40)));
      out += to_text(*value, in.budget());
      i = end;
    } else if (c == '}') {
      throw TemplateError("format: a } without its {");
    } else {
      out += c;
    }
    if (out.size() > static_cast<size_t>(Budget::kMaxTextBytes)) break;
  }
  return made(in, std::move(out));
}

const Table& text_methods() {
  static const Table kTable = {{"strip", strip<Side::kBoth>},
                               {"lstrip", strip<Side::kLeft>},
                               {"rstrip", strip<Side::kRight>},
                               {"split", split<false>},
                               {"rsplit", split<true>},
                               {"splitlines", split_lines_of},
                               {"startswith", has_affix<true>},
                               {"endswith", has_affix<false>},
                               {"removeprefix", remove_affix<true>},
                               {"removesuffix", remove_affix<false>},
                               {"upper", transformed<to_upper>},
                               {"lower", transformed<to_lower>},
                               {"casefold", transformed<to_lower>},
                               {"title", transformed<title_words>},
                               {"capitalize", transformed<capitalize>},
                               {"swapcase", transformed<swap_case>},
                               {"replace", replace},
                               {"find", find<false, false>},
                               {"rfind", find<true, false>},
                               {"index", find<false, true>},
                               {"rindex", find<true, true>},
                               {"count", count},
                               {"join", join},
                               {"format", format},
                               {"isalpha", is_class<CharacterClass::kAlpha>},
                               {"isdigit", is_class<CharacterClass::kDigit>},
                               {"isdecimal", is_class<CharacterClass::kDigit>},
                               {"isnumeric", is_class<CharacterClass::kDigit>},
                               {"isalnum", is_class<CharacterClass::kAlnum>},
                               {"isspace", is_class<CharacterClass::kSpace>},
                               {"isupper", is_class<CharacterClass::kUpper>},
                               {"islower", is_class<CharacterClass::kLower>},
                               {"ljust", justify<Side::kLeft>},
                               {"rjust", justify<Side::kRight>},
                               {"center", justify<Side::kBoth>},
                               {"zfill", zero_fill},
                               {"partition", partition<false>},
                               {"rpartition", partition<true>}};
  return kTable;
}

Value list_index(Interpreter& in, const Value& self, const Arguments& arguments) {
  const Values& items = self.list_or_null()->items;
  const Value& wanted = arguments.required(0, "value", "index");
  for (size_t i = 0; i < items.size(); ++i) {
    if (equal(items[i], wanted, in.budget())) return Value(static_cast<int64_t>(i));
  }
  throw TemplateError("the value is not in the list");
}

Value list_count(Interpreter& in, const Value& self, const Arguments& arguments) {
  const Value& wanted = arguments.required(0, "value", "count");
  int64_t found = 0;
  for (const Value& item : self.list_or_null()->items) {
    if (equal(item, wanted, in.budget())) ++found;
  }
  return Value(found);
}

Value copy(Interpreter&, const Value& self, const Arguments&) {
  return self;
}

Value dict_items(Interpreter& in, const Value& self, const Arguments&) {
  Values out;
  in.budget().bytes(self.dict_or_null()->items().size() * sizeof(Value));
  for (const auto& [key, value] : self.dict_or_null()->items())
    out.push_back(Value::list({key, value}, /*tuple=*/true));
  return Value::list(std::move(out));
}

Value dict_keys(Interpreter& in, const Value& self, const Arguments&) {
  return Value::list(iterate(self, in.budget()));
}

Value dict_values(Interpreter& in, const Value& self, const Arguments&) {
  Values out;
  in.budget().bytes(self.dict_or_null()->items().size() * sizeof(Value));
  for (const auto& [key, value] : self.dict_or_null()->items()) out.push_back(value);
  return Value::list(std::move(out));
}

Value dict_get(Interpreter&, const Value& self, const Arguments& arguments) {
  arguments.at_most(2, "get");
  const Value* found = self.dict_or_null()->find(arguments.required(0, "key", "get"));
  if (found != nullptr) return *found;
  const Value* otherwise = arguments.find(1, "default");
  return otherwise != nullptr ? *otherwise : Value::none();
}

Value loop_cycle(Interpreter&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) throw TemplateError("cycle needs values");
  const Loop& loop = **self.as<std::shared_ptr<Loop>>();
  return arguments.positional[loop.at % arguments.positional.size()];
}

Value loop_changed(Interpreter& in, const Value& self, const Arguments& arguments) {
  Loop& loop = **self.as<std::shared_ptr<Loop>>();
  for (const Value& value : arguments.positional) {
    if (value.holds_mutable()) throw TemplateError("changed cannot watch a namespace or a loop");
  }
  bool same = loop.has_changed_value && loop.changed_value.size() == arguments.positional.size();
  for (size_t i = 0; same && i < loop.changed_value.size(); ++i)
    same = equal(loop.changed_value[i], arguments.positional[i], in.budget());
  loop.has_changed_value = true;
  loop.changed_value = arguments.positional;
  return Value(!same);
}

const Table& methods_of(const Value& self) {
  static const Table kList = {{"index", list_index}, {"count", list_count}, {"copy", copy}};
  static const Table kDict = {{"items", dict_items},
                              {"keys", dict_keys},
                              {"values", dict_values},
                              {"get", dict_get},
                              {"copy", copy}};
  static const Table kLoop = {{"cycle", loop_cycle}, {"changed", loop_changed}};
  static const Table kNone;
  if (self.is_text()) return text_methods();
  if (self.list_or_null() != nullptr) return kList;
  if (self.dict_or_null() != nullptr) return kDict;
  if (self.as<std::shared_ptr<Loop>>() != nullptr) return kLoop;
  return kNone;
}

}  // namespace

Method find_method(const Value& self, std::string_view name) {
  const Table& table = methods_of(self);
  const auto found = table.find(name);
  return found == table.end() ? nullptr : found->second;
}

const Value* Arguments::find(size_t place, std::string_view name) const {
  if (place < positional.size()) return &positional[place];
  if (name.empty()) return nullptr;
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Arguments::at_most(size_t most, std::string_view callee) const {
  if (positional.size() > most)
    throw TemplateError(
        fmt::format("{} takes {} arguments, not {}", callee, most, positional.size()));
}

int64_t Arguments::integer(size_t place, std::string_view name, int64_t otherwise) const {
  const Value* value = find(place, name);
  if (value == nullptr || value->is_none()) return otherwise;
  int64_t out = 0;
  if (!value->integer(&out)) {
    throw TemplateError(fmt::format("{} must be an integer, not {}", name, type_name(*value)));
  }
  return out;
}

bool Arguments::flag(size_t place, std::string_view name, bool otherwise) const {
  const Value* value = find(place, name);
  return value == nullptr ? otherwise : truth(*value);
}

std::string Arguments::text(size_t place, std::string_view name, std::string_view otherwise) const {
  const Value* value = find(place, name);
  if (value == nullptr) return std::string(otherwise);
  if (!value->is_text())
    throw TemplateError(fmt::format("{} must be a string, not {}", name, type_name(*value)));
  return *value->text_or_null();
}

const Value& Arguments::required(size_t place, std::string_view name,
                                 std::string_view callee) const {
  const Value* value = find(place, name);
  if (value == nullptr) throw TemplateError(fmt::format("{}: {} is missing", callee, name));
  return *value;
}

}  // namespace mpinfer::text::jinja
