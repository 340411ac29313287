// What the attention suites share: random sequences, a double-precision loop, a paged batch.
#pragma once

#include <numeric>

#include "tests/parity/backend_fixture.h"

namespace mpinfer::backend::parity {

struct Heads {
  int32_t q = 1;
  int32_t kv = 1;
  int32_t head_dim = 64;
};

struct Case {
  Heads heads;
  int32_t block_size;
  int32_t window;
  float softcap;
  bool sinks;
};

// Sequences with their whole q, k, v [tokens, heads * head_dim]; a batch is made of the last rows
// of each.
struct Sequence {
  int64_t context = 0;
  std::vector<float> q, k, v;
};

inline Sequence random_sequence(Random& random, const Heads& h, int64_t context, DType dtype) {
  return {.context = context,
          .q = rounded(random_floats(random, context * h.q * h.head_dim), dtype),
          .k = rounded(random_floats(random, context * h.kv * h.head_dim), dtype),
          .v = rounded(random_floats(random, context * h.kv * h.head_dim), dtype)};
}

// out of position i of a sequence, head h: [head_dim].
inline std::vector<double> reference(const Sequence& s, const Heads& heads, int64_t position,
                                     int64_t head, const AttentionOptions& options,
                                     const std::vector<float>& sinks) {
  const int64_t n = heads.head_dim;
  const int64_t kv_head = head / (heads.q / heads.kv);
  const int64_t first =
      options.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - options.window);
  std::vector<double> logits;
  for (int64_t j = first; j <= position; ++j) {
    double dot = 0.0;
    for (int64_t d = 0; d < n; ++d) {
      dot += static_cast<double>(s.q[static_cast<size_t>((position * heads.q + head) * n + d)]) *
             static_cast<double>(s.k[static_cast<size_t>((j * heads.kv + kv_head) * n + d)]);
    }
    dot *= static_cast<double>(options.scale);
    const auto cap = static_cast<double>(options.softcap);
    logits.push_back(cap > 0.0 ? cap * std::tanh(dot / cap) : dot);
  }
  double highest = *std::max_element(logits.begin(), logits.end());
  const bool sink = !sinks.empty();
  const double sink_logit = sink ? static_cast<double>(sinks[static_cast<size_t>(head)]) : 0.0;
  if (sink) highest = std::max(highest, sink_logit);
  double total = sink ? std::exp(sink_logit - highest) : 0.0;
  std::vector<double> out(static_cast<size_t>(n), 0.0);
  for (size_t j = 0; j < logits.size(); ++j) {
    const double p = std::exp(logits[j] - highest);
    total += p;
    const int64_t token = first + static_cast<int64_t>(j);
    for (int64_t d = 0; d < n; ++d) {
      out[static_cast<size_t>(d)] +=
          p * static_cast<double>(s.v[static_cast<size_t>((token * heads.kv + kv_head) * n + d)]);
    }
  }
  for (double& value : out) value /= total;
  return out;
}

// The cache filled with the sequences' k and v in shuffled blocks, NaN everywhere else; with a
// window, blocks below every row's view have no entry in the table.
class PagedCase {
 public:
  PagedCase(Backend& backend, const Heads& heads, int32_t block_size,
            const std::vector<Sequence>& sequences, const std::vector<int64_t>& rows,
            int32_t window, Random& random, std::vector<PrefixGroup> groups = {})
      : backend_(backend), heads_(heads), block_size_(block_size), groups_(std::move(groups)) {
    int64_t blocks = 0;
    for (const Sequence& s : sequences) {
      table_stride_ = std::max(table_stride_, blocks_of(s.context));
      blocks += blocks_of(s.context);
    }
    std::vector<int32_t> order(static_cast<size_t>(blocks + 3));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    const int64_t n = heads.head_dim;
    const int64_t block_floats = int64_t{heads.kv} * block_size * n;
    std::vector<float> k(static_cast<size_t>(block_floats) * order.size(), std::nanf(""));
    std::vector<float> v = k;
    cu_.push_back(0);
    size_t next = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& s = sequences[i];
      const int64_t first_row = s.context - rows[i];
      const int64_t lowest = window == 0 ? 0 : std::max<int64_t>(0, first_row + 1 - window);
      std::vector<int32_t> line(static_cast<size_t>(table_stride_), -1);
      for (int64_t b = lowest / block_size; b < blocks_of(s.context); ++b) {
        const int64_t block = order[next++];
        line[static_cast<size_t>(b)] = static_cast<int32_t>(block);
        for (int64_t t = b * block_size; t < std::min((b + 1) * block_size, s.context); ++t) {
          for (int64_t h = 0; h < heads.kv; ++h) {
            const int64_t to = block * block_floats + (h * block_size + t % block_size) * n;
            const int64_t from = (t * heads.kv + h) * n;
            for (int64_t d = 0; d < n; ++d) {
              const int64_t at = key_offset(backend, t % block_size, d, block_size, n);
              k[static_cast<size_t>(block * block_floats + h * block_size * n + at)] =
                  s.k[static_cast<size_t>(from + d)];
            }
            std::copy_n(s.v.begin() + from, n, v.begin() + to);
          }
        }
      }
      table_.insert(table_.end(), line.begin(), line.end());
      cu_.push_back(cu_.back() + static_cast<int32_t>(rows[i]));
      context_.push_back(static_cast<int32_t>(s.context));
      const auto width = static_cast<int64_t>(heads.q) * n;
      q_.insert(q_.end(), s.q.begin() + first_row * width, s.q.end());
      if (rows[i] == 1 && num_decodes_ == static_cast<int32_t>(i)) ++num_decodes_;
    }
    num_blocks_ = static_cast<int64_t>(order.size());
    k_ = std::move(k);
    v_ = std::move(v);
    prefix_lens_.assign(static_cast<size_t>(num_decodes_), 0);
    for (const PrefixGroup& group : groups_) {
      const auto first = table_.begin() + group.first_sequence * table_stride_;
      for (int32_t member = 0; member < group.num_sequences; ++member) {
        std::copy_n(first, group.num_tokens / block_size, first + member * table_stride_);
        prefix_lens_[static_cast<size_t>(group.first_sequence + member)] = group.num_tokens;
      }
    }
  }

  // gap: elements between rows of q and of out; 8 keeps rows aligned for wide loads.
  // grouped: whether the backend hears of shared prefixes.
  std::vector<float> run(AttentionOptions options, const std::vector<float>& sinks, int64_t gap = 5,
                         bool grouped = true) const {
    const DType dtype = backend_.activation_dtype();
    const int64_t n = heads_.head_dim;
    const int64_t block_floats = int64_t{heads_.kv} * block_size_ * n;
    DeviceMatrix k(backend_, num_blocks_, block_floats, dtype, 0);
    DeviceMatrix v(backend_, num_blocks_, block_floats, dtype, 0);
    k.write(k_);
    v.write(v_);
    const DeviceMatrix q(backend_, cu_.back(), heads_.q * n, q_, gap);
    const DeviceMatrix out(backend_, cu_.back(), heads_.q * n, dtype, gap);
    const DeviceArray<int32_t> cu(backend_, cu_);
    const DeviceArray<int32_t> context(backend_, context_);
    const DeviceArray<int32_t> table(backend_, table_);
    const DeviceArray<float> device_sinks(backend_, sinks);
    const DeviceArray<PrefixGroup> groups(backend_, groups_);
    const DeviceArray<int32_t> prefix_lens(backend_, prefix_lens_);
    if (!sinks.empty()) options.sinks = device_sinks.data();
    backend_.attention(Stream::kCompute, out.view(), q.view(),
                       {.k = k.view().data,
                        .v = v.view().data,
                        .dtype = dtype,
                        .block_stride = block_floats,
                        .head_stride = block_size_ * n,
                        .token_stride = n,
                        .block_size = block_size_,
                        .num_kv_heads = heads_.kv,
                        .head_dim = heads_.head_dim},
                       {.num_sequences = static_cast<int32_t>(context_.size()),
                        .num_decodes = num_decodes_,
                        .cu_seqlens_q = cu.data(),
                        .context_lens = context.data(),
                        .block_table = table.data(),
                        .block_table_stride = table_stride_,
                        .prefix_groups = groups.data(),
                        .prefix_lens = prefix_lens.data(),
                        .host_prefix_groups = grouped ? std::span<const PrefixGroup>(groups_)
                                                      : std::span<const PrefixGroup>(),
                        .host_cu_seqlens_q = cu_,
                        .host_context_lens = context_},
                       options);
    return out.read();
  }

 private:
  int64_t blocks_of(int64_t tokens) const { return (tokens + block_size_ - 1) / block_size_; }

  Backend& backend_;
  Heads heads_;
  int32_t block_size_;
  int64_t table_stride_ = 1;
  int64_t num_blocks_ = 0;
  int32_t num_decodes_ = 0;
  std::vector<int32_t> cu_, context_, table_, prefix_lens_;
  std::vector<PrefixGroup> groups_;
  std::vector<float> q_, k_, v_;
};

// The rows of a batch: for each sequence its last rows[s], each all heads.
inline std::vector<double> reference_rows(const std::vector<Sequence>& sequences,
                                          const std::vector<int64_t>& rows, const Heads& heads,
                                          const AttentionOptions& options,
                                          const std::vector<float>& sinks) {
  std::vector<double> want;
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (int64_t p = sequences[s].context - rows[s]; p < sequences[s].context; ++p) {
      for (int64_t head = 0; head < heads.q; ++head) {
        const auto part = reference(sequences[s], heads, p, head, options, sinks);
        want.insert(want.end(), part.begin(), part.end());
      }
    }
  }
  return want;
}

}  // namespace mpinfer::backend::parity
