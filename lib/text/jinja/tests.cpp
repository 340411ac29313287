// Tests (x is …) and functions (range, namespace, …) of the language.
#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "lib/text/jinja/interpreter.h"
#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // jinja2's sandbox
constexpr size_t kMaxTimeText = 4096;

bool is_number(const Value& value) {
  double number = 0.0;
  return value.number(&number) || value.as<BigInteger>() != nullptr;
}

int64_t as_integer(const Value& value, std::string_view test) {
  int64_t out = 0;
  if (!value.integer(&out))
    throw TemplateError(fmt::format("{}: '{}' is no integer", test, type_name(value)));
  return out;
}

template <bool odd>
bool parity(Interpreter&, const Value& value, const Arguments&) {
  return (as_integer(value, odd ? "odd" : "even") % 2 != 0) == odd;
}

bool divisible_by(Interpreter&, const Value& value, const Arguments& arguments) {
  const int64_t by = as_integer(arguments.required(0, "num", "divisibleby"), "divisibleby");
  if (by == 0) throw TemplateError("modulo by zero");
  return by == -1 || as_integer(value, "divisibleby") % by == 0;
}

bool is_equal(Interpreter& in, const Value& value, const Arguments& arguments) {
  return equal(value, arguments.required(0, "other", "eq"), in.budget());
}
bool is_different(Interpreter& in, const Value& value, const Arguments& arguments) {
  return !is_equal(in, value, arguments);
}
int order(Interpreter& in, const Value& value, const Arguments& arguments) {
  return compare(value, arguments.required(0, "other", "comparison"), in.budget());
}

bool is_in(Interpreter& in, const Value& value, const Arguments& arguments) {
  return contains(arguments.required(0, "seq", "in"), value, in.budget());
}

bool is_same(Interpreter& in, const Value& value, const Arguments& arguments) {
  const Value& other = arguments.required(0, "other", "sameas");
  return type_name(value) == type_name(other) && equal(value, other, in.budget());
}

bool has_items(const Value& value) {
  return value.is_text() || value.list_or_null() != nullptr || value.dict_or_null() != nullptr;
}

template <bool upper>
bool cased(Interpreter& in, const Value& value, const Arguments&) {
  return all_are(to_text(value, in.budget()),
                 upper ? CharacterClass::kUpper : CharacterClass::kLower);
}

const std::map<std::string_view, Test>& test_table() {
  using I = Interpreter;
  using V = Value;
  using A = Arguments;
  static const std::map<std::string_view, Test> kTable = {
      {"defined", [](I&, const V& v, const A&) { return !v.is_undefined(); }},
      {"undefined", [](I&, const V& v, const A&) { return v.is_undefined(); }},
      {"none", [](I&, const V& v, const A&) { return v.is_none(); }},
      {"boolean", [](I&, const V& v, const A&) { return v.as<bool>() != nullptr; }},
      {"true", [](I&, const V& v, const A&) { return v.as<bool>() != nullptr && *v.as<bool>(); }},
      {"false", [](I&, const V& v, const A&) { return v.as<bool>() != nullptr && !*v.as<bool>(); }},
      {"integer", [](I&, const V& v, const A&) { return type_name(v) == "int"; }},
      {"float", [](I&, const V& v, const A&) { return v.as<double>() != nullptr; }},
      {"number", [](I&, const V& v, const A&) { return is_number(v); }},
      {"string", [](I&, const V& v, const A&) { return v.is_text(); }},
      {"mapping", [](I&, const V& v, const A&) { return v.dict_or_null() != nullptr; }},
      {"sequence", [](I&, const V& v, const A&) { return has_items(v) || v.is_undefined(); }},
      {"iterable", [](I&, const V& v, const A&) { return has_items(v) || v.is_undefined(); }},
      {"callable",
       [](I&, const V& v, const A&) {
         return v.as<std::shared_ptr<const Callable>>() != nullptr ||
                v.as<std::shared_ptr<Loop>>() != nullptr;
       }},
      {"escaped", [](I&, const V&, const A&) { return false; }},
      {"filter",
       [](I& in, const V& v, const A&) {
         const std::string name = to_text(v, in.budget());
         return find_filter(name) != nullptr || find_sequence_filter(name) != nullptr;
       }},
      {"test",
       [](I& in, const V& v, const A&) { return find_test(to_text(v, in.budget())) != nullptr; }},
      {"odd", parity<true>},
      {"even", parity<false>},
      {"divisibleby", divisible_by},
      {"in", is_in},
      {"sameas", is_same},
      {"upper", cased<true>},
      {"lower", cased<false>},
      {"eq", is_equal},
      {"equalto", is_equal},
      {"==", is_equal},
      {"ne", is_different},
      {"!=", is_different},
      {"lt", [](I& in, const V& v, const A& a) { return order(in, v, a) < 0; }},
      {"lessthan", [](I& in, const V& v, const A& a) { return order(in, v, a) < 0; }},
      {"<", [](I& in, const V& v, const A& a) { return order(in, v, a) < 0; }},
      {"le", [](I& in, const V& v, const A& a) { return order(in, v, a) <= 0; }},
      {"<=", [](I& in, const V& v, const A& a) { return order(in, v, a) <= 0; }},
      {"gt", [](I& in, const V& v, const A& a) { return order(in, v, a) > 0; }},
      {"greaterthan", [](I& in, const V& v, const A& a) { return order(in, v, a) > 0; }},
      {">", [](I& in, const V& v, const A& a) { return order(in, v, a) > 0; }},
      {"ge", [](I& in, const V& v, const A& a) { return order(in, v, a) >= 0; }},
      {">=", [](I& in, const V& v, const A& a) { return order(in, v, a) >= 0; }}};
  return kTable;
}

Value range(Interpreter& in, const Arguments& arguments) {
  arguments.at_most(3, "range");
  arguments.required(0, "start", "range");
  const bool one = arguments.positional.size() == 1;
  const int64_t start = one ? 0 : arguments.integer(0, "start", 0);
  const int64_t stop = arguments.integer(one ? 0 : 1, "stop", 0);
  const int64_t step = arguments.integer(2, "step", 1);
  if (step == 0) throw TemplateError("range: the step must not be zero");
  Values out;
  int64_t at = start;
  while (step > 0 ? at < stop : at > stop) {
    if (static_cast<int64_t>(out.size()) == kMaxRange)
      throw TemplateError(fmt::format("range: more than {} numbers", kMaxRange));
    out.push_back(Value(at));
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  in.budget().bytes(out.size() * sizeof(Value));
  return Value::list(std::move(out));
}

Dict dict_of(Interpreter& in, const Arguments& arguments) {
  arguments.at_most(1, "dict");
  Dict dict;
  if (!arguments.positional.empty()) {
    const Value& given = arguments.positional[0];
    if (const Dict* other = given.dict_or_null()) {
      dict = *other;
    } else {
      for (const Value& pair : iterate(given, in.budget())) {
        const Values parts = iterate(pair, in.budget());
        if (parts.size() != 2) throw TemplateError("dict: an item that is no pair");
        dict.set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) dict.set(name, value);
  in.budget().bytes(dict.items().size() * sizeof(Value));
  return dict;
}

Value make_dict(Interpreter& in, const Arguments& arguments) {
  return Value::dict(dict_of(in, arguments));
}

Value make_namespace(Interpreter& in, const Arguments& arguments) {
  auto space = std::make_shared<Namespace>();
  const Dict members = dict_of(in, arguments);
  for (const auto& [key, value] : members.items()) space->set(to_text(key, in.budget()), value);
  return Value(std::move(space));
}

Value raise_exception(Interpreter& in, const Arguments& arguments) {
  throw TemplateError(
      to_text(arguments.required(0, "message", "raise_exception"), in.budget()).substr(0, 1000));
}

Value strftime_now(Interpreter& in, const Arguments& arguments) {
  const std::string format = to_text(arguments.required(0, "format", "strftime_now"), in.budget());
  if (format.empty()) return Value::text("");
  if (format.size() > kMaxTimeText) throw TemplateError("strftime_now: the format is too long");
  std::tm parts{};
  const std::time_t now = in.now();
  localtime_r(&now, &parts);
  std::string out(2 * kMaxTimeText, '\0');
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &parts));
  if (out.empty()) throw TemplateError("strftime_now: the format gives no text");
  return Value::text(std::move(out));
}

}  // namespace

Test find_test(std::string_view name) {
  const auto found = test_table().find(name);
  return found == test_table().end() ? nullptr : found->second;
}

Function find_function(std::string_view name) {
  static const std::map<std::string_view, Function> kTable = {{"range", range},
                                                              {"dict", make_dict},
                                                              {"namespace", make_namespace},
                                                              {"raise_exception", raise_exception},
                                                              {"strftime_now", strftime_now}};
  const auto found = kTable.find(name);
  return found == kTable.end() ? nullptr : found->second;
}

}  // namespace mpinfer::text::jinja
