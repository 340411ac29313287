#include "lib/text/jinja/expression_parser.h"

#include <algorithm>
#include <charconv>

namespace mpinfer::text::jinja {
namespace {

constexpr int kMostFilters = 60;  // in a row; each nests the tree by one

bool in(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

}  // namespace

void ExpressionParser::fail(const std::string& what) const {
  throw TemplateError(fmt::format("line {}: {}", peek().line, what));
}

std::string ExpressionParser::describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "end of the template";
    case TokenKind::kPrintEnd:
      return "'}}'";
    case TokenKind::kBlockEnd:
      return "'%}'";
    default:
      return fmt::format("'{}'", token.text.substr(0, 40));
  }
}

const Token& ExpressionParser::peek(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

const Token& ExpressionParser::next() {
  const Token& token = peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

const Token& ExpressionParser::expect(TokenKind kind) {
  if (peek().kind != kind) fail(fmt::format("unexpected {}", describe(peek())));
  return next();
}

bool ExpressionParser::is_name(std::string_view name) const {
  return peek().kind == TokenKind::kName && peek().text == name;
}
bool ExpressionParser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  next();
  return true;
}
void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) fail(fmt::format("expected {}, not {}", name, describe(peek())));
}
bool ExpressionParser::is_operator(std::string_view op) const {
  return peek().kind == TokenKind::kOperator && peek().text == op;
}
bool ExpressionParser::skip_operator(std::string_view op) {
  if (!is_operator(op)) return false;
  next();
  return true;
}
void ExpressionParser::expect_operator(std::string_view op) {
  if (!skip_operator(op)) fail(fmt::format("expected '{}', not {}", op, describe(peek())));
}

ExpressionPtr ExpressionParser::make(ExpressionKind kind, ExpressionPtr first) const {
  auto out = std::make_unique<Expression>();
  out->kind = kind;
  out->line = peek().line;
  if (first != nullptr) out->parts.push_back(std::move(first));
  return out;
}

bool ExpressionParser::ends_tuple(std::string_view end_name) const {
  if (peek().kind == TokenKind::kPrintEnd || peek().kind == TokenKind::kBlockEnd ||
      peek().kind == TokenKind::kEnd || is_operator(")"))
    return true;
  return !end_name.empty() && is_name(end_name);
}

ExpressionPtr ExpressionParser::tuple(bool with_conditional, std::string_view end_name,
                                      bool parentheses) {
  const auto part = [&] { return with_conditional ? expression() : either(); };
  auto out = make(ExpressionKind::kTuple);
  bool commas = false;
  while (!ends_tuple(end_name)) {
    out->parts.push_back(part());
    if (!is_operator(",")) break;
    commas = true;
    next();
  }
  if (commas) return out;
  if (out->parts.empty()) {
    if (!parentheses) fail(fmt::format("expected an expression, not {}", describe(peek())));
    return out;
  }
  return std::move(out->parts.front());
}

ExpressionPtr ExpressionParser::target(std::string_view end_name) {
  const Nesting nesting(*this);
  auto out = make(ExpressionKind::kTuple);
  bool commas = false;
  while (true) {
    if (skip_operator("(")) {
      out->parts.push_back(target(""));
      expect_operator(")");
    } else {
      auto name = make(ExpressionKind::kName);
      name->name = expect(TokenKind::kName).text;
      if (in(name->name, {"true", "false", "none", "True", "False", "None"}))
        fail(fmt::format("cannot assign to {}", name->name));
      if (end_name.empty() && skip_operator(".")) {
        auto attribute = make(ExpressionKind::kAttribute, std::move(name));
        attribute->name = expect(TokenKind::kName).text;
        name = std::move(attribute);
      }
      out->parts.push_back(std::move(name));
    }
    if (!skip_operator(",")) break;
    commas = true;
    if ((!end_name.empty() && is_name(end_name)) || is_operator(")") || is_operator("=")) break;
  }
  return commas ? std::move(out) : std::move(out->parts.front());
}

ExpressionPtr ExpressionParser::expression() {
  const Nesting nesting(*this);
  ExpressionPtr out = either();
  for (int count = 0; skip_name("if"); ++count) {
    if (count == Budget::kMaxDepth) fail("too many conditionals in a row");
    out = make(ExpressionKind::kConditional, std::move(out));
    out->parts.push_back(either());
    out->parts.push_back(skip_name("else") ? expression() : nullptr);
  }
  return out;
}

ExpressionPtr ExpressionParser::either() {
  ExpressionPtr first = both();
  if (!is_name("or")) return first;
  auto out = make(ExpressionKind::kOr, std::move(first));
  while (skip_name("or")) out->parts.push_back(both());
  return out;
}

ExpressionPtr ExpressionParser::both() {
  ExpressionPtr first = negation();
  if (!is_name("and")) return first;
  auto out = make(ExpressionKind::kAnd, std::move(first));
  while (skip_name("and")) out->parts.push_back(negation());
  return out;
}

ExpressionPtr ExpressionParser::negation() {
  if (!is_name("not")) return comparison();
  const Nesting nesting(*this);
  next();
  return make(ExpressionKind::kNot, negation());
}

ExpressionPtr ExpressionParser::comparison() {
  ExpressionPtr first = sum();
  auto out = make(ExpressionKind::kCompare);
  out->parts.push_back(std::move(first));
  while (true) {
    if (peek().kind == TokenKind::kOperator &&
        in(peek().text, {"==", "!=", "<", "<=", ">", ">="})) {
      out->operators.push_back(next().text);
    } else if (skip_name("in")) {
      out->operators.emplace_back("in");
    } else if (is_name("not") && peek(1).kind == TokenKind::kName && peek(1).text == "in") {
      next();
      next();
      out->operators.emplace_back("not in");
    } else {
      break;
    }
    out->parts.push_back(sum());
  }
  return out->operators.empty() ? std::move(out->parts.front()) : std::move(out);
}

ExpressionPtr ExpressionParser::sum() {
  auto out = make(ExpressionKind::kArithmetic, concatenation());
  while (is_operator("+") || is_operator("-")) {
    out->operators.push_back(next().text);
    out->parts.push_back(concatenation());
  }
  return out->operators.empty() ? std::move(out->parts.front()) : std::move(out);
}

ExpressionPtr ExpressionParser::concatenation() {
  ExpressionPtr first = product();
  if (!is_operator("~")) return first;
  auto out = make(ExpressionKind::kConcat, std::move(first));
  while (skip_operator("~")) out->parts.push_back(product());
  return out;
}

ExpressionPtr ExpressionParser::product() {
  auto out = make(ExpressionKind::kArithmetic, power());
  while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
    out->operators.push_back(next().text);
    out->parts.push_back(power());
  }
  return out->operators.empty() ? std::move(out->parts.front()) : std::move(out);
}

ExpressionPtr ExpressionParser::power() {
  auto out = make(ExpressionKind::kArithmetic, unary());
  while (is_operator("**")) {
    out->operators.push_back(next().text);
    out->parts.push_back(unary());
  }
  return out->operators.empty() ? std::move(out->parts.front()) : std::move(out);
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  const Nesting nesting(*this);
  ExpressionPtr out;
  if (skip_operator("-")) {
    out = make(ExpressionKind::kNegate, unary(false));
  } else if (skip_operator("+")) {
    out = make(ExpressionKind::kPlus, unary(false));
  } else {
    out = primary();
  }
  out = postfix(std::move(out));
  return with_filters ? filtered(std::move(out)) : std::move(out);
}

ExpressionPtr ExpressionParser::integer(const std::string& digits) const {
  auto out = make(ExpressionKind::kConstant);
  int64_t value = 0;
  const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end.ec != std::errc{}) fail(fmt::format("the integer {} is too large", digits.substr(0, 40)));
  out->constant = Value(value);
  return out;
}

ExpressionPtr ExpressionParser::primary() {
  const Token token = peek();
  if (is_operator("[")) return list();
  if (is_operator("{")) return dict();
  if (skip_operator("(")) {
    ExpressionPtr inner = tuple(true, "", /*parentheses=*/true);
    expect_operator(")");
    return inner;
  }
  auto out = make(ExpressionKind::kConstant);
  if (token.kind == TokenKind::kName) {
    next();
    if (in(token.text, {"true", "True", "false", "False"})) {
      out->constant = Value(in(token.text, {"true", "True"}));
    } else if (in(token.text, {"none", "None"})) {
      out->constant = Value::none();
    } else {
      out->kind = ExpressionKind::kName;
      out->name = token.text;
    }
  } else if (token.kind == TokenKind::kString) {
    std::string text;
    while (peek().kind == TokenKind::kString) text += next().text;
    out->constant = Value::text(std::move(text));
  } else if (token.kind == TokenKind::kInteger) {
    next();
    return integer(token.text);
  } else if (token.kind == TokenKind::kFloat) {
    next();
    double value = 0.0;
    std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    out->constant = Value(value);
  } else {
    fail(fmt::format("expected an expression, not {}", describe(token)));
  }
  return out;
}

ExpressionPtr ExpressionParser::list() {
  expect_operator("[");
  auto out = make(ExpressionKind::kList);
  while (!skip_operator("]")) {
    if (!out->parts.empty()) {
      expect_operator(",");
      if (skip_operator("]")) break;
    }
    out->parts.push_back(expression());
  }
  return out;
}

ExpressionPtr ExpressionParser::dict() {
  expect_operator("{");
  auto out = make(ExpressionKind::kDict);
  while (!skip_operator("}")) {
    if (!out->parts.empty()) {
      expect_operator(",");
      if (skip_operator("}")) break;
    }
    out->parts.push_back(expression());
    expect_operator(":");
    out->parts.push_back(expression());
  }
  return out;
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr node) {
  int count = 0;
  while (true) {
    if (++count > kMostFilters) fail("too many accesses in a row");
    if (skip_operator(".")) {
      if (peek().kind == TokenKind::kInteger) {
        auto item = make(ExpressionKind::kItem, std::move(node));
        item->parts.push_back(integer(next().text));
        node = std::move(item);
        continue;
      }
      auto attribute = make(ExpressionKind::kAttribute, std::move(node));
      attribute->name = expect(TokenKind::kName).text;
      node = std::move(attribute);
    } else if (is_operator("[")) {
      node = subscript(std::move(node));
    } else if (is_operator("(")) {
      node = call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr node) {
  expect_operator("[");
  auto out = make(ExpressionKind::kItem, std::move(node));
  const auto bound = [&]() -> ExpressionPtr {
    return is_operator(":") || is_operator("]") ? nullptr : expression();
  };
  ExpressionPtr first = bound();
  if (!is_operator(":")) {
    if (first == nullptr) fail("expected a subscript");
    out->parts.push_back(std::move(first));
    expect_operator("]");
    return out;
  }
  out->kind = ExpressionKind::kSlice;
  out->parts.push_back(std::move(first));
  next();
  out->parts.push_back(bound());
  out->parts.push_back(skip_operator(":") ? bound() : nullptr);
  expect_operator("]");
  return out;
}

void ExpressionParser::arguments(Expression* out) {
  expect_operator("(");
  bool any = false;
  while (!skip_operator(")")) {
    if (any) {
      expect_operator(",");
      if (skip_operator(")")) return;
    }
    any = true;
    if (is_operator("*") || is_operator("**")) fail("* and ** in calls are not supported");
    if (peek().kind == TokenKind::kName && peek(1).kind == TokenKind::kOperator &&
        peek(1).text == "=") {
      std::string name = next().text;
      next();
      out->named_arguments.emplace_back(std::move(name), expression());
    } else {
      if (!out->named_arguments.empty()) fail("a positional argument follows a named one");
      out->arguments.push_back(expression());
    }
  }
}

ExpressionPtr ExpressionParser::call(ExpressionPtr node) {
  auto out = make(ExpressionKind::kCall, std::move(node));
  arguments(out.get());
  return out;
}

ExpressionPtr ExpressionParser::filters(ExpressionPtr over, bool first_without_pipe) {
  ExpressionPtr node = std::move(over);
  bool bare = first_without_pipe;
  for (int count = 0; bare || is_operator("|"); ++count) {
    if (count == kMostFilters) fail("too many filters in a row");
    if (!bare) next();
    bare = false;
    auto filter = make(ExpressionKind::kFilter);
    filter->parts.push_back(std::move(node));
    filter->name = expect(TokenKind::kName).text;
    while (skip_operator(".")) filter->name += "." + expect(TokenKind::kName).text;
    if (is_operator("(")) arguments(filter.get());
    node = std::move(filter);
  }
  return node;
}

ExpressionPtr ExpressionParser::filtered(ExpressionPtr node) {
  for (int count = 0; count < kMostFilters; ++count) {
    if (is_operator("|")) {
      node = filters(std::move(node));
    } else if (is_name("is")) {
      node = test(std::move(node));
    } else if (is_operator("(")) {
      node = call(std::move(node));
    } else {
      return node;
    }
  }
  fail("too many filters and tests in a row");
}

ExpressionPtr ExpressionParser::test(ExpressionPtr node) {
  expect_name("is");
  const bool negated = skip_name("not");
  auto out = make(ExpressionKind::kTest, std::move(node));
  out->name = expect(TokenKind::kName).text;
  while (skip_operator(".")) out->name += "." + expect(TokenKind::kName).text;
  const Token& token = peek();
  const bool operand = token.kind == TokenKind::kString || token.kind == TokenKind::kInteger ||
                       token.kind == TokenKind::kFloat ||
                       (token.kind == TokenKind::kName && !in(token.text, {"else", "or", "and"})) ||
                       (token.kind == TokenKind::kOperator && in(token.text, {"[", "{"}));
  if (is_operator("(")) {
    arguments(out.get());
  } else if (operand) {
    if (is_name("is")) fail("tests cannot be chained with is");
    const Nesting nesting(*this);
    out->arguments.push_back(postfix(primary()));
  }
  return negated ? make(ExpressionKind::kNot, std::move(out)) : std::move(out);
}

}  // namespace mpinfer::text::jinja
