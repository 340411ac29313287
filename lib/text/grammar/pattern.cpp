#include "lib/text/grammar/pattern.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "lib/text/utf8.h"

namespace mpinfer::text::grammar {
namespace {

constexpr int kMaxGroups = 64;  // one inside the other

using Ranges = std::vector<CodePointRange>;

Ranges digits() {
  return {{'0', '9'}};
}
Ranges word() {
  return {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
}
Ranges space() {
  return {{'\t', '\r'}, {' ', ' '}};
}

// After the first error every rule returns at once; its result is not looked at.
class Parser {
 public:
  Parser(std::string_view pattern, const std::string& param) : pattern_(pattern), param_(param) {}

  Expected<ExprPtr> parse() {
    if (const size_t at = find_invalid_utf8(pattern_); at != std::string_view::npos) {
      refuse("invalid_param", fmt::format("is not UTF-8 at byte {}", at));
      return tl::unexpected(*error_);
    }
    if (peek('^')) ++at_;
    ExprPtr expr = alternatives(0);
    if (!error_ && at_ < pattern_.size()) refuse("invalid_param", "has a ) without its (");
    if (error_) return tl::unexpected(*error_);
    return expr;
  }

 private:
  bool done() const { return error_ || at_ >= pattern_.size(); }
  bool peek(char c) const { return !done() && pattern_[at_] == c; }
  bool take(char c) {
    if (!peek(c)) return false;
    ++at_;
    return true;
  }
  bool take(std::string_view text) {
    if (done() || !pattern_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }

  ExprPtr refuse(const char* code, const std::string& what) {
    if (!error_)
      error_ = RowError{code, fmt::format("{} {} (at byte {})", param_, what, at_), param_};
    return text("");
  }
  ExprPtr unsupported(const std::string& what) {
    return refuse("unsupported", "uses " + what + ", which is not supported");
  }

  ExprPtr alternatives(int depth) {
    if (depth > kMaxGroups)
      return unsupported(fmt::format("groups nested deeper than {}", kMaxGroups));
    std::vector<ExprPtr> parts = {sequence(depth)};
    while (take('|')) parts.push_back(sequence(depth));
    return parts.size() == 1 ? parts.front() : choice(std::move(parts));
  }

  ExprPtr sequence(int depth) {
    std::vector<ExprPtr> parts;
    while (!done() && !peek('|') && !peek(')')) {
      if (peek('$') && at_ + 1 == pattern_.size() && depth == 0) {
        ++at_;
        break;
      }
      parts.push_back(quantified(atom(depth)));
    }
    return parts.size() == 1 ? parts.front() : concat(std::move(parts));
  }

  ExprPtr atom(int depth) {
    if (take('(')) return group(depth);
    if (take('[')) return bracket();
    if (take('.')) return set(complement({{'\n', '\n'}}));
    if (take('\\')) return set(escape(/*in_class=*/false));
    const char c = pattern_[at_];
    if (c == '^' || c == '$') return unsupported(fmt::format("the anchor {} inside", c));
    if (c == '*' || c == '+' || c == '?')
      return refuse("invalid_param", fmt::format("has a {} behind nothing", c));
    const uint32_t code_point = character();
    return set({{code_point, code_point}});
  }

  ExprPtr group(int depth) {
    if (take('?') && !take(':'))
      return unsupported("a group (?…) other than (?:…): look-around, names or flags");
    ExprPtr inside = alternatives(depth + 1);
    if (!take(')') && !error_) refuse("invalid_param", "has a ( without its )");
    return inside;
  }

  ExprPtr quantified(ExprPtr part) {
    if (done()) return part;
    int32_t min = 0;
    int32_t max = -1;
    if (take('+')) {
      min = 1;
    } else if (take('?')) {
      max = 1;
    } else if (!take('*')) {
      if (!peek('{')) return part;
      if (!counts(&min, &max)) return text("");
    }
    take('?');
    if (peek('+')) return unsupported("a possessive quantifier");
    if (peek('*') || peek('?') || peek('{'))
      return refuse("invalid_param", "has a quantifier behind a quantifier");
    return repeat(std::move(part), min, max);
  }

  bool counts(int32_t* min, int32_t* max) {
    ++at_;
    const auto low = number();
    if (!low) return false;
    *min = *max = *low;
    if (take(',')) {
      *max = -1;
      if (!peek('}')) {
        const auto high = number();
        if (!high) return false;
        *max = *high;
      }
    }
    if (!take('}')) {
      refuse("invalid_param", "has a { that is no count: write {m}, {m,} or {m,n}, or \\{");
      return false;
    }
    if (*max >= 0 && *max < *min) {
      refuse("invalid_param",
             fmt::format("has a count {{{},{}}}: the second is lower", *min, *max));
      return false;
    }
    return true;
  }

  std::optional<int32_t> number() {
    int32_t value = 0;
    const size_t begin = at_;
    while (!done() && pattern_[at_] >= '0' && pattern_[at_] <= '9') {
      value = value * 10 + (pattern_[at_++] - '0');
      if (value > kMaxRepeat) {
        unsupported(fmt::format("a count above {}", kMaxRepeat));
        return std::nullopt;
      }
    }
    if (at_ == begin) {
      refuse("invalid_param", "has a { that is no count: write {m}, {m,} or {m,n}, or \\{");
      return std::nullopt;
    }
    return value;
  }

  uint32_t character() {
    const uint32_t code_point = code_point_at(pattern_, at_);
    at_ += utf8_length(pattern_[at_]);
    return code_point;
  }

  // Behind a backslash.
  Ranges escape(bool in_class) {
    if (done()) {
      refuse("invalid_param", "ends with a backslash");
      return {};
    }
    const char c = pattern_[at_];
    if (static_cast<unsigned char>(c) >= 0x80) {
      const uint32_t code_point = character();
      return {{code_point, code_point}};
    }
    ++at_;
    const auto one = [](uint32_t code_point) { return Ranges{{code_point, code_point}}; };
    switch (c) {
      case 'd':
        return digits();
      case 'D':
        return complement(digits());
      case 'w':
        return word();
      case 'W':
        return complement(word());
      case 's':
        return space();
      case 'S':
        return complement(space());
      case 'n':
        return one('\n');
      case 't':
        return one('\t');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        return one(0);
      case 'x':
        return one(hexadecimal(2));
      case 'u':
        return one(hexadecimal(4));
      case 'b':
        if (in_class) return one('\b');
        break;
      default:
        break;
    }
    const bool alphanumeric =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (alphanumeric) unsupported(fmt::format("\\{}", c));
    return one(static_cast<uint32_t>(c));
  }

  uint32_t hexadecimal(int count) {
    uint32_t value = 0;
    for (int i = 0; i < count; ++i) {
      const char c = done() ? ' ' : pattern_[at_];
      const char lower = static_cast<char>(c | 0x20);
      if (c >= '0' && c <= '9') {
        value = value * 16 + static_cast<uint32_t>(c - '0');
      } else if (lower >= 'a' && lower <= 'f') {
        value = value * 16 + static_cast<uint32_t>(lower - 'a' + 10);
      } else {
        refuse("invalid_param", fmt::format("has an escape without its {} hex digits", count));
        return 0;
      }
      ++at_;
    }
    return value;
  }

  // Behind [.
  ExprPtr bracket() {
    const bool negated = take('^');
    Ranges ranges;
    bool first = true;
    while (!done() && (first || !peek(']'))) {
      if (take("[:") || take("&&")) return unsupported("[: or && in a class");
      first = false;
      Ranges low = class_item();
      const bool range = peek('-') && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']';
      if (!range) {
        ranges.insert(ranges.end(), low.begin(), low.end());
        continue;
      }
      ++at_;
      const Ranges high = class_item();
      if (error_) return text("");
      const bool single = low.size() == 1 && high.size() == 1 && low[0].first == low[0].second &&
                          high[0].first == high[0].second;
      if (!single || low[0].first > high[0].first)
        return refuse("invalid_param", "has a class whose range does not go up");
      ranges.emplace_back(low[0].first, high[0].first);
    }
    if (!take(']')) return refuse("invalid_param", "has a [ without its ]");
    return set(negated ? complement(std::move(ranges)) : std::move(ranges));
  }

  Ranges class_item() {
    if (done()) return {};
    if (take('\\')) return escape(/*in_class=*/true);
    const uint32_t code_point = character();
    return {{code_point, code_point}};
  }

  std::string_view pattern_;
  const std::string& param_;
  size_t at_ = 0;
  std::optional<RowError> error_;
};

}  // namespace

Expected<ExprPtr> read_pattern(std::string_view pattern, const std::string& param) {
  if (pattern.size() > kMaxPatternBytes) {
    return tl::unexpected(RowError{
        "unsupported",
        fmt::format("{} has {} bytes; the limit is {}", param, pattern.size(), kMaxPatternBytes),
        param});
  }
  return Parser(pattern, param).parse();
}

}  // namespace mpinfer::text::grammar
