// BlockManager: the KV blocks of every cache group. Blocks are counted by who uses them; a full
// block of known tokens is published under the hash of all tokens up to its end, and a sequence
// that begins with the same tokens adopts it. A block nobody uses keeps its contents until it is
// taken again, longest unused first. Which block a sequence gets depends on the order of calls
// alone, so every rank of a replica hands out the same ones.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "lib/engine/sequence.h"

namespace mpinfer::engine {

// Hashes of the full blocks of tokens, each over everything up to its end.
std::vector<BlockHash> hash_blocks(std::span<const int32_t> tokens, int32_t block_size);

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

  // The longest run of published blocks that a sequence of these hashes begins with, at most
  // max_blocks.
  struct Prefix {
    int32_t num_blocks = 0;
    std::vector<int64_t> num_in_use;  // [group]: of them, blocks that others hold now
  };
  Prefix find_prefix(std::span<const BlockHash> hashes, int32_t max_blocks) const;
  // The sequence, which has no blocks, gets the run that find_prefix found.
  void adopt(Sequence& sequence, std::span<const BlockHash> hashes, int32_t num_blocks);
  // Blocks [first, last) of the sequence hold the tokens of its hashes from the current plan on.
  void publish(const Sequence& sequence, int32_t first, int32_t last);
  // They do not, after all.
  void retract(const Sequence& sequence, int32_t first, int32_t last);

  // Most blocks of a group a sequence of num_positions holds at once.
  int64_t peak_blocks(size_t group, int64_t num_positions) const;
  // Blocks of a group the sequence holds now.
  int64_t held_blocks(const Sequence& sequence, size_t group) const;

  size_t num_groups() const { return groups_.size(); }
  int64_t num_free(size_t group) const { return groups_[group].num_free; }
  int64_t num_total(size_t group) const {
    return static_cast<int64_t>(groups_[group].blocks.size());
  }

 private:
  struct HashOfHash {
    size_t operator()(const BlockHash& hash) const { return hash.low; }
  };
  struct Block {
    int32_t users = 0;
    int32_t before = -1;  // in the list of unused blocks
    int32_t after = -1;
    bool published = false;
    BlockHash hash;
  };
  struct Group {
    std::vector<Block> blocks;
    int32_t window = 0;
    int32_t first_free = -1;  // taken next
    int32_t last_free = -1;
    int64_t num_free = 0;
    std::unordered_map<BlockHash, int32_t, HashOfHash> published;  // looked up, never walked
  };

  int32_t take(Group& group);
  static void unlink(Group& group, int32_t block);
  void use(Group& group, int32_t block) const;
  void drop(Group& group, int32_t block) const;
  void take_back_behind_window(Sequence& sequence, size_t group);
  // Blocks before this one are not seen by a row at num_blocks * block_size.
  int32_t first_seen(const Group& group, int32_t num_blocks) const;

  int32_t block_size_;
  int32_t max_chunk_;
  std::vector<Group> groups_;
};

}  // namespace mpinfer::engine
