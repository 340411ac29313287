// Filters over sequences: choosing, mapping, ordering, grouping.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "lib/text/jinja/interpreter.h"
#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

// An attribute path as jinja2 reads it: names and indices between dots.
Value by_path(Interpreter& in, Value value, const Value& path, const Value* fallback = nullptr) {
  int64_t index = 0;
  if (path.integer(&index)) {
    value = in.item(value, path);
    return value.is_undefined() && fallback != nullptr ? *fallback : value;
  }
  const std::string* text = path.text_or_null();
  if (text == nullptr) throw TemplateError("an attribute must be a string or an integer");
  for (const std::string_view part : split_at(*text, ".", -1)) {
    const auto end = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool number = end.ec == std::errc{} && end.ptr == part.data() + part.size();
    value = in.item(value, number ? Value(index) : Value::text(std::string(part)));
    if (value.is_undefined() && fallback != nullptr) value = *fallback;
  }
  return value;
}

Value folded(const Value& value, bool case_sensitive) {
  const std::string* text = value.text_or_null();
  return text == nullptr || case_sensitive ? value : Value::text(to_lower(*text));
}

// What a value is ordered by: attributes (a,b), letters without case unless asked for.
Value sort_key(Interpreter& in, const Value& item, const Value* attribute, bool case_sensitive) {
  if (attribute == nullptr || attribute->is_none()) return folded(item, case_sensitive);
  const std::string* text = attribute->text_or_null();
  if (text == nullptr || text->find(',') == std::string::npos)
    return folded(by_path(in, item, *attribute), case_sensitive);
  Values keys;
  for (const std::string_view part : split_at(*text, ",", -1)) {
    keys.push_back(folded(by_path(in, item, Value::text(std::string(part))), case_sensitive));
  }
  return Value::list(std::move(keys));
}

struct Keyed {
  Value key;
  Value item;
};

std::vector<Keyed> keyed(Interpreter& in, const Values& items, const Value* attribute,
                         bool case_sensitive) {
  std::vector<Keyed> out;
  in.budget().bytes(items.size() * sizeof(Keyed));
  for (const Value& item : items)
    out.push_back({sort_key(in, item, attribute, case_sensitive), item});
  return out;
}

// stable_sort may not be left by an exception half way with moved-from values in use afterwards:
// the vector is dropped then.
void sort_keyed(Interpreter& in, std::vector<Keyed>* items, bool reverse) {
  std::stable_sort(items->begin(), items->end(), [&](const Keyed& a, const Keyed& b) {
    const int order = compare(a.key, b.key, in.budget());
    return reverse ? order > 0 : order < 0;
  });
}

Value list_of(std::vector<Keyed> items) {
  Values out;
  for (Keyed& each : items) out.push_back(std::move(each.item));
  return Value::list(std::move(out));
}

Value sort(Interpreter& in, const Value& value, const Arguments& arguments) {
  auto items = keyed(in, iterate(value, in.budget()), arguments.find(2, "attribute"),
                     arguments.flag(1, "case_sensitive", false));
  sort_keyed(in, &items, arguments.flag(0, "reverse", false));
  return list_of(std::move(items));
}

Value dict_sort(Interpreter& in, const Value& value, const Arguments& arguments) {
  const Dict* dict = value.dict_or_null();
  if (dict == nullptr) throw TemplateError("dictsort needs a mapping");
  const std::string by = arguments.text(1, "by", "key");
  if (by != "key" && by != "value") throw TemplateError("dictsort: by must be key or value");
  std::vector<Keyed> items;
  for (const auto& [key, item] : dict->items()) {
    items.push_back({folded(by == "key" ? key : item, arguments.flag(0, "case_sensitive", false)),
                     Value::list({key, item}, /*tuple=*/true)});
  }
  sort_keyed(in, &items, arguments.flag(2, "reverse", false));
  return list_of(std::move(items));
}

Value unique(Interpreter& in, const Value& value, const Arguments& arguments) {
  Dict seen;
  Values out;
  for (const Keyed& each : keyed(in, iterate(value, in.budget()), arguments.find(1, "attribute"),
                                 arguments.flag(0, "case_sensitive", false))) {
    if (seen.find(each.key) != nullptr) continue;
    seen.set(each.key, Value::none());
    out.push_back(each.item);
  }
  return Value::list(std::move(out));
}

template <bool most>
Value extreme(Interpreter& in, const Value& value, const Arguments& arguments) {
  const auto items = keyed(in, iterate(value, in.budget()), arguments.find(1, "attribute"),
                           arguments.flag(0, "case_sensitive", false));
  if (items.empty()) return Value::undefined("item of an empty sequence");
  const Keyed* best = &items.front();
  for (const Keyed& each : items) {
    const int order = compare(each.key, best->key, in.budget());
    if (most ? order > 0 : order < 0) best = &each;
  }
  return best->item;
}

Value group_by(Interpreter& in, const Value& value, const Arguments& arguments) {
  const Value& attribute = arguments.required(0, "attribute", "groupby");
  const Value* fallback = arguments.find(1, "default");
  const bool case_sensitive = arguments.flag(2, "case_sensitive", false);
  std::vector<Keyed> items;
  for (const Value& item : iterate(value, in.budget()))
    items.push_back({folded(by_path(in, item, attribute, fallback), case_sensitive), item});
  sort_keyed(in, &items, false);
  Values out;
  for (size_t i = 0; i < items.size();) {
    Values members;
    const size_t first = i;
    while (i < items.size() && equal(items[i].key, items[first].key, in.budget()))
      members.push_back(items[i++].item);
    out.push_back(Value::list(
        {by_path(in, items[first].item, attribute, fallback), Value::list(std::move(members))},
        /*tuple=*/true));
  }
  return Value::list(std::move(out));
}

Value sum(Interpreter& in, const Value& value, const Arguments& arguments) {
  const Value* attribute = arguments.find(0, "attribute");
  const Value* start = arguments.find(1, "start");
  Value total = start != nullptr ? *start : Value(int64_t{0});
  for (const Value& item : iterate(value, in.budget())) {
    const bool whole = attribute == nullptr || attribute->is_none();
    total = arithmetic("+", total, whole ? item : by_path(in, item, *attribute), in.budget());
  }
  return total;
}

Value join(Interpreter& in, const Value& value, const Arguments& arguments) {
  const Value* separator = arguments.find(0, "d");
  const Value* attribute = arguments.find(1, "attribute");
  const std::string between = separator != nullptr ? to_text(*separator, in.budget()) : "";
  std::string out;
  bool first = true;
  for (const Value& item : iterate(value, in.budget())) {
    if (!first) out += between;
    first = false;
    out +=
        to_text(attribute == nullptr || attribute->is_none() ? item : by_path(in, item, *attribute),
                in.budget());
    if (out.size() > static_cast<size_t>(Budget::kMaxTextBytes)) break;
  }
  in.budget().bytes(out.size());
  return Value::text(std::move(out));
}

Value map(Interpreter& in, const Value& value, const Arguments& arguments) {
  Values out;
  const Values items = iterate(value, in.budget());
  if (arguments.positional.empty()) {
    const Value& attribute = arguments.required(0, "attribute", "map");
    const Value* fallback = arguments.find(1, "default");
    for (const Value& item : items) {
      in.budget().step();
      out.push_back(by_path(in, item, attribute, fallback));
    }
    return Value::list(std::move(out));
  }
  Arguments rest = arguments;
  const std::string name = arguments.text(0, "filter", "");
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : items) out.push_back(in.filter(name, item, rest));
  return Value::list(std::move(out));
}

// select, reject, selectattr, rejectattr.
template <bool keep, bool attribute>
Value choose(Interpreter& in, const Value& value, const Arguments& arguments) {
  Arguments rest = arguments;
  Value path;
  if (attribute) {
    path = arguments.required(0, "attribute", "selectattr");
    rest.positional.erase(rest.positional.begin());
  }
  std::string name;
  if (!rest.positional.empty()) {
    name = rest.text(0, "test", "");
    rest.positional.erase(rest.positional.begin());
  }
  Values out;
  for (const Value& item : iterate(value, in.budget())) {
    in.budget().step();
    const Value over = attribute ? by_path(in, item, path) : item;
    const bool holds = name.empty() ? truth(over) : in.test(name, over, rest);
    if (holds == keep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value first(Interpreter& in, const Value& value, const Arguments&) {
  if (value.is_text()) return in.item(value, Value(int64_t{0}));
  const Values items = iterate(value, in.budget());
  return items.empty() ? Value::undefined("first item of an empty sequence") : items.front();
}

Value last(Interpreter& in, const Value& value, const Arguments&) {
  if (value.is_text()) return in.item(value, Value(int64_t{-1}));
  const Values items = iterate(value, in.budget());
  return items.empty() ? Value::undefined("last item of an empty sequence") : items.back();
}

Value reverse(Interpreter& in, const Value& value, const Arguments&) {
  return slice_of(
      value.dict_or_null() != nullptr ? Value::list(iterate(value, in.budget())) : value,
      Value::none(), Value::none(), Value(int64_t{-1}), in.budget());
}

Value as_list(Interpreter& in, const Value& value, const Arguments&) {
  return Value::list(iterate(value, in.budget()));
}

Value items_of(Interpreter& in, const Value& value, const Arguments& arguments) {
  if (value.is_undefined()) return Value::list({});
  if (value.dict_or_null() == nullptr) throw TemplateError("items needs a mapping");
  return find_method(value, "items")(in, value, arguments);
}

Value batch(Interpreter& in, const Value& value, const Arguments& arguments) {
  const int64_t count = arguments.integer(0, "linecount", 0);
  if (count < 1 || count > 100'000) throw TemplateError("batch: the count is outside [1, 100000]");
  const Value* fill = arguments.find(1, "fill_with");
  const auto size = static_cast<size_t>(count);
  Values out;
  Values row;
  for (const Value& item : iterate(value, in.budget())) {
    row.push_back(item);
    if (row.size() == size) out.push_back(Value::list(std::exchange(row, {})));
  }
  if (!row.empty()) {
    while (fill != nullptr && row.size() < size) row.push_back(*fill);
    out.push_back(Value::list(std::move(row)));
  }
  return Value::list(std::move(out));
}

Value slice(Interpreter& in, const Value& value, const Arguments& arguments) {
  const int64_t slices = arguments.integer(0, "slices", 0);
  if (slices < 1 || slices > 100'000)
    throw TemplateError("slice: the count is outside [1, 100000]");
  const Value* fill = arguments.find(1, "fill_with");
  const Values items = iterate(value, in.budget());
  const auto count = static_cast<size_t>(slices);
  const size_t each = items.size() / count;
  const size_t longer = items.size() % count;
  Values out;
  size_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    Values row;
    for (size_t end = at + each + (i < longer ? 1 : 0); at < end; ++at) row.push_back(items[at]);
    if (fill != nullptr && i >= longer && longer > 0) row.push_back(*fill);
    out.push_back(Value::list(std::move(row)));
  }
  return Value::list(std::move(out));
}

}  // namespace

Filter find_sequence_filter(std::string_view name) {
  static const std::map<std::string_view, Filter> kTable = {{"batch", batch},
                                                            {"dictsort", dict_sort},
                                                            {"first", first},
                                                            {"groupby", group_by},
                                                            {"items", items_of},
                                                            {"join", join},
                                                            {"last", last},
                                                            {"list", as_list},
                                                            {"map", map},
                                                            {"max", extreme<true>},
                                                            {"min", extreme<false>},
                                                            {"reject", choose<false, false>},
                                                            {"rejectattr", choose<false, true>},
                                                            {"reverse", reverse},
                                                            {"select", choose<true, false>},
                                                            {"selectattr", choose<true, true>},
                                                            {"slice", slice},
                                                            {"sort", sort},
                                                            {"sum", sum},
                                                            {"unique", unique}};
  const auto found = kTable.find(name);
  return found == kTable.end() ? nullptr : found->second;
}

}  // namespace mpinfer::text::jinja
