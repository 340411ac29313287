// Expressions of a template by jinja2's grammar: the base of the parser of statements.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/text/jinja/ast.h"
#include "lib/text/jinja/lexer.h"

namespace mpinfer::text::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  // One level deeper while it lives. TemplateError beyond the limit.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser) : parser_(parser) {
      if (++parser_.depth_ > Budget::kMaxDepth)
        parser_.fail(fmt::format("nested deeper than {}", Budget::kMaxDepth));
    }
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser& parser_;
  };

  [[noreturn]] void fail(const std::string& what) const;
  static std::string describe(const Token& token);
  const Token& peek(size_t ahead = 0) const;
  const Token& next();
  const Token& expect(TokenKind kind);
  bool is_name(std::string_view name) const;
  bool skip_name(std::string_view name);
  void expect_name(std::string_view name);
  bool is_operator(std::string_view op) const;
  bool skip_operator(std::string_view op);
  void expect_operator(std::string_view op);

  ExpressionPtr expression();  // with a conditional
  // One expression, or several with commas. end_name also ends it.
  ExpressionPtr tuple(bool with_conditional = true, std::string_view end_name = "",
                      bool parentheses = false);
  // What set and for assign to; end_name ends it.
  ExpressionPtr target(std::string_view end_name);
  // | name(arguments) …; over nothing: the text of a block.
  ExpressionPtr filters(ExpressionPtr over, bool first_without_pipe = false);

 private:
  ExpressionPtr make(ExpressionKind kind, ExpressionPtr first = nullptr) const;
  ExpressionPtr either();
  ExpressionPtr both();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters = true);
  ExpressionPtr primary();
  ExpressionPtr postfix(ExpressionPtr node);
  ExpressionPtr filtered(ExpressionPtr node);
  ExpressionPtr subscript(ExpressionPtr node);
  ExpressionPtr call(ExpressionPtr node);
  ExpressionPtr test(ExpressionPtr node);
  ExpressionPtr list();
  ExpressionPtr dict();
  ExpressionPtr integer(const std::string& digits) const;
  void arguments(Expression* out);
  bool ends_tuple(std::string_view end_name) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace mpinfer::text::jinja
