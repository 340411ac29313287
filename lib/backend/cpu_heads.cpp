// The heads of the CPU backend: the greedy maximum over the vocabulary and the sampler.
#include <algorithm>
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
