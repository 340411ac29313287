// Vocabulary: the bytes of every token in a trie, so that the tokens an automaton lets through from
// a state are found in one walk that leaves a branch as soon as the automaton does. Where any plain
// characters may follow, tokens of so few of them are added as they are and the others walked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lib/text/grammar/automaton.h"

namespace mpinfer::text::grammar {

class Vocabulary {
 public:
  // bytes_by_id: an empty one is never allowed.
  explicit Vocabulary(std::vector<std::string> bytes_by_id);

  const std::string& bytes_of(int32_t id) const { return bytes_[static_cast<size_t>(id)]; }
  int32_t size() const { return static_cast<int32_t>(bytes_.size()); }
  // Sets the bits of the tokens whose bytes lead from state to another.
  void allow(std::vector<uint32_t>& bits, const Automaton& automaton, Automaton::State state) const;

 private:
  class Trie {
   public:
    // ids: with bytes, in their order.
    Trie(const std::vector<std::string>& bytes, std::vector<int32_t> ids);
    void allow(std::vector<uint32_t>& bits, const Automaton& automaton,
               Automaton::State state) const;

   private:
    struct Node {
      uint8_t byte = 0;
      int32_t depth = 0;  // bytes up to here, from 1
      int32_t skip = 0;   // the first node behind this one's branch
      int32_t first_token = 0;
      int32_t end_token = 0;  // of ids_: those that end here
    };
    std::vector<int32_t> ids_;
    std::vector<Node> nodes_;  // each before those below it
    size_t longest_ = 0;
  };

  std::vector<std::string> bytes_;
  Trie all_;
  Trie not_plain_;                            // and those of more than kMostPlain characters
  std::vector<std::vector<uint32_t>> plain_;  // [n]: tokens of at most n plain characters
};

}  // namespace mpinfer::text::grammar
