// What a template can call: methods of values, macros, functions of the environment, loops; and
// the arguments of a call.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/text/jinja/value.h"

namespace mpinfer::text::jinja {

struct Statement;
struct Scope;

struct Callable {
  std::string name;
  Value self;                        // of a method; undefined: a function or a macro
  const Statement* macro = nullptr;  // owned by the template
  std::weak_ptr<Scope> scope;        // where the macro was defined
};

struct Loop {
  Values items;
  size_t at = 0;
  int depth = 1;
  const Statement* statement = nullptr;
  std::weak_ptr<Scope> scope;
  bool has_changed_value = false;
  Values changed_value;
};

struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at a place or of a name; null when it was not given.
  const Value* find(size_t place, std::string_view name) const;
  // TemplateError when there are more positional arguments than most.
  void at_most(size_t most, std::string_view callee) const;
  int64_t integer(size_t place, std::string_view name, int64_t otherwise) const;
  bool flag(size_t place, std::string_view name, bool otherwise) const;
  std::string text(size_t place, std::string_view name, std::string_view otherwise) const;
  const Value& required(size_t place, std::string_view name, std::string_view callee) const;
};

}  // namespace mpinfer::text::jinja
