#include "lib/text/grammar/expr.h"

#include <fmt/core.h>

#include <algorithm>

#include "lib/text/utf8.h"

namespace mpinfer::text::grammar {
namespace {

constexpr uint32_t kLastCodePoint = 0x10FFFF;
constexpr CodePointRange kSurrogates = {0xD800, 0xDFFF};

std::vector<CodePointRange> normal(std::vector<CodePointRange> ranges) {
  std::sort(ranges.begin(), ranges.end());
  std::vector<CodePointRange> out;
  for (const auto& [low, high] : ranges) {
    if (!out.empty() && low <= out.back().second + 1) {
      out.back().second = std::max(out.back().second, high);
    } else {
      out.emplace_back(low, high);
    }
  }
  return out;
}

std::vector<CodePointRange> inverse(const std::vector<CodePointRange>& ranges) {
  std::vector<CodePointRange> out;
  uint32_t next = 0;
  for (const auto& [low, high] : normal(ranges)) {
    if (low > next) out.emplace_back(next, low - 1);
    next = high + 1;
  }
  if (next <= kLastCodePoint) out.emplace_back(next, kLastCodePoint);
  return out;
}

ExprPtr make(Expr expr) {
  return std::make_shared<const Expr>(std::move(expr));
}

bool stands_for_itself(uint32_t code_point) {
  return code_point >= 0x20 && code_point != '"' && code_point != '\\';
}

std::string escape(uint32_t code_point) {
  switch (code_point) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      return fmt::format("\\u{:04x}", code_point);
  }
}

ExprPtr escaped_set(const std::vector<CodePointRange>& ranges) {
  std::vector<ExprPtr> parts;
  std::vector<CodePointRange> plain;
  for (const auto& [low, high] : ranges) {
    uint32_t begin = low;
    for (uint32_t c = low; c <= std::min<uint32_t>(high, '\\'); ++c) {
      if (stands_for_itself(c)) continue;
      if (c > begin) plain.emplace_back(begin, c - 1);
      parts.push_back(text(escape(c)));
      begin = c + 1;
    }
    if (begin <= high) plain.emplace_back(begin, high);
  }
  if (!plain.empty()) parts.push_back(set(std::move(plain)));
  return choice(std::move(parts));
}

std::string escaped_text(std::string_view given) {
  std::string out;
  for (size_t at = 0; at < given.size(); at += utf8_length(given[at])) {
    const uint32_t code_point = code_point_at(given, at);
    if (stands_for_itself(code_point)) {
      append_utf8(out, code_point);
    } else {
      out += escape(code_point);
    }
  }
  return out;
}

}  // namespace

ExprPtr text(std::string_view utf8) {
  return make({.kind = Expr::Kind::kText, .text = std::string(utf8)});
}

ExprPtr set(std::vector<CodePointRange> ranges) {
  std::vector<CodePointRange> outside = inverse(ranges);
  outside.push_back(kSurrogates);
  return make({.kind = Expr::Kind::kSet, .ranges = inverse(outside)});
}

ExprPtr concat(std::vector<ExprPtr> parts) {
  return make({.kind = Expr::Kind::kConcat, .parts = std::move(parts)});
}

ExprPtr choice(std::vector<ExprPtr> parts) {
  return make({.kind = Expr::Kind::kChoice, .parts = std::move(parts)});
}

ExprPtr repeat(ExprPtr part, int32_t min, int32_t max) {
  return make({.kind = Expr::Kind::kRepeat, .parts = {std::move(part)}, .min = min, .max = max});
}

ExprPtr list(ExprPtr part, ExprPtr separator, int32_t min, int32_t max) {
  return make({.kind = Expr::Kind::kList,
               .parts = {std::move(part)},
               .min = min,
               .max = max,
               .separator = std::move(separator)});
}

ExprPtr members(std::vector<ExprPtr> parts, std::vector<bool> required, ExprPtr separator) {
  return make({.kind = Expr::Kind::kMembers,
               .parts = std::move(parts),
               .required = std::move(required),
               .separator = std::move(separator)});
}

std::vector<CodePointRange> complement(std::vector<CodePointRange> ranges) {
  ranges.push_back(kSurrogates);
  return inverse(ranges);
}

ExprPtr inside_json_string(const ExprPtr& expr) {
  if (expr->kind == Expr::Kind::kText) return text(escaped_text(expr->text));
  if (expr->kind == Expr::Kind::kSet) return escaped_set(expr->ranges);
  Expr out = *expr;
  for (ExprPtr& part : out.parts) part = inside_json_string(part);
  return make(std::move(out));
}

}  // namespace mpinfer::text::grammar
