#include "lib/engine/block_manager.h"

#include <algorithm>

#include "lib/core/error.h"

namespace mpinfer::engine {

BlockManager::BlockManager(int32_t block_size, std::vector<int32_t> num_blocks,
                           std::vector<int32_t> windows, int32_t max_chunk)
    : block_size_(block_size),
      num_blocks_(std::move(num_blocks)),
      windows_(std::move(windows)),
      max_chunk_(max_chunk) {
  MPINFER_CHECK(block_size_ > 0 && num_blocks_.size() == windows_.size());
  for (const int32_t count : num_blocks_) {
    auto& free = free_.emplace_back();
    free.reserve(static_cast<size_t>(count));
    for (int32_t block = count - 1; block >= 0; --block) free.push_back(block);
  }
}

void BlockManager::take_back_behind_window(Sequence& sequence, size_t group) {
  if (windows_[group] == 0) return;
  auto& table = sequence.blocks[group];
  // The next row is at num_computed and sees positions > num_computed - window.
  const int64_t first_seen =
      std::max<int64_t>(0, int64_t{sequence.num_computed} - windows_[group] + 1);
  const auto num_behind = static_cast<size_t>(first_seen / block_size_);
  for (size_t i = std::min(num_behind, table.size()); i-- > 0 && table[i] >= 0;) {
    free_[group].push_back(table[i]);
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
    enough = enough && (needed <= have || needed - have <= free_[group].size());
  }
  if (!enough) return false;
  for (size_t group = 0; group < num_groups(); ++group) {
    auto& table = sequence.blocks[group];
    while (table.size() < needed) {
      table.push_back(free_[group].back());
      free_[group].pop_back();
    }
  }
  return true;
}

void BlockManager::release(Sequence& sequence) {
  for (size_t group = 0; group < sequence.blocks.size(); ++group) {
    auto& table = sequence.blocks[group];
    for (auto block = table.rbegin(); block != table.rend(); ++block) {
      if (*block >= 0) free_[group].push_back(*block);
    }
    table.clear();
  }
}

int64_t BlockManager::peak_blocks(size_t group, int64_t num_positions) const {
  const int64_t all = (num_positions + block_size_ - 1) / block_size_;
  if (windows_[group] == 0) return all;
  return std::min(all, (int64_t{windows_[group]} + max_chunk_ + block_size_ - 1) / block_size_ + 1);
}

int64_t BlockManager::held_blocks(const Sequence& sequence, size_t group) const {
  if (sequence.blocks.size() <= group) return 0;
  if (windows_[group] == 0) return static_cast<int64_t>(sequence.blocks[group].size());
  return std::count_if(sequence.blocks[group].begin(), sequence.blocks[group].end(),
                       [](int32_t block) { return block >= 0; });
}

}  // namespace mpinfer::engine
