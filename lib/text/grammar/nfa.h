// The nondeterministic automaton of an Expr: nodes that read one byte of a range, nodes that go on
// at two places, and the end. Built from its end, so that no node is patched but those of loops.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/text/grammar/expr.h"

namespace mpinfer::text::grammar {

struct NfaNode {
  enum class Kind : uint8_t { kByte, kSplit, kEnd };
  Kind kind = Kind::kEnd;
  uint8_t low = 0;  // kByte: [low, high]
  uint8_t high = 0;
  int32_t next = -1;
  int32_t other = -1;  // kSplit; -1: nowhere
};

struct Nfa {
  std::vector<NfaNode> nodes;
  int32_t start = -1;
  bool too_large = false;  // nodes are incomplete
};

Nfa build_nfa(const Expr& expr, int32_t max_nodes);

}  // namespace mpinfer::text::grammar
