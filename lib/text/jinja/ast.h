// The tree of a parsed template. Nesting is bounded by the parser.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/text/jinja/value.h"

namespace mpinfer::text::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind : uint8_t {
  kConstant,
  kName,
  kList,       // parts
  kTuple,      // parts
  kDict,       // parts: key, value, key, value, …
  kAttribute,  // parts[0].name
  kItem,       // parts[0][parts[1]]
  kSlice,      // parts[0][parts[1]:parts[2]:parts[3]], absent ones null
  kCall,       // parts[0](arguments)
  kFilter,     // parts[0] | name(arguments); parts[0] null: the text of a block
  kTest,       // parts[0] is name(arguments)
  kNot,        // parts[0]
  kNegate,
  kPlus,
  kAnd,          // parts
  kOr,           // parts
  kConditional,  // parts[0] if parts[1] else parts[2] (may be null)
  kConcat,       // parts
  kArithmetic,   // parts[0] operators[0] parts[1] operators[1] …, from the left
  kCompare,      // a chain, likewise
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kConstant;
  int line = 0;
  Value constant;
  std::string name;
  std::vector<ExpressionPtr> parts;
  std::vector<std::string> operators;
  std::vector<ExpressionPtr> arguments;
  std::vector<std::pair<std::string, ExpressionPtr>> named_arguments;
};

enum class StatementKind : uint8_t {
  kText,
  kPrint,        // expression
  kIf,           // branches: condition (null: else), body
  kFor,          // targets in expression, if condition; body, else_body
  kSet,          // targets = expression
  kSetBlock,     // targets = body through the filters of expression (may be null)
  kMacro,        // name, parameters, body
  kCallBlock,    // call(parameters) expression; body is the caller
  kFilterBlock,  // expression: filters over the body
  kWith,         // parameters as assignments, body
  kBreak,
  kContinue,
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Branch {
  ExpressionPtr condition;
  Body body;
};

struct Statement {
  StatementKind kind = StatementKind::kText;
  int line = 0;
  std::string text;  // kText; name of a macro
  ExpressionPtr expression;
  ExpressionPtr condition;
  ExpressionPtr target;  // kName, kAttribute or kTuple of them
  std::vector<Branch> branches;
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  // default or null
  Body body;
  Body else_body;
  bool recursive = false;
};

}  // namespace mpinfer::text::jinja
