#include "lib/engine/block_manager.h"

#include <xxhash.h>

#include <algorithm>

#include "lib/core/error.h"

namespace mpinfer::engine {

std::vector<BlockHash> hash_blocks(std::span<const int32_t> tokens, int32_t block_size) {
  const auto size = static_cast<size_t>(block_size);
  std::vector<BlockHash> hashes;
  hashes.reserve(tokens.size() / size);
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  for (size_t at = 0; at + size <= tokens.size(); at += size) {
    XXH3_128bits_update(state, tokens.data() + at, size * sizeof(int32_t));
    const XXH128_hash_t digest = XXH3_128bits_digest(state);
    hashes.push_back({digest.low64, digest.high64});
  }
  XXH3_freeState(state);
  return hashes;
}

BlockManager::BlockManager(int32_t block_size, std::vector<int32_t> num_blocks,
                           std::vector<int32_t> windows, int32_t max_chunk)
    : block_size_(block_size), max_chunk_(max_chunk), groups_(num_blocks.size()) {
  MPINFER_CHECK(block_size_ > 0 && num_blocks.size() == windows.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].window = windows[g];
    groups_[g].blocks.resize(static_cast<size_t>(num_blocks[g]));
    for (int32_t block = num_blocks[g] - 1; block >= 0; --block) {
      groups_[g].blocks[static_cast<size_t>(block)].users = 1;
      drop(groups_[g], block);
    }
  }
}

void BlockManager::unlink(Group& group, int32_t block) {
  Block& b = group.blocks[static_cast<size_t>(block)];
  (b.before < 0 ? group.first_free : group.blocks[static_cast<size_t>(b.before)].after) = b.after;
  (b.after < 0 ? group.last_free : group.blocks[static_cast<size_t>(b.after)].before) = b.before;
  b.before = b.after = -1;
  --group.num_free;
}

int32_t BlockManager::take(Group& group) {
  const int32_t block = group.first_free;
  unlink(group, block);
  Block& b = group.blocks[static_cast<size_t>(block)];
  if (b.published) group.published.erase(b.hash);
  b.published = false;
  b.users = 1;
  return block;
}

void BlockManager::use(Group& group, int32_t block) const {
  Block& b = group.blocks[static_cast<size_t>(block)];
  if (b.users++ == 0) unlink(group, block);
}

// Contents that others may want are kept longest: their blocks go to the end of the list.
void BlockManager::drop(Group& group, int32_t block) const {
  Block& b = group.blocks[static_cast<size_t>(block)];
  if (--b.users > 0) return;
  ++group.num_free;
  if (b.published) {
    b.before = group.last_free;
    (b.before < 0 ? group.first_free : group.blocks[static_cast<size_t>(b.before)].after) = block;
    group.last_free = block;
  } else {
    b.after = group.first_free;
    (b.after < 0 ? group.last_free : group.blocks[static_cast<size_t>(b.after)].before) = block;
    group.first_free = block;
  }
}

int32_t BlockManager::first_seen(const Group& group, int32_t num_blocks) const {
  if (group.window == 0) return 0;
  return static_cast<int32_t>(
      std::max<int64_t>(0, int64_t{num_blocks} * block_size_ - group.window + 1) / block_size_);
}

void BlockManager::take_back_behind_window(Sequence& sequence, size_t group) {
  if (groups_[group].window == 0) return;
  auto& table = sequence.blocks[group];
  // The next row is at num_computed and sees positions > num_computed - window.
  const int64_t first =
      std::max<int64_t>(0, int64_t{sequence.num_computed} - groups_[group].window + 1);
  const auto num_behind = static_cast<size_t>(first / block_size_);
  for (size_t i = std::min(num_behind, table.size()); i-- > 0 && table[i] >= 0;) {
    drop(groups_[group], table[i]);
    table[i] = -1;
  }
}

bool BlockManager::extend(Sequence& sequence, int32_t num_positions) {
  sequence.blocks.resize(num_groups());
  const auto needed = static_cast<size_t>((num_positions + block_size_ - 1) / block_size_);
  bool enough = true;
  for (size_t group = 0; group < num_groups(); ++group) {
    take_back_behind_window(sequence, group);
    const size_t have = sequence.blocks[group].size();
    enough = enough &&
             (needed <= have || static_cast<int64_t>(needed - have) <= groups_[group].num_free);
  }
  if (!enough) return false;
  for (size_t group = 0; group < num_groups(); ++group) {
    auto& table = sequence.blocks[group];
    while (table.size() < needed) table.push_back(take(groups_[group]));
  }
  return true;
}

void BlockManager::release(Sequence& sequence) {
  for (size_t group = 0; group < sequence.blocks.size(); ++group) {
    auto& table = sequence.blocks[group];
    for (auto block = table.rbegin(); block != table.rend(); ++block) {
      if (*block >= 0) drop(groups_[group], *block);
    }
    table.clear();
  }
}

BlockManager::Prefix BlockManager::find_prefix(std::span<const BlockHash> hashes,
                                               int32_t max_blocks) const {
  Prefix prefix;
  prefix.num_in_use.assign(num_groups(), 0);
  const auto holds = [&](const Group& group, int32_t block) {
    return group.published.contains(hashes[static_cast<size_t>(block)]);
  };
  int32_t count = std::min(max_blocks, static_cast<int32_t>(hashes.size()));
  for (const Group& group : groups_) {
    if (group.window != 0) continue;
    int32_t run = 0;
    while (run < count && holds(group, run)) ++run;
    count = run;
  }
  // A window needs only the blocks that the next row sees: shorten the run until all groups agree.
  for (bool settled = false; !settled && count > 0;) {
    settled = true;
    for (const Group& group : groups_) {
      if (group.window == 0) continue;
      for (int32_t block = count - 1; count > 0 && block >= first_seen(group, count); --block) {
        if (holds(group, block)) continue;
        count = block;
        settled = false;
      }
    }
  }
  prefix.num_blocks = count;
  for (size_t g = 0; g < num_groups(); ++g) {
    for (int32_t block = first_seen(groups_[g], count); block < count; ++block) {
      const int32_t id = groups_[g].published.at(hashes[static_cast<size_t>(block)]);
      if (groups_[g].blocks[static_cast<size_t>(id)].users > 0) ++prefix.num_in_use[g];
    }
  }
  return prefix;
}

void BlockManager::adopt(Sequence& sequence, std::span<const BlockHash> hashes,
                         int32_t num_blocks) {
  sequence.blocks.resize(num_groups());
  for (size_t g = 0; g < num_groups(); ++g) {
    auto& table = sequence.blocks[g];
    MPINFER_CHECK(table.empty(), "sequence {} has blocks already", sequence.id);
    const int32_t first = first_seen(groups_[g], num_blocks);
    table.assign(static_cast<size_t>(num_blocks), -1);
    for (int32_t block = first; block < num_blocks; ++block) {
      const int32_t id = groups_[g].published.at(hashes[static_cast<size_t>(block)]);
      use(groups_[g], id);
      table[static_cast<size_t>(block)] = id;
    }
  }
}

void BlockManager::publish(const Sequence& sequence, int32_t first, int32_t last) {
  for (size_t g = 0; g < num_groups(); ++g) {
    for (int32_t block = first; block < last; ++block) {
      const int32_t id = sequence.blocks[g][static_cast<size_t>(block)];
      if (id < 0) continue;
      const BlockHash& hash = sequence.hashes[static_cast<size_t>(block)];
      Block& b = groups_[g].blocks[static_cast<size_t>(id)];
      // Another block may hold the same tokens already: that one stays the published one.
      if (b.published || !groups_[g].published.try_emplace(hash, id).second) continue;
      b.published = true;
      b.hash = hash;
    }
  }
}

void BlockManager::retract(const Sequence& sequence, int32_t first, int32_t last) {
  for (size_t g = 0; g < num_groups(); ++g) {
    for (int32_t block = first; block < last; ++block) {
      const int32_t id = sequence.blocks[g][static_cast<size_t>(block)];
      if (id < 0) continue;
      Block& b = groups_[g].blocks[static_cast<size_t>(id)];
      if (!b.published) continue;
      groups_[g].published.erase(b.hash);
      b.published = false;
    }
  }
}

int64_t BlockManager::peak_blocks(size_t group, int64_t num_positions) const {
  const int64_t all = (num_positions + block_size_ - 1) / block_size_;
  const int32_t window = groups_[group].window;
  if (window == 0) return all;
  return std::min(all, (int64_t{window} + max_chunk_ + block_size_ - 1) / block_size_ + 1);
}

int64_t BlockManager::held_blocks(const Sequence& sequence, size_t group) const {
  if (sequence.blocks.size() <= group) return 0;
  if (groups_[group].window == 0) return static_cast<int64_t>(sequence.blocks[group].size());
  return std::count_if(sequence.blocks[group].begin(), sequence.blocks[group].end(),
                       [](int32_t block) { return block >= 0; });
}

}  // namespace mpinfer::engine
