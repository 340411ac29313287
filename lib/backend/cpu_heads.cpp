// The heads of the CPU backend: the greedy maximum over the vocabulary and the sampler.
#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/backend/cpu_backend_impl.h"
#include "lib/core/philox.h"

namespace mpinfer::backend {
namespace {

namespace cpu = kernels::cpu;

// Larger value first, then lower id.
bool better(float value, int32_t id, const MaxPair& than) {
  return value > than.value || (value == than.value && id < than.id);
}

// Bans → bias → repetition → frequency → presence. False: the row holds a NaN.
bool adjust(float* logits, const SampleRow& row, std::span<const LogitAdjustment> adjustments) {
  for (const LogitAdjustment& a : adjustments) {
    float x = logits[a.token];
    if (x != x) return false;
    if (a.banned != 0) {
      logits[a.token] = -std::numeric_limits<float>::infinity();
      continue;
    }
    x += a.bias;
    if (a.in_context != 0) {
      x = x > 0.0F ? x / row.repetition_penalty : x * row.repetition_penalty;
    }
    if (a.output_count > 0) {
      x -= row.frequency_penalty * static_cast<float>(a.output_count);
      x -= row.presence_penalty;
    }
    logits[a.token] = x;
  }
  return true;
}

// Entry 0: value and rank of token; the others: value and id of the largest, best first.
void rank_and_top(std::span<LogprobEntry> entries, const float* x, int64_t n, int32_t token) {
  const float chosen = x[token];
  int32_t rank = 1;
  const std::span<LogprobEntry> top = entries.subspan(1);
  size_t filled = 0;
  for (int64_t i = 0; i < n; ++i) {
    rank += x[i] > chosen || (x[i] == chosen && i < token) ? 1 : 0;
    if (filled == top.size() && (filled == 0 || x[i] <= top.back().logprob)) continue;
    size_t at = filled < top.size() ? filled++ : filled - 1;
    for (; at > 0 && top[at - 1].logprob < x[i]; --at) top[at] = top[at - 1];
    top[at] = {.logprob = x[i], .id = static_cast<int32_t>(i)};
  }
  entries[0] = {.logprob = chosen, .id = rank};
}

}  // namespace

void CpuBackend::lm_head_max(Stream, MaxPair* out, const Matrix& x, const Weight& weight,
                             int32_t first_id) {
  check_f32(x, "x");
  check_weight(weight);
  MPINFER_CHECK(x.cols == weight.in_features, "{} columns times a weight of {}", x.cols,
                weight.in_features);
  if (x.rows == 0) return;
  const int64_t at_once = rows_at_once(x.rows, x.cols);
  for (int64_t begin = 0; begin < x.rows; begin += at_once) {
    const int64_t rows = std::min(at_once, x.rows - begin);
    max_of_rows(out + begin,
                {.packed_a = pack(x.slice_rows(begin, rows)),
                 .rows = rows,
                 .depth = x.cols,
                 .out_features = weight.out_features,
                 .panels = weight.data,
                 .dtype = weight.dtype},
                first_id);
  }
}

void CpuBackend::max_of_rows(MaxPair* out, const cpu::GemmArgs& args, int32_t first_id) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  constexpr int32_t kNoId = std::numeric_limits<int32_t>::max();
  const int64_t width = kernels_.panel_width;
  const int64_t scratch = kernels_.gemm_scratch(args.rows);
  const auto lanes = static_cast<size_t>(args.rows * width);
  grow_floats(scratch + args.rows * width);
  for (ThreadMemory& memory : memory_) {
    std::fill_n(memory.floats.data() + scratch, lanes, kLowest);
    memory.ids.assign(lanes, kNoId);
    memory.flags.assign(static_cast<size_t>(args.rows), 0);
  }
  const int64_t panels = (args.out_features + width - 1) / width;
  const int64_t chunk = std::max<int64_t>(1, panels / (16 * pool_.size()));
  pool_.run((panels + chunk - 1) / chunk, [&](int64_t i, int thread) {
    ThreadMemory& memory = memory_[static_cast<size_t>(thread)];
    const cpu::MaxState state = {.best = memory.floats.data() + scratch,
                                 .id = memory.ids.data(),
                                 .has_nan = memory.flags.data()};
    kernels_.gemm_max(args, state, memory.floats.data(), first_id, i * chunk,
                      std::min((i + 1) * chunk, panels));
  });
  for (int64_t r = 0; r < args.rows; ++r) {
    MaxPair best = {.value = kLowest, .id = first_id};
    bool has_nan = false;
    for (const ThreadMemory& memory : memory_) {
      has_nan = has_nan || memory.flags[static_cast<size_t>(r)] != 0;
      for (int64_t j = r * width; j < (r + 1) * width; ++j) {
        const float value = memory.floats.data()[scratch + j];
        const int32_t id = memory.ids[static_cast<size_t>(j)];
        if (id != kNoId && better(value, id, best)) best = {.value = value, .id = id};
      }
    }
    out[r] = has_nan ? MaxPair{.value = best.value, .id = -1} : best;
  }
}

void CpuBackend::merge_max(Stream, int32_t* ids, const MaxPair* gathered, int32_t parts,
                           int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    MaxPair best = gathered[r];
    for (int32_t part = 1; part < parts && best.id >= 0; ++part) {
      const MaxPair& other = gathered[part * rows + r];
      if (other.id < 0 || better(other.value, other.id, best)) best = other;
    }
    ids[r] = best.id;
  }
}

void CpuBackend::mask_logits(Stream, const Matrix& logits, const uint32_t* masks,
                             const int32_t* row_masks) {
  check_f32(logits, "logits");
  const int64_t words = mask_words(logits.cols);
  pool_.run(logits.rows, [&](int64_t r, int) {
    if (row_masks[r] < 0) return;
    const uint32_t* mask = masks + row_masks[r] * words;
    float* x = logits.row<float>(r);
    for (int64_t w = 0; w < words; ++w) {
      if (mask[w] == ~0U) continue;
      const int64_t end = std::min(logits.cols, (w + 1) * 32);
      for (int64_t i = w * 32; i < end; ++i) {
        if ((mask[w] >> (i % 32) & 1U) == 0) x[i] = -std::numeric_limits<float>::infinity();
      }
    }
  });
}

void CpuBackend::log_softmax_top_k(Stream, LogprobEntry* out, const Matrix& logits,
                                   const int32_t* ids, int32_t num_top) {
  check_f32(logits, "logits");
  MPINFER_CHECK(num_top >= 0 && num_top <= kMaxTopLogprobs && num_top <= logits.cols,
                "{} of {} tokens", num_top, logits.cols);
  for (int64_t r = 0; r < logits.rows; ++r)
    MPINFER_CHECK(ids[r] < logits.cols, "token {} of {}", ids[r], logits.cols);
  pool_.run(logits.rows, [&](int64_t r, int thread) {
    const std::span<LogprobEntry> entries(out + r * (1 + num_top),
                                          static_cast<size_t>(1 + num_top));
    float* x = logits.row<float>(r);
    const cpu::RowMax max = kernels_.row_max(x, logits.cols);
    if (max.has_nan || ids[r] < 0) {
      std::fill(entries.begin(), entries.end(),
                LogprobEntry{.logprob = std::numeric_limits<float>::quiet_NaN(), .id = 0});
      return;
    }
    rank_and_top(entries, x, logits.cols, ids[r]);
    kernels_.weights(x, logits.cols, max.value, 1.0F, -std::numeric_limits<float>::infinity(),
                     0.0F);
    const float log_sum = static_cast<float>(
        std::log(cpu::sum_of(x, logits.cols, memory_[static_cast<size_t>(thread)].draw)));
    for (LogprobEntry& entry : entries) entry.logprob = entry.logprob - max.value - log_sum;
  });
}

void CpuBackend::sample(Stream, int32_t* ids, const SampleBatch& batch) {
  check_f32(batch.logits, "logits");
  if (batch.adjustment_offsets != nullptr) {
    for (int32_t i = batch.adjustment_offsets[0]; i < batch.adjustment_offsets[batch.logits.rows];
         ++i) {
      const int32_t token = batch.adjustments[i].token;
      MPINFER_CHECK(token >= 0 && token < batch.logits.cols, "token {} of {}", token,
                    batch.logits.cols);
    }
  }
  pool_.run(batch.logits.rows, [&](int64_t r, int thread) {
    const SampleRow& row = batch.rows[r];
    float* logits = batch.logits.row<float>(r);
    std::span<const LogitAdjustment> adjustments;
    if (batch.adjustment_offsets != nullptr) {
      adjustments = {batch.adjustments + batch.adjustment_offsets[r],
                     batch.adjustments + batch.adjustment_offsets[r + 1]};
    }
    ids[r] = -1;
    if (!adjust(logits, row, adjustments)) return;
    const float uniform = philox_uniform(
        {.seed = row.seed, .index = row.index, .sample = row.sample, .position = row.position});
    ids[r] = cpu::draw(logits, batch.logits.cols,
                       {.temperature = row.temperature,
                        .top_p = row.top_p,
                        .min_p = row.min_p,
                        .top_k = row.top_k,
                        .uniform = uniform},
                       kernels_, memory_[static_cast<size_t>(thread)].draw);
  });
}

}  // namespace mpinfer::backend
