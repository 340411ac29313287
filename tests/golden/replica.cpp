#include "tests/golden/replica.h"

#include <algorithm>
#include <exception>
#include <numeric>
#include <random>
#include <thread>

#include "lib/backend/cpu_backend.h"
#include "lib/backend/cuda_backend.h"
#include "lib/comm/single_communicator.h"
#include "lib/comm/thread_communicator.h"
#include "lib/model/lm_head.h"
#include "lib/model/transformer.h"
#include "tests/golden/strict_pieces.h"

namespace mpinfer::model::test {
namespace {

using backend::Matrix;
using backend::Stream;

constexpr int64_t kMaxPositions = 128;
constexpr int64_t kMaxLogitRows = 24;

// Blocks of every sequence in one group, handed out in a shuffled order.
class BlockTables {
 public:
  BlockTables(const std::vector<TokenSequence>& sequences, int32_t block_size, uint32_t seed)
      : block_size_(block_size) {
    int32_t total = 0;
    for (const TokenSequence& sequence : sequences) total += blocks_of(sequence);
    order_.resize(static_cast<size_t>(total));
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), std::mt19937(seed));
    size_t next = 0;
    for (const TokenSequence& sequence : sequences) {
      const auto count = static_cast<size_t>(blocks_of(sequence));
      tables_.emplace_back(order_.begin() + static_cast<int64_t>(next),
                           order_.begin() + static_cast<int64_t>(next + count));
      next += count;
      width_ = std::max(width_, count);
    }
  }

  int32_t num_blocks() const { return static_cast<int32_t>(order_.size()); }
  size_t width() const { return width_; }
  int32_t slot(size_t sequence, int64_t position) const {
    const int32_t block = tables_[sequence][static_cast<size_t>(position / block_size_)];
    return block * block_size_ + static_cast<int32_t>(position % block_size_);
  }
  // The row of the block table; blocks that lie before first_seen entirely are freed.
  void append_row(size_t sequence, int64_t first_seen, std::vector<int32_t>& out) const {
    for (size_t b = 0; b < width_; ++b) {
      const bool there =
          b < tables_[sequence].size() && (static_cast<int64_t>(b) + 1) * block_size_ > first_seen;
      out.push_back(there ? tables_[sequence][b] : -1);
    }
  }

 private:
  int32_t blocks_of(const TokenSequence& sequence) const {
    return static_cast<int32_t>(sequence.tokens.size()) / block_size_ + 1;
  }

  int32_t block_size_;
  std::vector<int32_t> order_;
  std::vector<std::vector<int32_t>> tables_;
  size_t width_ = 0;
};

struct GroupArrays {
  std::vector<int32_t> slots;
  std::vector<int32_t> table;
};

// One step: [sequence, first position, rows], single rows first.
struct StepRows {
  size_t sequence = 0;
  int64_t position = 0;
  int64_t rows = 0;
};

struct StepArrays {
  std::vector<int32_t> ids, positions, cu_seqlens = {0}, context_lens;
  std::vector<GroupArrays> groups;
  int32_t num_decodes = 0;
};

struct Stage {
  StageWeights weights;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Transformer> transformer;
};

class Rank {
 public:
  Rank(const ReplicaOptions& options, const std::vector<TokenSequence>& sequences,
       backend::Backend& backend, comm::Communicator& tp)
      : options_(options),
        sequences_(sequences),
        backend_(backend),
        tp_(tp),
        config_(load_model_config(options.directory)) {
    std::vector<int32_t> num_blocks;
    for (size_t group = 0; group < config_.cache_groups.size(); ++group) {
      tables_.emplace_back(sequences, options.block_size, static_cast<uint32_t>(group + 1));
      num_blocks.push_back(tables_.back().num_blocks());
    }
    int64_t most_rows = 0;
    for (const TokenSequence& sequence : sequences) most_rows += std::ssize(sequence.tokens);
    const DType activation = backend_.activation_dtype();
    workspace_ = backend::Workspace(backend_.allocate(
        std::max(Transformer::workspace_bytes(config_, tp.size(), most_rows, activation, ep(),
                                              tp.may_sum_pieces()),
                 LmHead::workspace_bytes(config_, tp.size(), kMaxLogitRows, activation))));
    memory_ = backend::Workspace(backend_.allocate(
        4096 + most_rows * (2 * config_.hidden_size + config_.vocab_size + 64) * 4));
    make_stages(num_blocks);
  }

  Answers run() {
    std::vector<int64_t> at(sequences_.size(), 0);
    for (std::vector<StepRows> step = plan(at); !step.empty(); step = plan(at)) {
      run_step(step);
      for (const StepRows& rows : step) at[rows.sequence] = rows.position + rows.rows;
    }
    return std::move(answers_);
  }

 private:
  int ep() const { return options_.whole_experts ? tp_.size() : 1; }

  void make_stages(const std::vector<int32_t>& num_blocks) {
    const std::vector<StageLayers> split = balance_stages(config_, options_.pp, {});
    for (int index = 0; index < options_.pp; ++index) {
      const StageLayers& layers = split[static_cast<size_t>(index)];
      Stage& stage = stages_.emplace_back();
      stage.weights = load_weights(backend_, options_.directory, config_,
                                   {.stage = layers,
                                    .num_stages = options_.pp,
                                    .stage_index = index,
                                    .tp = tp_.size(),
                                    .tp_rank = tp_.rank(),
                                    .ep = ep(),
                                    .ep_rank = options_.whole_experts ? tp_.rank() : 0},
                                   options_.dummy ? LoadFormat::kDummy : LoadFormat::kAuto, 11, 2);
      stage.cache =
          std::make_unique<KvCache>(backend_, config_, layers, tp_.size(), options_.block_size,
                                    num_blocks, backend_.activation_dtype());
    }
    for (Stage& stage : stages_) {
      stage.transformer = std::make_unique<Transformer>(backend_, tp_, config_, stage.weights,
                                                        *stage.cache, workspace_, kMaxPositions);
    }
    head_ = std::make_unique<LmHead>(backend_, tp_, config_, stages_.back().weights, workspace_,
                                     kMaxLogitRows);
  }

  std::vector<StepRows> plan(const std::vector<int64_t>& at) const {
    std::vector<StepRows> step;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const int64_t prompt_left = sequences_[s].prompt_length - at[s];
      const int64_t left = std::ssize(sequences_[s].tokens) - 1 - at[s];
      const int64_t rows = prompt_left > 0 ? std::min(prompt_left, options_.chunk) : 1;
      if (left > 0) step.push_back({s, at[s], std::min(rows, left)});
    }
    std::stable_partition(step.begin(), step.end(),
                          [](const StepRows& rows) { return rows.rows == 1; });
    return step;
  }

  StepArrays arrays_of(const std::vector<StepRows>& step) const {
    StepArrays out;
    out.groups.resize(config_.cache_groups.size());
    for (const StepRows& rows : step) {
      if (rows.rows == 1) ++out.num_decodes;
      for (int64_t p = rows.position; p < rows.position + rows.rows; ++p) {
        out.ids.push_back(sequences_[rows.sequence].tokens[static_cast<size_t>(p)]);
        out.positions.push_back(static_cast<int32_t>(p));
        for (size_t g = 0; g < out.groups.size(); ++g) {
          out.groups[g].slots.push_back(tables_[g].slot(rows.sequence, p));
        }
      }
      out.cu_seqlens.push_back(static_cast<int32_t>(out.ids.size()));
      out.context_lens.push_back(static_cast<int32_t>(rows.position + rows.rows));
      for (size_t g = 0; g < out.groups.size(); ++g) {
        const int32_t window = config_.cache_groups[g].window;
        const int64_t first_seen = window == 0 ? 0 : rows.position - window + 1;
        tables_[g].append_row(rows.sequence, first_seen, out.groups[g].table);
      }
    }
    return out;
  }

  // Lives until the step is over.
  template <class T>
  T* on_device(const std::vector<T>& values) {
    const int64_t bytes = std::ssize(values) * static_cast<int64_t>(sizeof(T));
    uploads_.push_back(backend_.allocate(bytes));
    backend_.upload(Stream::kCompute, uploads_.back().data(), values.data(), bytes);
    backend_.synchronize();
    return static_cast<T*>(uploads_.back().data());
  }
  template <class T>
  std::vector<T> on_host(const T* values, int64_t count) {
    std::vector<T> out(static_cast<size_t>(count));
    backend_.download(Stream::kCompute, out.data(), values,
                      count * static_cast<int64_t>(sizeof(T)));
    backend_.synchronize();
    return out;
  }

  BatchInput batch_of(const StepArrays& arrays) {
    BatchInput batch{.num_rows = std::ssize(arrays.ids),
                     .ids = on_device(arrays.ids),
                     .positions = on_device(arrays.positions),
                     .groups = {}};
    for (size_t g = 0; g < arrays.groups.size(); ++g) {
      GroupInput& group = batch.groups.emplace_back();
      group.slot_mapping = on_device(arrays.groups[g].slots);
      group.attention.num_sequences = static_cast<int32_t>(arrays.context_lens.size());
      group.attention.num_decodes = arrays.num_decodes;
      group.attention.cu_seqlens_q = on_device(arrays.cu_seqlens);
      group.attention.context_lens = on_device(arrays.context_lens);
      group.attention.block_table = on_device(arrays.groups[g].table);
      group.attention.block_table_stride = static_cast<int64_t>(tables_[g].width());
      group.attention.host_cu_seqlens_q = arrays.cu_seqlens;
      group.attention.host_context_lens = arrays.context_lens;
    }
    return batch;
  }

  void run_step(const std::vector<StepRows>& step) {
    const backend::Workspace::Scope scope(memory_);
    const StepArrays arrays = arrays_of(step);
    const BatchInput batch = batch_of(arrays);
    const DType dtype = backend_.activation_dtype();
    const Matrix residual = memory_.take(batch.num_rows, config_.hidden_size, dtype);
    for (Stage& stage : stages_) stage.transformer->forward(Stream::kCompute, batch, residual);

    std::vector<int32_t> row_index(static_cast<size_t>(batch.num_rows));
    std::iota(row_index.begin(), row_index.end(), 0);
    const Matrix hidden = memory_.take(batch.num_rows, config_.hidden_size, dtype);
    const Matrix logits = memory_.take(batch.num_rows, config_.vocab_size, DType::kF32);
    head_->gather(Stream::kCompute, hidden, residual, on_device(row_index));
    head_->logits(Stream::kCompute, logits, hidden);
    int32_t* greedy = on_device(std::vector<int32_t>(row_index.size()));
    int32_t* sampled = on_device(std::vector<int32_t>(row_index.size()));
    head_->greedy(Stream::kCompute, greedy, hidden);
    const std::vector<backend::SampleRow> rows(row_index.size());
    head_->sample(Stream::kCompute, sampled, hidden, {.rows = on_device(rows)});
    keep(step, on_host(logits.row<float>(0), batch.num_rows * logits.stride),
         on_host(greedy, batch.num_rows), on_host(sampled, batch.num_rows));
    uploads_.clear();
  }

  void keep(const std::vector<StepRows>& step, const std::vector<float>& logits,
            const std::vector<int32_t>& greedy, const std::vector<int32_t>& sampled) {
    const auto vocabulary = static_cast<int64_t>(logits.size() / greedy.size());
    int64_t row = 0;
    for (const StepRows& rows : step) {
      for (int64_t p = rows.position; p < rows.position + rows.rows; ++p, ++row) {
        const float* from = logits.data() + row * vocabulary;
        answers_.logits[{rows.sequence, p}].assign(from, from + vocabulary);
        answers_.greedy[{rows.sequence, p}] = greedy[static_cast<size_t>(row)];
        answers_.sampled[{rows.sequence, p}] = sampled[static_cast<size_t>(row)];
      }
    }
  }

  const ReplicaOptions& options_;
  const std::vector<TokenSequence>& sequences_;
  backend::Backend& backend_;
  comm::Communicator& tp_;
  ModelConfig config_;
  backend::Workspace workspace_;
  backend::Workspace memory_;
  std::vector<BlockTables> tables_;
  std::vector<Stage> stages_;
  std::unique_ptr<LmHead> head_;
  std::vector<backend::Buffer> uploads_;
  Answers answers_;
};

// With one rank the communicator is the one that a run without TP has.
std::vector<std::unique_ptr<comm::Communicator>> make_communicators(
    const std::vector<backend::Backend*>& backends) {
  if (backends.size() > 1) return comm::make_thread_communicators(backends);
  std::vector<std::unique_ptr<comm::Communicator>> one;
  one.push_back(std::make_unique<comm::SingleCommunicator>(*backends.front()));
  return one;
}

}  // namespace

std::vector<Answers> run_replica(const ReplicaOptions& options,
                                 const std::vector<TokenSequence>& sequences) {
  const auto size = static_cast<size_t>(options.tp);
  std::vector<std::unique_ptr<backend::Backend>> owned;
  std::vector<backend::Backend*> backends;
  for (size_t rank = 0; rank < size; ++rank) {
    owned.push_back(
        options.cuda ? backend::make_cuda_backend({.activation_dtype = options.activation})
                     : backend::make_cpu_backend({.threads = options.threads, .simd_target = ""}));
    backends.push_back(owned.back().get());
  }
  auto communicators = make_communicators(backends);
  std::vector<int> piece_sums(size);
  for (size_t rank = 0; options.piece_sums != nullptr && rank < size; ++rank) {
    communicators[rank] =
        make_strict_pieces(std::move(communicators[rank]), *backends[rank], &piece_sums[rank]);
  }
  std::vector<Answers> answers(size);
  std::vector<std::exception_ptr> failures(size);
  {
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          answers[rank] = Rank(options, sequences, *backends[rank], *communicators[rank]).run();
        } catch (...) {
          failures[rank] = std::current_exception();
        }
      });
    }
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  if (options.piece_sums != nullptr) *options.piece_sums = piece_sums.front();
  return answers;
}

}  // namespace mpinfer::model::test
