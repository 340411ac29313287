#include "lib/text/jinja/interpreter.h"

#include <fmt/core.h>

#include <algorithm>

namespace mpinfer::text::jinja {
namespace {

constexpr int kMaxEvaluationDepth = 1000;
const std::string kLoopName = "loop";

[[noreturn]] void undefined_used(const Value& value) {
  const auto* undefined = value.as<Undefined>();
  throw TemplateError(undefined->name ? fmt::format("'{}' is undefined", *undefined->name)
                                      : "an undefined value is used");
}

}  // namespace

class Interpreter::Nesting {
 public:
  Nesting(int& depth, int limit) : depth_(depth) {
    if (++depth_ > limit) {
      --depth_;
      throw TemplateError(fmt::format("nested deeper than {}", limit));
    }
  }
  ~Nesting() { --depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  int& depth_;
};

void Scope::set(std::string_view name, Value value) {
  for (auto& [key, old] : variables) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

std::string Interpreter::render(const Body& body) {
  root_ = std::make_shared<Scope>();
  std::string out;
  run(body, root_, &out);
  return out;
}

void Interpreter::append(std::string* out, std::string_view text) {
  if (out->size() + text.size() > static_cast<size_t>(Budget::kMaxTextBytes))
    budget_.bytes(out->size() + text.size());
  out->append(text);
}

Interpreter::Flow Interpreter::run(const Body& body, const ScopePtr& scope, std::string* out) {
  for (const auto& statement : body) {
    const Flow flow = run_one(*statement, scope, out);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run_one(const Statement& statement, const ScopePtr& scope,
                                       std::string* out) {
  const Nesting nesting(depth_, kMaxEvaluationDepth);
  budget_.step();
  line_ = statement.line;
  switch (statement.kind) {
    case StatementKind::kText:
      append(out, statement.text);
      return Flow::kNormal;
    case StatementKind::kPrint: {
      const Value value = evaluate(*statement.expression, scope);
      if (const std::string* text = value.text_or_null()) {
        append(out, *text);
      } else {
        append(out, to_text(value, budget_));
      }
      return Flow::kNormal;
    }
    case StatementKind::kIf:
      for (const Branch& branch : statement.branches) {
        if (branch.condition == nullptr || truth(evaluate(*branch.condition, scope)))
          return run(branch.body, scope, out);
      }
      return Flow::kNormal;
    case StatementKind::kFor:
      run_loop(statement, evaluate(*statement.expression, scope), 1, scope, out);
      return Flow::kNormal;
    case StatementKind::kSet:
      assign(*statement.target, evaluate(*statement.expression, scope), scope);
      return Flow::kNormal;
    case StatementKind::kSetBlock: {
      Value text = Value::text(text_of(statement.body, scope));
      if (statement.expression) text = filters_over(*statement.expression, std::move(text), scope);
      assign(*statement.target, std::move(text), scope);
      return Flow::kNormal;
    }
    case StatementKind::kMacro: {
      Callable macro{statement.text, Value(), &statement, scope};
      scope->set(
          statement.text,
          Value(std::shared_ptr<const Callable>(std::make_shared<Callable>(std::move(macro)))));
      return Flow::kNormal;
    }
    case StatementKind::kCallBlock:
      call_block(statement, scope, out);
      return Flow::kNormal;
    case StatementKind::kFilterBlock:
      append(out, to_text(filters_over(*statement.expression,
                                       Value::text(text_of(statement.body, scope)), scope),
                          budget_));
      return Flow::kNormal;
    case StatementKind::kWith: {
      const auto inner = std::make_shared<Scope>();
      inner->parent = scope;
      for (const auto& [name, value] : statement.parameters)
        inner->set(name, evaluate(*value, scope));
      return run(statement.body, inner, out);
    }
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

std::string Interpreter::text_of(const Body& body, const ScopePtr& scope) {
  const auto inner = std::make_shared<Scope>();
  inner->parent = scope;
  std::string out;
  run(body, inner, &out);
  budget_.bytes(out.size());
  return out;
}

Value Interpreter::filters_over(const Expression& filters, Value text, const ScopePtr& scope) {
  const Nesting nesting(depth_, kMaxEvaluationDepth);
  const Value over = filters.parts.empty() || filters.parts[0] == nullptr
                         ? std::move(text)
                         : filters_over(*filters.parts[0], std::move(text), scope);
  return filter(filters.name, over, arguments(filters, scope));
}

void Interpreter::call_block(const Statement& statement, const ScopePtr& scope, std::string* out) {
  const Expression& call_expression = *statement.expression;
  const Value callee = evaluate(*call_expression.parts[0], scope);
  Arguments given = arguments(call_expression, scope);
  Callable caller{"caller", Value(), &statement, scope};
  given.named.emplace_back(
      "caller", Value(std::shared_ptr<const Callable>(std::make_shared<Callable>(caller))));
  append(out, to_text(call(callee, given), budget_));
}

void Interpreter::assign(const Expression& target, Value value, const ScopePtr& scope) {
  if (target.kind == ExpressionKind::kName) {
    scope->set(target.name, std::move(value));
  } else if (target.kind == ExpressionKind::kAttribute) {
    const Value object = evaluate(*target.parts[0], scope);
    const auto* space = object.as<std::shared_ptr<Namespace>>();
    if (space == nullptr) {
      throw TemplateError(fmt::format("cannot assign to an attribute of {}", type_name(object)));
    }
    (*space)->set(target.name, std::move(value));
  } else {
    const Values values = iterate(value, budget_);
    if (values.size() != target.parts.size()) {
      throw TemplateError(
          fmt::format("{} values for {} names", values.size(), target.parts.size()));
    }
    for (size_t i = 0; i < values.size(); ++i) assign(*target.parts[i], values[i], scope);
  }
}

void Interpreter::run_loop(const Statement& statement, const Value& over, int depth,
                           const ScopePtr& scope, std::string* out) {
  const auto loop = std::make_shared<Loop>();
  loop->items = iterate(over, budget_);
  loop->depth = depth;
  loop->statement = &statement;
  loop->scope = scope;
  if (statement.condition != nullptr) {
    Values kept;
    for (Value& item : loop->items) {
      const auto inner = std::make_shared<Scope>();
      inner->parent = scope;
      assign(*statement.target, item, inner);
      if (truth(evaluate(*statement.condition, inner))) kept.push_back(std::move(item));
    }
    loop->items = std::move(kept);
  }
  for (size_t i = 0; i < loop->items.size(); ++i) {
    budget_.step();
    loop->at = i;
    const auto inner = std::make_shared<Scope>();
    inner->parent = scope;
    inner->set(kLoopName, Value(loop));
    assign(*statement.target, loop->items[i], inner);
    if (run(statement.body, inner, out) == Flow::kBreak) break;
  }
  if (!loop->items.empty() || statement.else_body.empty()) return;
  const auto inner = std::make_shared<Scope>();
  inner->parent = scope;
  run(statement.else_body, inner, out);
}

Value Interpreter::name(const std::string& name, const ScopePtr& scope) const {
  for (const Scope* at = scope.get(); at != nullptr; at = at->parent.get()) {
    for (const auto& [key, value] : at->variables) {
      if (key == name) return value;
    }
  }
  if (const Value* value = context_.find(std::string_view(name))) return *value;
  if (find_function(name) != nullptr) {
    return Value(std::shared_ptr<const Callable>(
        std::make_shared<Callable>(Callable{name, Value(), nullptr, {}})));
  }
  return Value::undefined(name);
}

Value Interpreter::evaluate(const Expression& expression, const ScopePtr& scope) {
  const Nesting nesting(depth_, kMaxEvaluationDepth);
  budget_.part();
  const auto part = [&](size_t i) { return evaluate(*expression.parts[i], scope); };
  switch (expression.kind) {
    case ExpressionKind::kConstant:
      return expression.constant;
    case ExpressionKind::kName:
      return name(expression.name, scope);
    case ExpressionKind::kList:
    case ExpressionKind::kTuple:
    case ExpressionKind::kDict:
      return collection(expression, scope);
    case ExpressionKind::kAttribute:
      return attribute(part(0), expression.name);
    case ExpressionKind::kItem: {
      const Value object = part(0);
      return item(object, part(1));
    }
    case ExpressionKind::kSlice:
      return slice(expression, scope);
    case ExpressionKind::kCall: {
      const Value callee = part(0);
      return call(callee, arguments(expression, scope));
    }
    case ExpressionKind::kFilter: {
      const Value over = part(0);
      return filter(expression.name, over, arguments(expression, scope));
    }
    case ExpressionKind::kTest: {
      const Value over = part(0);
      return Value(test(expression.name, over, arguments(expression, scope)));
    }
    case ExpressionKind::kNot:
      return Value(!truth(part(0)));
    case ExpressionKind::kNegate:
      return arithmetic("-", Value(int64_t{0}), part(0), budget_);
    case ExpressionKind::kPlus:
      return arithmetic("+", Value(int64_t{0}), part(0), budget_);
    case ExpressionKind::kAnd:
    case ExpressionKind::kOr:
      return logical(expression, scope);
    case ExpressionKind::kConditional:
      if (truth(part(1))) return part(0);
      return expression.parts[2] ? part(2) : Value();
    case ExpressionKind::kConcat: {
      std::string out;
      for (size_t i = 0; i < expression.parts.size(); ++i) append(&out, to_text(part(i), budget_));
      budget_.bytes(out.size());
      return Value::text(std::move(out));
    }
    case ExpressionKind::kArithmetic: {
      Value value = part(0);
      for (size_t i = 0; i < expression.operators.size(); ++i)
        value = arithmetic(expression.operators[i], value, part(i + 1), budget_);
      return value;
    }
    case ExpressionKind::kCompare:
      return comparisons(expression, scope);
  }
  return Value();
}

Value Interpreter::logical(const Expression& expression, const ScopePtr& scope) {
  const bool stop_at = expression.kind == ExpressionKind::kOr;
  Value value;
  for (const ExpressionPtr& part : expression.parts) {
    value = evaluate(*part, scope);
    if (truth(value) == stop_at) break;
  }
  return value;
}

Value Interpreter::comparisons(const Expression& expression, const ScopePtr& scope) {
  Value left = evaluate(*expression.parts[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.parts[i + 1], scope);
    const std::string& op = expression.operators[i];
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = equal(left, right, budget_) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(right, left, budget_) == (op == "in");
    } else {
      if (left.is_undefined()) undefined_used(left);
      if (right.is_undefined()) undefined_used(right);
      const int order = compare(left, right, budget_);
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::collection(const Expression& expression, const ScopePtr& scope) {
  if (expression.kind == ExpressionKind::kDict) {
    Dict dict;
    for (size_t i = 0; i < expression.parts.size(); i += 2) {
      const Value key = evaluate(*expression.parts[i], scope);
      dict.set(key, evaluate(*expression.parts[i + 1], scope));
    }
    return Value::dict(std::move(dict));
  }
  Values values;
  for (const ExpressionPtr& part : expression.parts) values.push_back(evaluate(*part, scope));
  return Value::list(std::move(values), expression.kind == ExpressionKind::kTuple);
}

Value Interpreter::slice(const Expression& expression, const ScopePtr& scope) {
  const auto bound = [&](size_t i) {
    return expression.parts[i] ? evaluate(*expression.parts[i], scope) : Value::none();
  };
  const Value object = evaluate(*expression.parts[0], scope);
  if (object.is_undefined()) undefined_used(object);
  const Value start = bound(1);
  const Value stop = bound(2);
  return slice_of(object, start, stop, bound(3), budget_);
}

Arguments Interpreter::arguments(const Expression& expression, const ScopePtr& scope) {
  Arguments out;
  for (const ExpressionPtr& argument : expression.arguments)
    out.positional.push_back(evaluate(*argument, scope));
  for (const auto& [name, argument] : expression.named_arguments)
    out.named.emplace_back(name, evaluate(*argument, scope));
  return out;
}

Value Interpreter::filter(std::string_view name, const Value& value, const Arguments& arguments) {
  budget_.step();
  Filter found = find_filter(name);
  if (found == nullptr) found = find_sequence_filter(name);
  if (found == nullptr) throw TemplateError(fmt::format("no filter named '{}'", name));
  return found(*this, value, arguments);
}

bool Interpreter::test(std::string_view name, const Value& value, const Arguments& arguments) {
  const Test found = find_test(name);
  if (found == nullptr) throw TemplateError(fmt::format("no test named '{}'", name));
  return found(*this, value, arguments);
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  budget_.step();
  if (callee.is_undefined()) undefined_used(callee);
  if (const auto* loop = callee.as<std::shared_ptr<Loop>>()) return call_loop(**loop, arguments);
  const auto* callable = callee.as<std::shared_ptr<const Callable>>();
  if (callable == nullptr)
    throw TemplateError(fmt::format("'{}' object is not callable", type_name(callee)));
  if ((*callable)->macro != nullptr) return call_macro(**callable, arguments);
  if ((*callable)->self.is_undefined()) return find_function((*callable)->name)(*this, arguments);
  return find_method((*callable)->self, (*callable)->name)(*this, (*callable)->self, arguments);
}

Value Interpreter::call_macro(const Callable& macro, const Arguments& arguments) {
  const Nesting nesting(calls_, Budget::kMaxDepth);
  const Statement& statement = *macro.macro;
  const auto& parameters = statement.parameters;
  arguments.at_most(parameters.size(), fmt::format("macro {}", macro.name));
  const auto scope = std::make_shared<Scope>();
  const ScopePtr defined = macro.scope.lock();
  scope->parent = defined ? defined : root_;
  std::vector<bool> given(parameters.size(), false);
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find_if(parameters.begin(), parameters.end(),
                                    [&](const auto& parameter) { return parameter.first == name; });
    if (found == parameters.end() && name != "caller")
      throw TemplateError(fmt::format("macro {} has no parameter {}", macro.name, name));
    if (found == parameters.end()) {
      scope->set("caller", value);
    } else {
      scope->set(found->first, value);
      given[static_cast<size_t>(found - parameters.begin())] = true;
    }
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (given[i]) continue;
    const auto& [name, fallback] = parameters[i];
    if (i < arguments.positional.size()) {
      scope->set(name, arguments.positional[i]);
    } else {
      scope->set(name, fallback ? evaluate(*fallback, scope) : Value::undefined(name));
    }
  }
  std::string out;
  run(statement.body, scope, &out);
  budget_.bytes(out.size());
  return Value::text(std::move(out));
}

Value Interpreter::call_loop(const Loop& loop, const Arguments& arguments) {
  const Nesting nesting(calls_, Budget::kMaxDepth);
  if (!loop.statement->recursive) throw TemplateError("the loop is not recursive");
  const Value over = arguments.required(0, "iterable", "loop");
  ScopePtr scope = loop.scope.lock();
  std::string out;
  run_loop(*loop.statement, over, loop.depth + 1, scope ? scope : root_, &out);
  budget_.bytes(out.size());
  return Value::text(std::move(out));
}

}  // namespace mpinfer::text::jinja
