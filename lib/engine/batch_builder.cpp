#include "lib/engine/batch_builder.h"

#include <algorithm>
#include <cstring>

#include "lib/core/error.h"
#include "lib/engine/prefix_groups.h"

namespace mpinfer::engine {
namespace {

// Takes int32 arrays from a staging block, each aligned to 16 bytes; host and device share the
// offsets.
class Packer {
 public:
  Packer(void* host, void* device, int64_t capacity)
      : host_(static_cast<int32_t*>(host)),
        device_(static_cast<int32_t*>(device)),
        capacity_(capacity / 4) {}

  struct Array {
    int32_t* host = nullptr;
    int32_t* device = nullptr;
    void push(int32_t value) { host[size++] = value; }
    int64_t size = 0;
  };
  Array take(int64_t count) {
    Array array{host_ + used_, device_ + used_};
    used_ += (count + 3) / 4 * 4;
    MPINFER_CHECK(used_ <= capacity_, "step of {} bytes beyond its staging of {}", used_ * 4,
                  capacity_ * 4);
    return array;
  }
  int64_t bytes() const { return used_ * 4; }

 private:
  int32_t* host_;
  int32_t* device_;
  int64_t capacity_;
  int64_t used_ = 0;
};

model::GroupInput lay_out_group(Packer& packer, const StepPlan& plan, size_t group,
                                int32_t block_size) {
  const auto num_sequences = static_cast<int64_t>(plan.entries.size());
  int64_t stride = 1;
  for (const PlanEntry& entry : plan.entries) {
    stride = std::max(stride, static_cast<int64_t>(entry.blocks[group].size()));
  }
  auto slot_mapping = packer.take(plan.num_rows);
  auto cu_seqlens_q = packer.take(num_sequences + 1);
  auto context_lens = packer.take(num_sequences);
  auto block_table = packer.take(num_sequences * stride);
  int32_t rows = 0;
  cu_seqlens_q.push(0);
  for (const PlanEntry& entry : plan.entries) {
    const auto& blocks = entry.blocks[group];
    for (int32_t position = entry.first_position; position < entry.context_len(); ++position) {
      slot_mapping.push(blocks[static_cast<size_t>(position / block_size)] * block_size +
                        position % block_size);
    }
    rows += entry.num_rows;
    cu_seqlens_q.push(rows);
    context_lens.push(entry.context_len());
    for (int64_t i = 0; i < stride; ++i) {
      block_table.push(i < static_cast<int64_t>(blocks.size()) ? blocks[static_cast<size_t>(i)]
                                                               : -1);
    }
  }
  const std::vector<backend::PrefixGroup> groups = find_prefix_groups(plan, group, block_size);
  auto prefix_groups =
      packer.take(std::ssize(groups) * static_cast<int64_t>(sizeof(backend::PrefixGroup)) / 4);
  auto prefix_lens = packer.take(groups.empty() ? 0 : plan.num_decodes);
  if (!groups.empty()) {
    std::memcpy(prefix_groups.host, groups.data(), groups.size() * sizeof(backend::PrefixGroup));
    std::fill_n(prefix_lens.host, plan.num_decodes, 0);
    for (const backend::PrefixGroup& one : groups) {
      std::fill_n(prefix_lens.host + one.first_sequence, one.num_sequences, one.num_tokens);
    }
  }
  model::GroupInput input;
  input.slot_mapping = slot_mapping.device;
  input.attention.num_sequences = static_cast<int32_t>(num_sequences);
  input.attention.num_decodes = plan.num_decodes;
  input.attention.cu_seqlens_q = cu_seqlens_q.device;
  input.attention.context_lens = context_lens.device;
  input.attention.block_table = block_table.device;
  input.attention.block_table_stride = stride;
  input.attention.prefix_groups =
      reinterpret_cast<const backend::PrefixGroup*>(prefix_groups.device);
  input.attention.prefix_lens = prefix_lens.device;
  input.attention.host_prefix_groups = {
      reinterpret_cast<const backend::PrefixGroup*>(prefix_groups.host), groups.size()};
  input.attention.host_cu_seqlens_q = {cu_seqlens_q.host, static_cast<size_t>(num_sequences + 1)};
  input.attention.host_context_lens = {context_lens.host, static_cast<size_t>(num_sequences)};
  return input;
}

}  // namespace

int64_t BatchBuilder::bytes(const BatchLimits& limits) {
  const int64_t per_group =
      limits.max_rows + 4 * limits.max_sequences + limits.max_sequences * limits.max_blocks + 24;
  const int64_t logprob_rows = limits.max_rows + limits.max_sequences;
  return 4 * (3 * limits.max_rows + 2 * limits.max_sequences + 3 * logprob_rows + 48 +
              static_cast<int64_t>(limits.num_groups) * per_group);
}

BatchBuilder::BatchBuilder(backend::Backend& backend, const BatchLimits& limits, int32_t ring)
    : backend_(backend), limits_(limits) {
  for (int32_t i = 0; i < ring; ++i) {
    ring_.push_back({backend.allocate_host(bytes(limits)), backend.allocate(bytes(limits))});
  }
}

DeviceBatch BatchBuilder::build(backend::Stream stream, const StepPlan& plan) {
  const Staging& staging = ring_[static_cast<size_t>(plan.number) % ring_.size()];
  Packer packer(staging.host.data(), staging.device.data(), staging.host.bytes());
  auto ids = packer.take(plan.num_rows);
  auto positions = packer.take(plan.num_rows);
  auto row_slots = packer.take(plan.num_rows);
  for (const PlanEntry& entry : plan.entries) {
    for (int32_t position = entry.first_position; position < entry.context_len(); ++position) {
      ids.push(entry.decode ? 0 : entry.sequence->known_token(position));
      positions.push(position);
      row_slots.push(entry.decode ? entry.slot : -1);
    }
  }
  auto logit_rows = packer.take(plan.num_logit_rows());
  auto logit_slots = packer.take(plan.num_logit_rows());
  std::vector<int32_t> last_row(plan.entries.size());
  int32_t rows = 0;
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    rows += plan.entries[i].num_rows;
    last_row[i] = rows - 1;
  }
  for (const int32_t entry : plan.logit_entries) {
    logit_rows.push(last_row[static_cast<size_t>(entry)]);
    logit_slots.push(plan.entries[static_cast<size_t>(entry)].slot);
  }
  auto logprob_rows = packer.take(plan.num_logprob_rows());
  auto logprob_ids = packer.take(plan.num_logprob_rows());
  auto logprob_draws = packer.take(plan.num_logprob_rows());
  for (const LogprobRow& row : plan.logprob_rows) {
    const Sequence& sequence = *plan.entries[static_cast<size_t>(row.entry)].sequence;
    logprob_rows.push(row.row);
    logprob_ids.push(row.logit_index < 0 ? sequence.known_token(row.position) : -1);
    logprob_draws.push(row.logit_index);
  }
  DeviceBatch batch;
  batch.logprob_rows = logprob_rows.device;
  batch.logprob_ids = logprob_ids.device;
  batch.logprob_draws = logprob_draws.device;
  batch.input.num_rows = plan.num_rows;
  batch.input.ids = ids.device;
  batch.input.positions = positions.device;
  for (size_t group = 0; group < limits_.num_groups; ++group) {
    batch.input.groups.push_back(lay_out_group(packer, plan, group, limits_.block_size));
  }
  batch.ids = ids.device;
  batch.row_slots = row_slots.device;
  batch.logit_rows = logit_rows.device;
  batch.logit_slots = logit_slots.device;
  backend_.upload(stream, staging.device.data(), staging.host.data(), packer.bytes());
  return batch;
}

}  // namespace mpinfer::engine
