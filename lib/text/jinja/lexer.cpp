#include "lib/text/jinja/lexer.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "lib/text/jinja/python_text.h"

namespace mpinfer::text::jinja {
namespace {

constexpr size_t kNone = std::string_view::npos;
constexpr std::array<std::string_view, 26> kOperators = {
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "(",
    ")",  "[",  "]",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

// Line ends as \n, one at the end of the template dropped.
std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      out += '\n';
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw TemplateError(fmt::format("line {}: {}", line_, what));
  }

  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  std::string_view rest() const { return source_.substr(at_); }

  void advance(size_t count) {
    const auto taken = source_.substr(at_, count);
    line_ += static_cast<int>(std::count(taken.begin(), taken.end(), '\n'));
    at_ += count;
  }

  // Text up to the next delimiter, and what that delimiter opens.
  void text() {
    size_t open = at_;
    while (true) {
      open = source_.find('{', open);
      if (open == kNone || open + 1 >= source_.size()) {
        plain(source_.substr(at_));
        return;
      }
      const char next = source_[open + 1];
      if (next == '%' || next == '{' || next == '#') break;
      ++open;
    }
    const char kind = source_[open + 1];
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    std::string_view before = source_.substr(at_, open - at_);
    if (sign == '-') {
      before = strip_right(before);
    } else if (sign != '+' && kind != '{') {
      before = without_indent(before);
    }
    const size_t skipped = open - at_ + 2 + (sign == '-' || sign == '+' ? 1 : 0);
    if (!before.empty()) add(TokenKind::kText, std::string(before));
    advance(skipped);
    if (kind == '#') {
      comment();
    } else if (kind == '{') {
      add(TokenKind::kPrintBegin, "");
      inside("}}", TokenKind::kPrintEnd);
    } else if (!raw()) {
      add(TokenKind::kBlockBegin, "");
      inside("%}", TokenKind::kBlockEnd);
    }
  }

  void plain(std::string_view text) {
    if (!text.empty()) add(TokenKind::kText, std::string(text));
    advance(text.size());
  }

  // lstrip_blocks: whitespace between the start of the line and a block goes.
  std::string_view without_indent(std::string_view before) const {
    const size_t newline = before.rfind('\n');
    const size_t start = newline == kNone ? 0 : newline + 1;
    if (newline == kNone && !line_start_) return before;
    return strip_left(before.substr(start)).empty() ? before.substr(0, start) : before;
  }

  // Behind the closing delimiter: - takes whitespace, a block or a comment the newline.
  void close(char sign, bool block) {
    const size_t before = at_;
    if (sign == '-') {
      advance(rest().size() - strip_left(rest()).size());
    } else if (block && sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      advance(1);
    }
    line_start_ = at_ > before && source_[at_ - 1] == '\n';
  }

  void comment() {
    const size_t end = source_.find("#}", at_);
    if (end == kNone) fail("a comment without its end #}");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2 - at_);
    close(sign, /*block=*/true);
  }

  // {% raw %} … {% endraw %}; the delimiter is already passed.
  bool raw() {
    std::string_view text = strip_left(rest());
    if (!text.starts_with("raw")) return false;
    text = strip_left(text.substr(3));
    const char sign = text.starts_with("-%}") ? '-' : '\0';
    if (!text.starts_with("%}") && sign == '\0') return false;
    text.remove_prefix(sign == '-' ? 3 : 2);
    advance(rest().size() - text.size());
    close(sign, /*block=*/true);
    const size_t begin = at_;
    for (size_t open = source_.find("{%", at_); open != kNone;
         open = source_.find("{%", open + 2)) {
      std::string_view tag = source_.substr(open + 2);
      const char before = tag.empty() ? '\0' : tag.front();
      if (before == '-' || before == '+') tag.remove_prefix(1);
      tag = strip_left(tag);
      if (!tag.starts_with("endraw")) continue;
      tag = strip_left(tag.substr(6));
      const char after = tag.empty() ? '\0' : tag.front();
      if (after == '-' || after == '+') tag.remove_prefix(1);
      if (!tag.starts_with("%}")) continue;
      std::string_view body = source_.substr(begin, open - begin);
      if (before == '-') {
        body = strip_right(body);
      } else if (before != '+') {
        body = without_indent(body);
      }
      if (!body.empty()) add(TokenKind::kText, std::string(body));
      advance(rest().size() - tag.size() + 2);
      close(after, /*block=*/true);
      return true;
    }
    fail("raw without endraw");
  }

  void inside(std::string_view end, TokenKind end_kind) {
    std::string open;
    while (true) {
      advance(rest().size() - strip_left(rest()).size());
      if (at_ >= source_.size()) fail(fmt::format("{} is missing", end));
      const char sign = rest().front();
      const bool signed_end =
          (sign == '-' || (sign == '+' && end == "%}")) && rest().substr(1).starts_with(end);
      if (open.empty() && (signed_end || rest().starts_with(end))) {
        add(end_kind, "");
        advance(signed_end ? 3 : 2);
        close(signed_end ? sign : '\0', end_kind == TokenKind::kBlockEnd);
        return;
      }
      token(&open);
    }
  }

  void token(std::string* open) {
    const char c = rest().front();
    if (c == '\'' || c == '"') return string(c);
    if (is_digit(c)) return number();
    if (is_name_start(c)) return name();
    for (const std::string_view op : kOperators) {
      if (!rest().starts_with(op)) continue;
      balance(op.front(), open);
      add(TokenKind::kOperator, std::string(op));
      advance(op.size());
      return;
    }
    fail(fmt::format("unexpected character {:?}", std::string_view(&c, 1)));
  }

  void balance(char c, std::string* open) const {
    if (c == '(' || c == '[' || c == '{') open->push_back(c);
    if (c != ')' && c != ']' && c != '}') return;
    const char wanted = c == ')' ? '(' : c == ']' ? '[' : '{';
    if (open->empty() || open->back() != wanted) fail(fmt::format("unexpected '{}'", c));
    open->pop_back();
  }

  void name() {
    size_t length = 1;
    while (length < rest().size() && (is_name_start(rest()[length]) || is_digit(rest()[length])))
      ++length;
    add(TokenKind::kName, std::string(rest().substr(0, length)));
    advance(length);
  }

  void number() {
    const std::string_view text = rest();
    std::string digits;
    size_t i = 0;
    const auto take = [&] {
      while (i < text.size() && (is_digit(text[i]) || (text[i] == '_' && i + 1 < text.size() &&
                                                       is_digit(text[i + 1])))) {
        if (text[i] != '_') digits += text[i];
        ++i;
      }
    };
    take();
    bool real = false;
    if (i + 1 < text.size() && text[i] == '.' && is_digit(text[i + 1])) {
      real = true;
      digits += text[i++];
      take();
    }
    if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
      size_t exponent = i + 1;
      if (exponent < text.size() && (text[exponent] == '+' || text[exponent] == '-')) ++exponent;
      if (exponent < text.size() && is_digit(text[exponent])) {
        real = true;
        digits += text.substr(i, exponent - i);
        i = exponent;
        take();
      }
    }
    add(real ? TokenKind::kFloat : TokenKind::kInteger, digits);
    advance(i);
  }

  void string(char quote) {
    std::string out;
    size_t i = 1;
    const std::string_view text = rest();
    while (i < text.size() && text[i] != quote) {
      if (text[i] == '\\' && i + 1 < text.size()) {
        i += escape(&out, text.substr(i));
      } else {
        out += text[i++];
      }
    }
    if (i >= text.size()) fail("a string without its end");
    add(TokenKind::kString, std::move(out));
    advance(i + 1);
  }

  // Python's escapes; bytes of the escape.
  size_t escape(std::string* out, std::string_view text) const {
    static constexpr std::string_view kFrom = "nrtabfv\\'\"";
    static constexpr std::string_view kTo = "\n\r\t\a\b\f\v\\'\"";
    const char c = text[1];
    if (const size_t at = kFrom.find(c); at != kNone) {
      *out += kTo[at];
      return 2;
    }
    if (c == '\n') return 2;
    if (c >= '0' && c <= '7') {
      size_t length = 0;
      uint32_t code = 0;
      while (length < 3 && 1 + length < text.size() && text[1 + length] >= '0' &&
             text[1 + length] <= '7') {
        code = code * 8 + static_cast<uint32_t>(text[1 + length++] - '0');
      }
      append_utf8(out, code);
      return 1 + length;
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      *out += text.substr(0, 1);
      return 1;
    }
    uint32_t code = 0;
    for (size_t i = 0; i < digits; ++i) {
      const char digit = 2 + i < text.size() ? text[2 + i] : '\0';
      const bool hex =
          is_digit(digit) || (digit >= 'a' && digit <= 'f') || (digit >= 'A' && digit <= 'F');
      if (!hex || code > 0xfffffff) fail("a string with a bad escape");
      code = code * 16 +
             static_cast<uint32_t>(is_digit(digit) ? digit - '0' : (digit | 0x20) - 'a' + 10);
    }
    if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) fail("a string with a bad escape");
    append_utf8(out, code);
    return 2 + digits;
  }

  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  const std::string text = normalized(source);
  return Lexer(text).run();
}

}  // namespace mpinfer::text::jinja
