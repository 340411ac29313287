// Access to attributes and items, arithmetic and slices, as Python does them.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "lib/text/jinja/interpreter.h"
#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

[[noreturn]] void no_operation(std::string_view op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (const auto* undefined = value->as<Undefined>(); undefined != nullptr && undefined->name)
      throw TemplateError(fmt::format("'{}' is undefined", *undefined->name));
  }
  throw TemplateError(fmt::format("unsupported operand types for {}: '{}' and '{}'", op,
                                  type_name(a), type_name(b)));
}

[[noreturn]] void overflow() {
  throw TemplateError("an integer beyond 64 bits");
}

int64_t floor_division(int64_t a, int64_t b) {
  if (b == 0) throw TemplateError("division by zero");
  if (a == INT64_MIN && b == -1) overflow();
  return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

int64_t modulo(int64_t a, int64_t b) {
  if (b == 0) throw TemplateError("modulo by zero");
  if (b == -1) return 0;
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t out = 1;
  if (base == 0 || base == 1) return exponent == 0 ? 1 : base;
  if (base == -1) return exponent % 2 == 0 ? 1 : -1;
  for (int64_t i = 0; i < exponent; ++i) {
    if (__builtin_mul_overflow(out, base, &out)) overflow();
  }
  return out;
}

Value integers(std::string_view op, int64_t a, int64_t b) {
  int64_t out = 0;
  if (op == "+" && __builtin_add_overflow(a, b, &out)) overflow();
  if (op == "-" && __builtin_sub_overflow(a, b, &out)) overflow();
  if (op == "*" && __builtin_mul_overflow(a, b, &out)) overflow();
  if (op == "//") out = floor_division(a, b);
  if (op == "%") out = modulo(a, b);
  if (op == "**") {
    if (b < 0) return Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
    out = integer_power(a, b);
  }
  if (op == "/") {
    if (b == 0) throw TemplateError("division by zero");
    return Value(static_cast<double>(a) / static_cast<double>(b));
  }
  return Value(out);
}

Value reals(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") return Value(std::pow(a, b));
  if (b == 0.0) throw TemplateError("division by zero");
  if (op == "/") return Value(a / b);
  if (op == "//") return Value(std::floor(a / b));
  double rest = std::fmod(a, b);
  if (rest != 0.0 && (rest < 0.0) != (b < 0.0)) rest += b;
  return Value(rest);
}

Value repeat(const Value& value, int64_t times, Budget& budget) {
  const auto count = static_cast<size_t>(std::max<int64_t>(times, 0));
  const auto check = [&](size_t each) {
    size_t total = 0;
    if (__builtin_mul_overflow(each, count, &total)) total = SIZE_MAX;
    budget.bytes(total);
  };
  if (const std::string* text = value.text_or_null()) {
    check(text->size());
    std::string out;
    for (size_t i = 0; i < count && !text->empty(); ++i) out += *text;
    return Value::text(std::move(out));
  }
  const List* list = value.list_or_null();
  check(list->items.size() * sizeof(Value));
  Values out;
  for (size_t i = 0; i < count && !list->items.empty(); ++i)
    out.insert(out.end(), list->items.begin(), list->items.end());
  return Value::list(std::move(out), list->tuple);
}

bool is_sequence(const Value& value) {
  return value.is_text() || value.list_or_null() != nullptr;
}

Value add_sequences(const Value& a, const Value& b, Budget& budget) {
  const std::string* text = a.text_or_null();
  const std::string* other_text = b.text_or_null();
  if (text != nullptr && other_text != nullptr) {
    budget.bytes(text->size() + other_text->size());
    return Value::text(*text + *other_text);
  }
  const List* list = a.list_or_null();
  const List* other = b.list_or_null();
  if (list == nullptr || other == nullptr || list->tuple != other->tuple) no_operation("+", a, b);
  budget.bytes((list->items.size() + other->items.size()) * sizeof(Value));
  Values out = list->items;
  out.insert(out.end(), other->items.begin(), other->items.end());
  return Value::list(std::move(out), list->tuple);
}

Value loop_attribute(const Loop& loop, const std::string& name) {
  const auto at = static_cast<int64_t>(loop.at);
  const auto length = static_cast<int64_t>(loop.items.size());
  if (name == "index") return Value(at + 1);
  if (name == "index0") return Value(at);
  if (name == "revindex") return Value(length - at);
  if (name == "revindex0") return Value(length - at - 1);
  if (name == "first") return Value(at == 0);
  if (name == "last") return Value(at == length - 1);
  if (name == "length") return Value(length);
  if (name == "depth") return Value(int64_t{loop.depth});
  if (name == "depth0") return Value(int64_t{loop.depth} - 1);
  if (name == "previtem") return loop.at > 0 ? loop.items[loop.at - 1] : Value::undefined(name);
  if (name == "nextitem") return at + 1 < length ? loop.items[loop.at + 1] : Value::undefined(name);
  return Value::undefined(name);
}

Value bound_method(const Value& self, const std::string& name) {
  return Value(std::shared_ptr<const Callable>(
      std::make_shared<Callable>(Callable{name, self, nullptr, {}})));
}

Value element(const Values& items, int64_t at) {
  const auto size = static_cast<int64_t>(items.size());
  if (at < 0) at += size;
  return at < 0 || at >= size ? Value::undefined("item") : items[static_cast<size_t>(at)];
}

int64_t slice_bound(const Value& bound, int64_t otherwise, int64_t length, bool backwards) {
  if (bound.is_none() || bound.is_undefined()) return otherwise;
  int64_t value = 0;
  if (!bound.integer(&value)) throw TemplateError("slice indices must be integers or none");
  const int64_t low = backwards ? -1 : 0;
  const int64_t high = backwards ? length - 1 : length;
  if (value < 0) value = value < -length ? low : value + length;
  return std::clamp(value, low, high);
}

}  // namespace

Value Interpreter::attribute(const Value& object, const std::string& name) {
  if (const auto* undefined = object.as<Undefined>()) {
    throw TemplateError(
        undefined->name
            ? fmt::format("'{}' is undefined, so it has no attribute '{}'", *undefined->name, name)
            : fmt::format("an undefined value has no attribute '{}'", name));
  }
  if (const auto* space = object.as<std::shared_ptr<Namespace>>()) {
    const Value* found = (*space)->find(name);
    return found != nullptr ? *found : Value::undefined(name);
  }
  if (find_method(object, name) != nullptr) return bound_method(object, name);
  if (const auto* loop = object.as<std::shared_ptr<Loop>>()) return loop_attribute(**loop, name);
  if (const Dict* dict = object.dict_or_null()) {
    if (const Value* found = dict->find(std::string_view(name))) return *found;
  }
  return Value::undefined(name);
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is_undefined()) return attribute(object, to_text(key, budget_));
  int64_t at = 0;
  if (const List* list = object.list_or_null()) {
    if (key.integer(&at)) return element(list->items, at);
  } else if (const std::string* text = object.text_or_null()) {
    if (key.integer(&at)) {
      budget_.step(static_cast<int64_t>(text->size() / 4096));
      const auto length = static_cast<int64_t>(num_characters(*text));
      if (at < 0) at += length;
      if (at < 0 || at >= length) return Value::undefined("item");
      return Value::text(std::string(substring(*text, at, at + 1)));
    }
  } else if (const Dict* dict = object.dict_or_null()) {
    if (const Value* found = dict->find(key)) return *found;
  }
  const std::string* name = key.text_or_null();
  return name != nullptr ? attribute(object, *name) : Value::undefined(to_text(key, budget_));
}

Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  int64_t i = 0;
  int64_t j = 0;
  if (a.integer(&i) && b.integer(&j)) return integers(op, i, j);
  double x = 0.0;
  double y = 0.0;
  if (a.number(&x) && b.number(&y)) return reals(op, x, y);
  if (op == "+" && is_sequence(a) && is_sequence(b)) return add_sequences(a, b, budget);
  if (op == "*" && is_sequence(a) && b.integer(&j)) return repeat(a, j, budget);
  if (op == "*" && is_sequence(b) && a.integer(&i)) return repeat(b, i, budget);
  if (op == "%" && a.is_text()) {
    const List* list = b.list_or_null();
    const Values values = list != nullptr && list->tuple ? list->items : Values{b};
    return Value::text(percent_format(*a.text_or_null(), values, budget));
  }
  no_operation(op, a, b);
}

Value slice_of(const Value& object, const Value& start, const Value& stop, const Value& step,
               Budget& budget) {
  int64_t stride = 1;
  if (!step.is_none() && !step.integer(&stride))
    throw TemplateError("slice indices must be integers or none");
  if (stride == 0) throw TemplateError("slice step cannot be zero");
  if (!is_sequence(object))
    throw TemplateError(fmt::format("'{}' object cannot be sliced", type_name(object)));
  if (const std::string* text = object.text_or_null(); text != nullptr && stride == 1) {
    budget.bytes(text->size());
    const auto length = static_cast<int64_t>(num_characters(*text));
    const int64_t begin = slice_bound(start, 0, length, false);
    return Value::text(
        std::string(substring(*text, begin, slice_bound(stop, length, length, false))));
  }
  const Values items = iterate(object, budget);
  const auto length = static_cast<int64_t>(items.size());
  const bool backwards = stride < 0;
  int64_t at = slice_bound(start, backwards ? length - 1 : 0, length, backwards);
  const int64_t end = slice_bound(stop, backwards ? -1 : length, length, backwards);
  Values out;
  while (backwards ? at > end : at < end) {
    out.push_back(items[static_cast<size_t>(at)]);
    if (__builtin_add_overflow(at, stride, &at)) break;
  }
  if (!object.is_text()) return Value::list(std::move(out), object.list_or_null()->tuple);
  std::string text;
  for (const Value& part : out) text += *part.text_or_null();
  return Value::text(std::move(text));
}

std::string percent_format(std::string_view format, const Values& values, Budget& budget) {
  std::string out;
  size_t used = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    size_t end = i + 1;
    int precision = -1;
    if (end < format.size() && format[end] == '.') {
      precision = 0;
      while (++end < format.size() && format[end] >= '0' && format[end] <= '9' && precision < 100)
        precision = precision * 10 + (format[end] - '0');
    }
    const char kind = end < format.size() ? format[end] : '\0';
    i = end;
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (used >= values.size()) throw TemplateError("not enough arguments for the format");
    const Value& value = values[used++];
    double number = 0.0;
    int64_t integer = 0;
    if (kind == 's') {
      out += to_text(value, budget);
    } else if (kind == 'r') {
      out += to_repr(value, budget);
    } else if ((kind == 'd' || kind == 'i') && value.integer(&integer)) {
      out += std::to_string(integer);
    } else if ((kind == 'd' || kind == 'i') && value.number(&number) && std::abs(number) < 9e18) {
      out += std::to_string(static_cast<int64_t>(number));
    } else if (kind == 'f' && value.number(&number)) {
      out += fmt::format("{:.{}f}", number, precision < 0 ? 6 : std::min(precision, 100));
    } else {
      throw TemplateError(fmt::format("the format '%{}' does not fit {}", kind, type_name(value)));
    }
    budget.bytes(out.size());
  }
  if (used < values.size()) throw TemplateError("too many arguments for the format");
  return out;
}

}  // namespace mpinfer::text::jinja
