#include "lib/engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "lib/core/error.h"

namespace mpinfer::engine {
namespace {

backend::SampleRow sample_row(const PlanEntry& entry, uint64_t run_seed) {
  const Request& request = entry.sequence->request;
  const SamplingParams& s = request.sampling;
  backend::SampleRow row;
  row.temperature = s.temperature;
  row.top_p = s.top_p;
  row.min_p = s.min_p;
  row.top_k = s.top_k;
  row.seed = s.seed.value_or(run_seed);
  row.index = s.seed.has_value() ? ~0ULL : static_cast<uint64_t>(request.index);
  row.sample = static_cast<uint32_t>(request.sample);
  row.position = static_cast<uint32_t>(entry.completion_position);
  row.repetition_penalty = s.repetition_penalty;
  row.frequency_penalty = s.frequency_penalty;
  row.presence_penalty = s.presence_penalty;
  return row;
}

// Starts with the prompt's tokens at zero draws: they count for the repetition penalty alone.
std::map<int32_t, int32_t>& counts_of(Sequence& sequence) {
  if (sequence.drawn_counts.empty()) {
    for (const int32_t token : sequence.request.prompt_token_ids)
      sequence.drawn_counts.try_emplace(token, 0);
    for (const int32_t token : sequence.request.begun_token_ids) ++sequence.drawn_counts[token];
  }
  return sequence.drawn_counts;
}

// Whether no allowed token is left once the bans hold.
template <class Changes>
bool bans_all(const std::vector<uint32_t>& allowed, const Changes& changes) {
  int64_t left = 0;
  for (const uint32_t word : allowed) left += std::popcount(word);
  for (const auto& [token, change] : changes) {
    const auto at = static_cast<size_t>(token / 32);
    const bool counted = at < allowed.size() && (allowed[at] >> (token % 32) & 1) != 0;
    left -= change.banned && counted ? 1 : 0;
  }
  return left == 0;
}

constexpr int64_t align(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

Sampler::Sampler(backend::Backend& backend, uint64_t run_seed, std::vector<int32_t> eos_token_ids,
                 int64_t vocab_size, int32_t max_rows, int32_t ring, TokenGrammars* grammars)
    : backend_(backend),
      run_seed_(run_seed),
      eos_token_ids_(std::move(eos_token_ids)),
      vocab_size_(vocab_size),
      grammars_(grammars) {
  const int64_t bytes =
      align(int64_t{max_rows} * static_cast<int64_t>(sizeof(backend::SampleRow))) +
      align((int64_t{max_rows} + 1) * 4) + 65536;
  for (int32_t i = 0; i < ring; ++i)
    ring_.push_back({backend.allocate_host(bytes), backend.allocate(bytes)});
}

bool Sampler::needs_history(const StepPlan& plan) {
  return std::any_of(plan.logit_entries.begin() + plan.num_greedy, plan.logit_entries.end(),
                     [&](int32_t entry) {
                       const SamplingParams& s =
                           plan.entries[static_cast<size_t>(entry)].sequence->request.sampling;
                       return s.penalised() || !s.bad_words.empty() || s.constrained();
                     });
}

void Sampler::observe(const StepPlan& plan, std::span<const int32_t> ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    Sequence& sequence = *plan.entries[static_cast<size_t>(plan.logit_entries[i])].sequence;
    if (ids[i] < 0) continue;
    if (sequence.request.sampling.penalised()) ++counts_of(sequence)[ids[i]];
    if (!sequence.request.sampling.bad_words.empty()) sequence.drawn.push_back(ids[i]);
    if (sequence.request.sampling.constrained()) matcher_of(sequence).advance(ids[i]);
  }
}

// Bans and biases of the row, by token.
std::map<int32_t, Sampler::Change> Sampler::changes_of(const PlanEntry& entry) const {
  const Sequence& sequence = *entry.sequence;
  const SamplingParams& s = sequence.request.sampling;
  std::map<int32_t, Change> changes;
  for (const LogitBias& bias : s.logit_bias) changes[bias.token_id].bias = bias.bias;
  for (const std::vector<int32_t>& word : s.bad_words) {
    const auto prefix = static_cast<std::ptrdiff_t>(word.size()) - 1;
    const auto drawn = static_cast<std::ptrdiff_t>(sequence.drawn.size());
    if (drawn >= prefix && std::equal(word.begin(), word.end() - 1, sequence.drawn.end() - prefix))
      changes[word.back()].banned = true;
  }
  if (entry.completion_position < s.min_tokens) {
    for (const int32_t token : eos_token_ids_) changes[token].banned = true;
    for (const int32_t token : s.stop_token_ids) changes[token].banned = true;
  }
  return changes;
}

void Sampler::add_adjustments(std::vector<backend::LogitAdjustment>& out, const PlanEntry& entry,
                              const Bits& allowed) const {
  Sequence& sequence = *entry.sequence;
  std::map<int32_t, Change> changes = changes_of(entry);
  if (sequence.request.sampling.constrained() && !changes.empty() && bans_all(*allowed, changes)) {
    for (auto& [token, change] : changes) change.banned = false;
  }
  const auto add = [&out](int32_t token, const Change& change, int32_t count, bool in_context) {
    backend::LogitAdjustment adjustment;
    adjustment.token = token;
    adjustment.output_count = count;
    adjustment.bias = change.bias;
    adjustment.in_context = in_context ? 1 : 0;
    adjustment.banned = change.banned ? 1 : 0;
    out.push_back(adjustment);
  };
  if (sequence.request.sampling.penalised()) {
    for (const auto& [token, count] : counts_of(sequence)) {
      const auto change = changes.find(token);
      add(token, change == changes.end() ? Change() : change->second, count, /*in_context=*/true);
      if (change != changes.end()) changes.erase(change);
    }
  }
  for (const auto& [token, change] : changes) add(token, change, 0, /*in_context=*/false);
}

// Null: all are.
Sampler::Bits Sampler::allowed_bits(Sequence& sequence) const {
  const SamplingParams& s = sequence.request.sampling;
  if (s.constrained()) return matcher_of(sequence).allowed();
  if (sequence.allowed_bits == nullptr && !s.allowed_token_ids.empty()) {
    std::vector<uint32_t> bits(static_cast<size_t>(backend::mask_words(vocab_size_)), 0);
    for (const int32_t token : s.allowed_token_ids)
      bits[static_cast<size_t>(token / 32)] |= 1U << (token % 32);
    sequence.allowed_bits = std::make_shared<const std::vector<uint32_t>>(std::move(bits));
  }
  return sequence.allowed_bits;
}

TokenMatcher& Sampler::matcher_of(Sequence& sequence) const {
  if (sequence.matcher == nullptr) {
    MPINFER_CHECK(grammars_ != nullptr, "a row with a grammar, and none who knows grammars");
    sequence.matcher = grammars_->start(sequence.request.sampling.grammar);
    for (const int32_t token : sequence.request.begun_token_ids) sequence.matcher->advance(token);
  }
  return *sequence.matcher;
}

model::SamplingInput Sampler::prepare(backend::Stream stream, const StepPlan& plan) {
  std::vector<backend::SampleRow> rows;
  std::vector<int32_t> offsets = {0};
  std::vector<backend::LogitAdjustment> adjustments;
  std::vector<int32_t> row_masks;
  std::vector<uint32_t> masks;
  std::map<Bits, int32_t> placed;
  const int64_t words = backend::mask_words(vocab_size_);
  for (auto i = static_cast<size_t>(plan.num_greedy); i < plan.logit_entries.size(); ++i) {
    const PlanEntry& entry = plan.entries[static_cast<size_t>(plan.logit_entries[i])];
    rows.push_back(sample_row(entry, run_seed_));
    const Bits bits = allowed_bits(*entry.sequence);
    add_adjustments(adjustments, entry, bits);
    offsets.push_back(checked_cast<int32_t>(adjustments.size()));
    row_masks.push_back(-1);
    if (bits == nullptr) continue;
    // Rows at the same place of a grammar have one mask.
    const auto [mask, fresh] =
        placed.try_emplace(bits, checked_cast<int32_t>(static_cast<int64_t>(masks.size()) / words));
    row_masks.back() = mask->second;
    if (fresh) masks.insert(masks.end(), bits->begin(), bits->end());
  }
  const auto bytes_of = [](const auto& v) { return static_cast<int64_t>(v.size() * sizeof(v[0])); };
  int64_t bytes = 0;
  const auto place = [&](const auto& v) {
    const int64_t at = bytes;
    bytes += align(bytes_of(v));
    return at;
  };
  const int64_t rows_at = place(rows);
  const int64_t offsets_at = place(offsets);
  const int64_t adjustments_at = place(adjustments);
  const int64_t row_masks_at = place(row_masks);
  const int64_t masks_at = place(masks);
  Staging& staging = ring_[static_cast<size_t>(plan.number) % ring_.size()];
  if (bytes > staging.host.bytes()) {
    staging.host = backend_.allocate_host(2 * bytes);
    staging.device = backend_.allocate(2 * bytes);
  }
  char* host = static_cast<char*>(staging.host.data());
  char* device = static_cast<char*>(staging.device.data());
  const auto put = [&](const auto& v, int64_t at) {
    if (!v.empty()) std::memcpy(host + at, v.data(), v.size() * sizeof(v[0]));
  };
  put(rows, rows_at);
  put(offsets, offsets_at);
  put(adjustments, adjustments_at);
  put(row_masks, row_masks_at);
  put(masks, masks_at);
  backend_.upload(stream, device, host, bytes);
  model::SamplingInput input;
  input.rows = reinterpret_cast<const backend::SampleRow*>(device + rows_at);
  if (!adjustments.empty()) {
    input.adjustment_offsets = reinterpret_cast<const int32_t*>(device + offsets_at);
    input.adjustments = reinterpret_cast<const backend::LogitAdjustment*>(device + adjustments_at);
  }
  if (!masks.empty()) {
    input.row_masks = reinterpret_cast<const int32_t*>(device + row_masks_at);
    input.masks = reinterpret_cast<const uint32_t*>(device + masks_at);
  }
  return input;
}

}  // namespace mpinfer::engine
