#include "lib/text/jinja/value.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "lib/text/jinja/callable.h"
#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

constexpr size_t kSmallDict = 8;  // found by looking through it

int checked_depth(int depth) {
  if (depth > 2 * Budget::kMaxDepth) {
    throw TemplateError(fmt::format("values nested deeper than {}", 2 * Budget::kMaxDepth));
  }
  return depth;
}

std::string hash_key_of(const Value& key) {
  if (const std::string* text = key.text_or_null()) return "s" + *text;
  double number = 0.0;
  int64_t integer = 0;
  if (key.integer(&integer)) return fmt::format("n{}", integer);
  if (key.number(&number)) {
    if (std::abs(number) < 1e15 && number == std::floor(number))
      return fmt::format("n{}", static_cast<int64_t>(number));
    return fmt::format("f{}", number);
  }
  if (key.is_none()) return "none";
  if (const List* list = key.list_or_null(); list != nullptr && list->tuple) {
    std::string out = "t";
    for (const Value& item : list->items) {
      const std::string part = hash_key_of(item);
      out += fmt::format("{}:{}", part.size(), part);
    }
    return out;
  }
  throw TemplateError(fmt::format("unhashable type: '{}'", type_name(key)));
}

void append_quoted(std::string* out, std::string_view text) {
  const bool doubles =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubles ? '"' : '\'';
  *out += quote;
  for (const std::string_view character : characters(text)) {
    const char32_t code = code_point(character);
    if (code == '\\' || code == static_cast<char32_t>(quote)) {
      *out += '\\';
      *out += character;
    } else if (code == '\n') {
      *out += "\\n";
    } else if (code == '\r') {
      *out += "\\r";
    } else if (code == '\t') {
      *out += "\\t";
    } else if (is_printable(code)) {
      *out += character;
    } else if (code < 0x100) {
      *out += fmt::format("\\x{:02x}", static_cast<uint32_t>(code));
    } else if (code < 0x10000) {
      *out += fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
    } else {
      *out += fmt::format("\\U{:08x}", static_cast<uint32_t>(code));
    }
  }
  *out += quote;
}

void append_repr(std::string* out, const Value& value, Budget& budget);

void append_list(std::string* out, const List& list, Budget& budget) {
  *out += list.tuple ? '(' : '[';
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) *out += ", ";
    append_repr(out, list.items[i], budget);
  }
  if (list.tuple && list.items.size() == 1) *out += ',';
  *out += list.tuple ? ')' : ']';
}

void append_dict(std::string* out, const Dict& dict, Budget& budget) {
  *out += '{';
  bool first = true;
  for (const auto& [key, value] : dict.items()) {
    if (!first) *out += ", ";
    first = false;
    append_repr(out, key, budget);
    *out += ": ";
    append_repr(out, value, budget);
  }
  *out += '}';
}

void append_repr(std::string* out, const Value& value, Budget& budget) {
  budget.step();
  int64_t integer = 0;
  const size_t before = out->size();
  if (const std::string* text = value.text_or_null()) {
    append_quoted(out, *text);
  } else if (const List* list = value.list_or_null()) {
    append_list(out, *list, budget);
  } else if (const Dict* dict = value.dict_or_null()) {
    append_dict(out, *dict, budget);
  } else if (value.is_undefined()) {
    *out += "Undefined";
  } else if (value.is_none()) {
    *out += "None";
  } else if (const bool* flag = value.as<bool>()) {
    *out += *flag ? "True" : "False";
  } else if (value.integer(&integer)) {
    *out += std::to_string(integer);
  } else if (const double* real = value.as<double>()) {
    *out += float_text(*real);
  } else if (const auto* big = value.as<BigInteger>()) {
    *out += *big->digits;
  } else {
    *out += fmt::format("<{}>", type_name(value));
  }
  budget.bytes(out->size() - before);
  if (out->size() > static_cast<size_t>(Budget::kMaxTextBytes)) budget.bytes(out->size());
}

}  // namespace

void Budget::step(int64_t count) {
  parts_ += count * kPartsOfStep;
  if (parts_ > kMaxSteps * kPartsOfStep)
    throw TemplateError(fmt::format("the template took more than {} steps", kMaxSteps));
}

void Budget::part() {
  if (++parts_ > kMaxSteps * kPartsOfStep) step();
}

void Budget::bytes(size_t count) {
  if (count > static_cast<size_t>(kMaxTextBytes)) {
    throw TemplateError(
        fmt::format("the template made a text of more than {} MiB", kMaxTextBytes >> 20));
  }
  bytes_ += static_cast<int64_t>(count);
  if (bytes_ > kMaxBytes) {
    throw TemplateError(
        fmt::format("the template made more than {} MiB of text and lists", kMaxBytes >> 20));
  }
}

Value Value::undefined(std::string name) {
  return Value(Undefined{std::make_shared<const std::string>(std::move(name))});
}

Value Value::list(Values items, bool tuple) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) {
    list->depth = std::max(list->depth, checked_depth(item.depth() + 1));
    list->holds_mutable = list->holds_mutable || item.holds_mutable();
  }
  list->items = std::move(items);
  list->tuple = tuple;
  return Value(std::shared_ptr<const List>(std::move(list)));
}

Value Value::dict(Dict dict) {
  return Value(std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(dict))));
}

bool Value::integer(int64_t* out) const {
  if (const auto* integer = as<int64_t>()) {
    *out = *integer;
    return true;
  }
  if (const auto* flag = as<bool>()) {
    *out = *flag ? 1 : 0;
    return true;
  }
  return false;
}

bool Value::number(double* out) const {
  int64_t integer_value = 0;
  if (integer(&integer_value)) {
    *out = static_cast<double>(integer_value);
    return true;
  }
  if (const auto* real = as<double>()) {
    *out = *real;
    return true;
  }
  return false;
}

int Value::depth() const {
  if (const List* list = list_or_null()) return list->depth;
  if (const Dict* dict = dict_or_null()) return dict->depth();
  if (const auto* callable = as<std::shared_ptr<const Callable>>())
    return (*callable)->self.depth() + 1;
  return 0;
}

bool Value::holds_mutable() const {
  if (const List* list = list_or_null()) return list->holds_mutable;
  if (const Dict* dict = dict_or_null()) return dict->holds_mutable();
  if (const auto* callable = as<std::shared_ptr<const Callable>>())
    return (*callable)->self.holds_mutable();
  return as<std::shared_ptr<Namespace>>() != nullptr || as<std::shared_ptr<Loop>>() != nullptr;
}

void Dict::insert(std::string hash_key, const Value& key, Value value) {
  depth_ = std::max(depth_, checked_depth(value.depth() + 1));
  depth_ = std::max(depth_, checked_depth(key.depth() + 1));
  holds_mutable_ = holds_mutable_ || value.holds_mutable();
  const auto [place, added] = index_.try_emplace(std::move(hash_key), items_.size());
  if (added) {
    items_.emplace_back(key, std::move(value));
  } else {
    items_[place->second].second = std::move(value);
  }
}

void Dict::set(const Value& key, Value value) {
  insert(hash_key_of(key), key, std::move(value));
}

void Dict::set(std::string key, Value value) {
  std::string hash_key = "s" + key;
  insert(std::move(hash_key), Value::text(std::move(key)), std::move(value));
}

const Value* Dict::lookup(const std::string& hash_key) const {
  const auto found = index_.find(hash_key);
  return found == index_.end() ? nullptr : &items_[found->second].second;
}

const Value* Dict::find(std::string_view key) const {
  if (items_.size() > kSmallDict) return lookup("s" + std::string(key));
  for (const auto& [name, value] : items_) {
    const std::string* text = name.text_or_null();
    if (text != nullptr && *text == key) return &value;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  if (const std::string* text = key.text_or_null()) return find(std::string_view(*text));
  return lookup(hash_key_of(key));
}

const Value* Namespace::find(std::string_view name) const {
  for (const auto& [key, value] : members) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Namespace::set(std::string_view name, Value value) {
  if (value.holds_mutable())
    throw TemplateError("a namespace cannot hold a namespace, a loop or what holds one");
  if (name.starts_with('_'))
    throw TemplateError(fmt::format("a namespace cannot have a member {}", name));
  for (auto& [key, old] : members) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  members.emplace_back(std::string(name), std::move(value));
}

std::string_view type_name(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.as<bool>() != nullptr) return "bool";
  if (value.as<int64_t>() != nullptr || value.as<BigInteger>() != nullptr) return "int";
  if (value.as<double>() != nullptr) return "float";
  if (value.is_text()) return "str";
  if (const List* list = value.list_or_null()) return list->tuple ? "tuple" : "list";
  if (value.dict_or_null() != nullptr) return "dict";
  if (value.as<std::shared_ptr<Namespace>>() != nullptr) return "namespace";
  if (value.as<std::shared_ptr<Loop>>() != nullptr) return "loop";
  return "function";
}

bool truth(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  double number = 0.0;
  if (value.number(&number)) return number != 0.0;
  if (const std::string* text = value.text_or_null()) return !text->empty();
  if (const List* list = value.list_or_null()) return !list->items.empty();
  if (const Dict* dict = value.dict_or_null()) return !dict->items().empty();
  return true;
}

std::string to_text(const Value& value, Budget& budget) {
  if (const std::string* text = value.text_or_null()) {
    budget.bytes(text->size());
    return *text;
  }
  if (value.is_undefined()) return "";
  return to_repr(value, budget);
}

std::string to_repr(const Value& value, Budget& budget) {
  std::string out;
  append_repr(&out, value, budget);
  return out;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  double x = 0.0;
  double y = 0.0;
  int64_t i = 0;
  int64_t j = 0;
  if (a.integer(&i) && b.integer(&j)) return i == j;
  if (a.number(&x) && b.number(&y)) return x == y;
  if (const std::string* text = a.text_or_null()) {
    const std::string* other = b.text_or_null();
    return other != nullptr && *text == *other;
  }
  if (const List* list = a.list_or_null()) {
    const List* other = b.list_or_null();
    if (other == nullptr || list->tuple != other->tuple ||
        list->items.size() != other->items.size())
      return false;
    return std::equal(list->items.begin(), list->items.end(), other->items.begin(),
                      [&](const Value& l, const Value& r) { return equal(l, r, budget); });
  }
  if (const Dict* dict = a.dict_or_null()) {
    const Dict* other = b.dict_or_null();
    if (other == nullptr || dict->items().size() != other->items().size()) return false;
    return std::all_of(dict->items().begin(), dict->items().end(), [&](const auto& item) {
      const Value* found = other->find(item.first);
      return found != nullptr && equal(item.second, *found, budget);
    });
  }
  if (const auto* big = a.as<BigInteger>()) {
    const auto* other = b.as<BigInteger>();
    return other != nullptr && *big->digits == *other->digits;
  }
  if (a.is_none()) return b.is_none();
  if (a.is_undefined()) return b.is_undefined();
  if (const auto* space = a.as<std::shared_ptr<Namespace>>()) {
    const auto* other = b.as<std::shared_ptr<Namespace>>();
    return other != nullptr && *space == *other;
  }
  return false;
}

int compare(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  double x = 0.0;
  double y = 0.0;
  int64_t i = 0;
  int64_t j = 0;
  if (a.integer(&i) && b.integer(&j)) return i < j ? -1 : i > j ? 1 : 0;
  if (a.number(&x) && b.number(&y)) return x < y ? -1 : x > y ? 1 : 0;
  const std::string* text = a.text_or_null();
  const std::string* other_text = b.text_or_null();
  if (text != nullptr && other_text != nullptr) return text->compare(*other_text);
  const List* list = a.list_or_null();
  const List* other = b.list_or_null();
  if (list != nullptr && other != nullptr && list->tuple == other->tuple) {
    const size_t both = std::min(list->items.size(), other->items.size());
    for (size_t at = 0; at < both; ++at) {
      if (!equal(list->items[at], other->items[at], budget))
        return compare(list->items[at], other->items[at], budget);
    }
    return list->items.size() < other->items.size()   ? -1
           : list->items.size() > other->items.size() ? 1
                                                      : 0;
  }
  throw TemplateError(
      fmt::format("'{}' and '{}' have no order between them", type_name(a), type_name(b)));
}

Values iterate(const Value& value, Budget& budget) {
  Values out;
  const auto charge = [&](size_t count) { budget.bytes(count * sizeof(Value)); };
  if (const List* list = value.list_or_null()) {
    charge(list->items.size());
    return list->items;
  }
  if (const Dict* dict = value.dict_or_null()) {
    charge(dict->items().size());
    for (const auto& [key, item] : dict->items()) out.push_back(key);
    return out;
  }
  if (const std::string* text = value.text_or_null()) {
    charge(text->size());
    for (const std::string_view character : characters(*text))
      out.push_back(Value::text(std::string(character)));
    return out;
  }
  if (value.is_undefined()) return out;
  throw TemplateError(fmt::format("'{}' object is not iterable", type_name(value)));
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const std::string* text = container.text_or_null()) {
    const std::string* part = item.text_or_null();
    if (part == nullptr) {
      throw TemplateError(
          fmt::format("'in <string>' requires string as left operand, not {}", type_name(item)));
    }
    budget.step(static_cast<int64_t>(text->size() / 4096));
    return text->find(*part) != std::string::npos;
  }
  if (const Dict* dict = container.dict_or_null()) return dict->find(item) != nullptr;
  if (const List* list = container.list_or_null()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& each) { return equal(each, item, budget); });
  }
  if (container.is_undefined()) return false;
  throw TemplateError(fmt::format("argument of type '{}' is not iterable", type_name(container)));
}

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  const bool negative = text.front() == '-';
  if (negative) text.remove_prefix(1);
  const size_t mark = text.find('e');
  int exponent = 0;
  const char* digits_of_exponent = text.data() + mark + 1;
  if (*digits_of_exponent == '+') ++digits_of_exponent;
  std::from_chars(digits_of_exponent, text.data() + text.size(), exponent);
  std::string digits(1, text[0]);
  if (mark > 2) digits += text.substr(2, mark - 2);
  std::string out = negative ? "-" : "";
  const auto count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0)
    return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1)
    return out + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  const auto whole = static_cast<size_t>(exponent + 1);
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace mpinfer::text::jinja
