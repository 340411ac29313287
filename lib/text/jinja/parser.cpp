#include "lib/text/jinja/parser.h"

#include "lib/text/jinja/expression_parser.h"

namespace mpinfer::text::jinja {
namespace {

using Names = std::vector<std::string_view>;

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Body template_body() {
    Body body = statements({});
    if (peek().kind != TokenKind::kEnd) fail(fmt::format("unexpected {}", describe(peek())));
    return body;
  }

 private:
  std::unique_ptr<Statement> make(StatementKind kind) const {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = peek().line;
    return statement;
  }

  // Up to a tag of one of these names; that tag's begin is consumed, its name not.
  Body statements(const Names& ends) {
    const Nesting nesting(*this);
    Body body;
    while (true) {
      if (peek().kind == TokenKind::kText) {
        auto text = make(StatementKind::kText);
        text->text = next().text;
        body.push_back(std::move(text));
      } else if (peek().kind == TokenKind::kPrintBegin) {
        next();
        auto print = make(StatementKind::kPrint);
        print->expression = tuple();
        expect(TokenKind::kPrintEnd);
        body.push_back(std::move(print));
      } else if (peek().kind == TokenKind::kBlockBegin) {
        next();
        for (const std::string_view end : ends) {
          if (is_name(end)) return body;
        }
        statement(&body);
      } else {
        if (!ends.empty()) fail(fmt::format("{} is missing", ends.front()));
        return body;
      }
    }
  }

  Body block(std::string_view end) {
    expect(TokenKind::kBlockEnd);
    Body body = statements({end});
    next();
    expect(TokenKind::kBlockEnd);
    return body;
  }

  void statement(Body* body) {
    const Token tag = peek();
    if (tag.kind != TokenKind::kName) fail(fmt::format("unexpected {}", describe(tag)));
    next();
    if (tag.text == "if") return body->push_back(if_statement());
    if (tag.text == "for") return body->push_back(for_statement());
    if (tag.text == "set") return body->push_back(set_statement());
    if (tag.text == "macro") return body->push_back(macro());
    if (tag.text == "call") return body->push_back(call_block());
    if (tag.text == "filter") return body->push_back(filter_block());
    if (tag.text == "with") return body->push_back(with_block());
    if (tag.text == "break" || tag.text == "continue") {
      if (loops_ == 0) fail(fmt::format("{} outside of a loop", tag.text));
      body->push_back(make(tag.text == "break" ? StatementKind::kBreak : StatementKind::kContinue));
      expect(TokenKind::kBlockEnd);
      return;
    }
    if (tag.text == "generation") {  // marks the assistant's text for training; no effect here
      auto with = make(StatementKind::kWith);
      with->body = block("endgeneration");
      return body->push_back(std::move(with));
    }
    fail(fmt::format("tag {} is not supported", tag.text));
  }

  std::unique_ptr<Statement> if_statement() {
    auto out = make(StatementKind::kIf);
    while (true) {
      Branch branch;
      branch.condition = tuple(/*with_conditional=*/false);
      expect(TokenKind::kBlockEnd);
      branch.body = statements({"endif", "elif", "else"});
      out->branches.push_back(std::move(branch));
      const std::string word = next().text;
      if (word == "elif") continue;
      if (word == "else") {
        expect(TokenKind::kBlockEnd);
        out->branches.push_back({nullptr, statements({"endif"})});
        next();
      }
      expect(TokenKind::kBlockEnd);
      return out;
    }
  }

  std::unique_ptr<Statement> for_statement() {
    auto out = make(StatementKind::kFor);
    out->target = target("in");
    expect_name("in");
    out->expression = tuple(/*with_conditional=*/false, "recursive");
    if (skip_name("if")) out->condition = expression();
    out->recursive = skip_name("recursive");
    expect(TokenKind::kBlockEnd);
    ++loops_;
    out->body = statements({"endfor", "else"});
    --loops_;
    if (next().text == "else") {
      expect(TokenKind::kBlockEnd);
      out->else_body = statements({"endfor"});
      next();
    }
    expect(TokenKind::kBlockEnd);
    return out;
  }

  std::unique_ptr<Statement> set_statement() {
    auto out = make(StatementKind::kSet);
    out->target = target("");
    if (skip_operator("=")) {
      out->expression = tuple();
      expect(TokenKind::kBlockEnd);
      return out;
    }
    out->kind = StatementKind::kSetBlock;
    if (is_operator("|")) out->expression = filters_of_block();
    out->body = block("endset");
    return out;
  }

  void signature(Statement* out) {
    expect_operator("(");
    while (!skip_operator(")")) {
      if (!out->parameters.empty()) {
        expect_operator(",");
        if (skip_operator(")")) return;
      }
      std::string name = expect(TokenKind::kName).text;
      ExpressionPtr fallback;
      if (skip_operator("=")) {
        fallback = expression();
      } else if (!out->parameters.empty() && out->parameters.back().second != nullptr) {
        fail("a parameter without default follows one with");
      }
      out->parameters.emplace_back(std::move(name), std::move(fallback));
    }
  }

  // break and continue do not reach through a macro.
  Body body_of_its_own(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    Body body = block(end);
    loops_ = loops;
    return body;
  }

  std::unique_ptr<Statement> macro() {
    auto out = make(StatementKind::kMacro);
    out->text = expect(TokenKind::kName).text;
    signature(out.get());
    out->body = body_of_its_own("endmacro");
    return out;
  }

  std::unique_ptr<Statement> call_block() {
    auto out = make(StatementKind::kCallBlock);
    out->text = "caller";
    if (is_operator("(")) signature(out.get());
    out->expression = expression();
    if (out->expression->kind != ExpressionKind::kCall) fail("call needs a call");
    out->body = body_of_its_own("endcall");
    return out;
  }

  ExpressionPtr filters_of_block() { return filters(nullptr); }

  std::unique_ptr<Statement> filter_block() {
    auto out = make(StatementKind::kFilterBlock);
    out->expression = filters(nullptr, /*first_without_pipe=*/true);
    out->body = body_of_its_own("endfilter");
    return out;
  }

  std::unique_ptr<Statement> with_block() {
    auto out = make(StatementKind::kWith);
    while (peek().kind != TokenKind::kBlockEnd) {
      if (!out->parameters.empty()) expect_operator(",");
      std::string name = expect(TokenKind::kName).text;
      expect_operator("=");
      out->parameters.emplace_back(std::move(name), expression());
    }
    out->body = block("endwith");
    return out;
  }

  int loops_ = 0;
};

}  // namespace

Body parse(std::string_view source) {
  return Parser(tokenize(source)).template_body();
}

}  // namespace mpinfer::text::jinja
