// BlockManager: the free KV blocks of every cache group. Which block a sequence gets depends on the
// order of calls alone, so every rank of a replica hands out the same ones.
#pragma once

#include <cstdint>
#include <vector>

#include "lib/engine/sequence.h"

namespace mpinfer::engine {

class BlockManager {
 public:
  // windows[group]: 0 for full attention, else the number of positions a row sees. max_chunk: most
  // rows one step adds to a sequence.
  BlockManager(int32_t block_size, std::vector<int32_t> num_blocks, std::vector<int32_t> windows,
               int32_t max_chunk);

  // Gives the sequence what positions [0, num_positions) need and takes back what lies behind the
  // windows of rows at num_computed and later. False, and nothing changed but what was taken back,
  // when blocks are short.
  bool extend(Sequence& sequence, int32_t num_positions);
  void release(Sequence& sequence);

  // Most blocks of a group a sequence of num_positions holds at once.
  int64_t peak_blocks(size_t group, int64_t num_positions) const;
  // Blocks of a group the sequence holds now.
  int64_t held_blocks(const Sequence& sequence, size_t group) const;

  size_t num_groups() const { return free_.size(); }
  int64_t num_free(size_t group) const { return static_cast<int64_t>(free_[group].size()); }
  int64_t num_total(size_t group) const { return num_blocks_[group]; }

 private:
  void take_back_behind_window(Sequence& sequence, size_t group);

  int32_t block_size_;
  std::vector<int32_t> num_blocks_;
  std::vector<int32_t> windows_;
  int32_t max_chunk_;
  std::vector<std::vector<int32_t>> free_;  // [group], a stack
};

}  // namespace mpinfer::engine
