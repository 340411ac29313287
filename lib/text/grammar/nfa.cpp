#include "lib/text/grammar/nfa.h"

#include <algorithm>

#include "lib/text/utf8.h"

namespace mpinfer::text::grammar {
namespace {

class Builder {
 public:
  explicit Builder(int32_t max_nodes) : max_nodes_(max_nodes) {}

  Nfa build(const Expr& expr) {
    const int32_t end = add({.kind = NfaNode::Kind::kEnd});
    nfa_.start = emit(expr, end);
    return std::move(nfa_);
  }

 private:
  // Every emit gives the node from which the expression is read and next is reached.
  int32_t emit(const Expr& expr, int32_t next) {
    if (nfa_.too_large) return next;
    switch (expr.kind) {
      case Expr::Kind::kText:
        for (size_t i = expr.text.size(); i-- > 0;) {
          const auto byte = static_cast<uint8_t>(expr.text[i]);
          next = add({.kind = NfaNode::Kind::kByte, .low = byte, .high = byte, .next = next});
        }
        return next;
      case Expr::Kind::kSet:
        return emit_set(expr.ranges, next);
      case Expr::Kind::kConcat:
        for (size_t i = expr.parts.size(); i-- > 0;) next = emit(*expr.parts[i], next);
        return next;
      case Expr::Kind::kChoice: {
        int32_t start = split(-1, -1);
        for (const ExprPtr& part : expr.parts) start = split(emit(*part, next), start);
        return start;
      }
      case Expr::Kind::kRepeat:
        return emit_repeat(expr, next);
      case Expr::Kind::kList:
        return emit_list(expr, next);
      case Expr::Kind::kMembers:
        return emit_members(expr, next);
    }
    return next;
  }

  int32_t emit_repeat(const Expr& expr, int32_t next) {
    const Expr& part = *expr.parts.front();
    int32_t start = next;
    if (expr.max < 0) {
      start = split(-1, next);
      const int32_t again = emit(part, start);
      nfa_.nodes[static_cast<size_t>(start)].next = again;
    } else {
      for (int32_t i = expr.min; i < expr.max && !nfa_.too_large; ++i)
        start = split(emit(part, start), next);
    }
    for (int32_t i = 0; i < expr.min && !nfa_.too_large; ++i) start = emit(part, start);
    return start;
  }

  int32_t emit_list(const Expr& expr, int32_t next) {
    if (expr.max == 0) return next;
    const Expr& part = *expr.parts.front();
    int32_t start = -1;
    if (expr.max < 0) {
      const int32_t behind = split(-1, next);
      start = emit(part, behind);
      const int32_t again = emit(*expr.separator, start);
      nfa_.nodes[static_cast<size_t>(behind)].next = again;
      for (int32_t i = 1; i < expr.min && !nfa_.too_large; ++i)
        start = emit(part, emit(*expr.separator, start));
    } else {
      start = emit(part, next);
      for (int32_t num_before = expr.max - 1; num_before > 0 && !nfa_.too_large; --num_before) {
        const int32_t more = emit(*expr.separator, start);
        start = emit(part, num_before >= expr.min ? split(more, next) : more);
      }
    }
    return expr.min == 0 ? split(start, next) : start;
  }

  // first: nothing was there so far; more: something was, so a separator comes before the next.
  int32_t emit_members(const Expr& expr, int32_t next) {
    int32_t first = next;
    int32_t more = next;
    for (size_t i = expr.parts.size(); i-- > 0 && !nfa_.too_large;) {
      const int32_t here = emit(*expr.parts[i], more);
      const int32_t behind = emit(*expr.separator, here);
      first = expr.required[i] ? here : split(here, first);
      more = expr.required[i] ? behind : split(behind, more);
    }
    return first;
  }

  int32_t emit_set(const std::vector<CodePointRange>& ranges, int32_t next) {
    set_start_ = split(-1, -1);
    for (const auto& [low, high] : ranges) emit_range(low, high, next);
    return set_start_;
  }

  // Cut until the encodings of a piece are a product of byte ranges.
  void emit_range(uint32_t low, uint32_t high, int32_t next) {
    if (nfa_.too_large) return;
    for (const uint32_t last : {0x7FU, 0x7FFU, 0xFFFFU}) {
      if (low <= last && last < high) {
        emit_range(low, last, next);
        return emit_range(last + 1, high, next);
      }
    }
    std::string first;
    std::string last;
    append_utf8(first, low);
    append_utf8(last, high);
    for (size_t i = 1; i < first.size(); ++i) {
      const uint32_t tail = (1U << (6 * i)) - 1;
      if ((low & ~tail) == (high & ~tail)) continue;
      if ((low & tail) != 0) {
        emit_range(low, low | tail, next);
        return emit_range((low | tail) + 1, high, next);
      }
      if ((high & tail) != tail) {
        emit_range(low, (high & ~tail) - 1, next);
        return emit_range(high & ~tail, high, next);
      }
    }
    int32_t node = next;
    for (size_t i = first.size(); i-- > 0;) {
      node = add({.kind = NfaNode::Kind::kByte,
                  .low = static_cast<uint8_t>(first[i]),
                  .high = static_cast<uint8_t>(last[i]),
                  .next = node});
    }
    set_start_ = split(node, set_start_);
  }

  int32_t split(int32_t next, int32_t other) {
    return add({.kind = NfaNode::Kind::kSplit, .next = next, .other = other});
  }

  int32_t add(const NfaNode& node) {
    if (static_cast<int32_t>(nfa_.nodes.size()) >= max_nodes_) {
      nfa_.too_large = true;
      return 0;
    }
    nfa_.nodes.push_back(node);
    return static_cast<int32_t>(nfa_.nodes.size()) - 1;
  }

  int32_t max_nodes_;
  int32_t set_start_ = -1;
  Nfa nfa_;
};

}  // namespace

Nfa build_nfa(const Expr& expr, int32_t max_nodes) {
  return Builder(max_nodes).build(expr);
}

}  // namespace mpinfer::text::grammar
