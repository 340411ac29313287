// Runs a parsed template over a context of values: text out. Nothing outside of the context can be
// reached; steps, bytes and nesting are bounded by Budget.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/text/jinja/ast.h"
#include "lib/text/jinja/callable.h"
#include "lib/text/jinja/value.h"

namespace mpinfer::text::jinja {

// Variables of a block, those of the blocks around it behind.
struct Scope {
  std::vector<std::pair<std::string_view, Value>> variables;
  std::shared_ptr<Scope> parent;
  void set(std::string_view name, Value value);
};
using ScopePtr = std::shared_ptr<Scope>;

class Interpreter {
 public:
  // context is borrowed. now: what strftime_now speaks of.
  Interpreter(const Dict& context, std::time_t now) : context_(context), now_(now) {}

  // Throws TemplateError; line() is where.
  std::string render(const Body& body);
  int line() const { return line_; }

  Budget& budget() { return budget_; }
  std::time_t now() const { return now_; }
  Value call(const Value& callee, const Arguments& arguments);
  Value filter(std::string_view name, const Value& value, const Arguments& arguments);
  bool test(std::string_view name, const Value& value, const Arguments& arguments);
  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& key);

 private:
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };
  class Nesting;

  Flow run(const Body& body, const ScopePtr& scope, std::string* out);
  Flow run_one(const Statement& statement, const ScopePtr& scope, std::string* out);
  void run_loop(const Statement& statement, const Value& over, int depth, const ScopePtr& scope,
                std::string* out);
  void call_block(const Statement& statement, const ScopePtr& scope, std::string* out);
  void assign(const Expression& target, Value value, const ScopePtr& scope);
  std::string text_of(const Body& body, const ScopePtr& scope);
  Value filters_over(const Expression& filters, Value text, const ScopePtr& scope);
  void append(std::string* out, std::string_view text);

  Value evaluate(const Expression& expression, const ScopePtr& scope);
  Value logical(const Expression& expression, const ScopePtr& scope);
  Value comparisons(const Expression& expression, const ScopePtr& scope);
  Value collection(const Expression& expression, const ScopePtr& scope);
  Value slice(const Expression& expression, const ScopePtr& scope);
  Arguments arguments(const Expression& expression, const ScopePtr& scope);
  Value name(const std::string& name, const ScopePtr& scope) const;
  Value call_macro(const Callable& macro, const Arguments& arguments);
  Value call_loop(const Loop& loop, const Arguments& arguments);

  const Dict& context_;
  std::time_t now_;
  Budget budget_;
  ScopePtr root_;
  int depth_ = 0;  // of evaluation
  int calls_ = 0;  // macros and loops in each other
  int line_ = 0;
};

// The language's tables; null: no such name.
using Filter = Value (*)(Interpreter&, const Value&, const Arguments&);
using Test = bool (*)(Interpreter&, const Value&, const Arguments&);
Filter find_filter(std::string_view name);
Filter find_sequence_filter(std::string_view name);
Test find_test(std::string_view name);
using Method = Value (*)(Interpreter&, const Value& self, const Arguments&);
Method find_method(const Value& self, std::string_view name);
using Function = Value (*)(Interpreter&, const Arguments&);
Function find_function(std::string_view name);

// a op b for + - * / // % **.
Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget);
// Python's a[start:stop:step]; none where absent.
Value slice_of(const Value& object, const Value& start, const Value& stop, const Value& step,
               Budget& budget);
// Python's "…" % values, for the conversions s, r, d, i, f and %.
std::string percent_format(std::string_view format, const Values& values, Budget& budget);

}  // namespace mpinfer::text::jinja
