#include "lib/model/lm_head.h"

#include <algorithm>

#include "lib/core/error.h"
#include "lib/model/params.h"

namespace mpinfer::model {
namespace {

using backend::LogprobEntry;
using backend::Matrix;
using backend::MaxPair;
using backend::Stream;
using backend::Workspace;

constexpr int64_t kGreedyRows = 4096;  // at once; 8 bytes a row and rank

Matrix view(void* data, DType dtype, int64_t rows, int64_t cols) {
  return {.data = data, .dtype = dtype, .rows = rows, .cols = cols, .stride = cols};
}

MaxPair* take_pairs(Workspace& workspace, int tp, int64_t rows) {
  return workspace.take_array<MaxPair>(rows * tp);
}

// Buffers of a chunk of up to rows logits rows, rows a multiple of tp.
struct SampleBuffers {
  Matrix local;            // [rows, ceil(vocab / tp)]: all rows, this rank's vocabulary
  Matrix received;         // [tp * rows / tp, ceil(vocab / tp)]: this rank's rows, part by part
  Matrix whole;            // [rows / tp, vocab]: this rank's rows
  int32_t* ids = nullptr;  // [rows]
};

// With one rank the three matrices are one: its part is all of the vocabulary.
SampleBuffers take_buffers(Workspace& workspace, int64_t vocab, int tp, int64_t rows) {
  const int64_t part = ceil_part(vocab, tp, 0).size;
  SampleBuffers out;
  out.local = workspace.take(rows, part, DType::kF32);
  out.received = tp == 1 ? out.local : workspace.take(rows, part, DType::kF32);
  out.whole = tp == 1 ? out.local : workspace.take(rows / tp, vocab, DType::kF32);
  out.ids = workspace.take_array<int32_t>(rows);
  return out;
}

LogprobEntry* take_entries(Workspace& workspace, int64_t rows) {
  return workspace.take_array<LogprobEntry>(rows * (1 + backend::kMaxTopLogprobs));
}

int64_t chunk_rows(int64_t max_logit_rows, int tp) {
  return std::max<int64_t>(tp, max_logit_rows / tp * tp);
}

}  // namespace

struct LmHead::Impl {
  backend::Backend& backend;
  comm::Communicator& tp;
  const ModelConfig& config;
  const StageWeights& weights;
  Workspace& workspace;
  int64_t at_once;  // logits rows of a chunk, a multiple of tp

  // parts [tp * rows, ceil(vocab / tp)] → out [rows, vocab].
  void join(Stream stream, const Matrix& out, const Matrix& parts) {
    if (out.data == parts.data) return;
    for (int rank = 0; rank < tp.size(); ++rank) {
      const Part part = ceil_part(config.vocab_size, tp.size(), rank);
      backend.copy(stream, out.slice_cols(part.begin, part.size),
                   parts.slice_rows(rank * out.rows, out.rows).slice_cols(0, part.size));
    }
  }

  // Logits of this rank's vocabulary into the leading columns of out [rows, ceil(vocab / tp)].
  void local_logits(Stream stream, const Matrix& out, const Matrix& hidden) {
    backend.lm_head_logits(
        stream, out.slice_rows(0, hidden.rows).slice_cols(0, weights.lm_head.out_features), hidden,
        weights.lm_head, config.logits_scale);
  }

  // Which rows of a chunk are this rank's: [first, first + count); the last rank may have fewer.
  struct Share {
    int64_t per_rank = 0;
    int64_t first = 0;
    int64_t count = 0;
  };
  Share share_of(int64_t rows) const {
    const int64_t per_rank = (rows + tp.size() - 1) / tp.size();
    const int64_t first = std::min(rows, per_rank * tp.rank());
    return {per_rank, first, std::min(per_rank, rows - first)};
  }

  // Logits over the whole vocabulary of this rank's share of the chunk.
  Matrix deal_logits(Stream stream, const SampleBuffers& buffers, const Matrix& hidden) {
    const Share share = share_of(hidden.rows);
    local_logits(stream, buffers.local, hidden);
    tp.all_to_all(stream, buffers.received.data, buffers.local.data,
                  share.per_rank * buffers.local.cols * size_of(DType::kF32));
    const Matrix whole = buffers.whole.slice_rows(0, share.per_rank);
    join(stream, whole, buffers.received);
    return whole.slice_rows(0, share.count);
  }

  void sample_chunk(Stream stream, int32_t* ids, const Matrix& hidden, const SamplingInput& input) {
    const Workspace::Scope scope(workspace);
    const SampleBuffers buffers = take_buffers(workspace, config.vocab_size, tp.size(), at_once);
    const Share share = share_of(hidden.rows);
    const Matrix logits = deal_logits(stream, buffers, hidden);
    int32_t* my_ids = buffers.ids + share.per_rank * tp.rank();
    backend::SampleBatch batch{.logits = logits, .rows = input.rows + share.first};
    if (input.adjustment_offsets != nullptr) {
      batch.adjustment_offsets = input.adjustment_offsets + share.first;
      batch.adjustments = input.adjustments;
    }
    if (share.count > 0) {
      if (input.row_masks != nullptr)
        backend.mask_logits(stream, logits, input.masks, input.row_masks + share.first);
      backend.sample(stream, my_ids, batch);
    }
    tp.all_gather(stream, buffers.ids, my_ids, share.per_rank * size_of(DType::kI32));
    backend.copy(stream, view(ids, DType::kI32, 1, hidden.rows),
                 view(buffers.ids, DType::kI32, 1, hidden.rows));
  }

  void logprob_chunk(Stream stream, LogprobEntry* out, const Matrix& hidden, const int32_t* ids,
                     int32_t num_top) {
    const Workspace::Scope scope(workspace);
    const SampleBuffers buffers = take_buffers(workspace, config.vocab_size, tp.size(), at_once);
    auto* gathered = take_entries(workspace, at_once);
    const Share share = share_of(hidden.rows);
    const Matrix logits = deal_logits(stream, buffers, hidden);
    const int64_t width = 1 + int64_t{num_top};
    LogprobEntry* mine = gathered + share.per_rank * width * tp.rank();
    if (share.count > 0)
      backend.log_softmax_top_k(stream, mine, logits, ids + share.first, num_top);
    tp.all_gather(stream, gathered, mine,
                  share.per_rank * width * static_cast<int64_t>(sizeof(LogprobEntry)));
    const int64_t words = hidden.rows * width * 2;
    backend.copy(stream, view(out, DType::kI32, 1, words), view(gathered, DType::kI32, 1, words));
  }
};

LmHead::LmHead(backend::Backend& backend, comm::Communicator& tp, const ModelConfig& config,
               const StageWeights& weights, Workspace& workspace, int64_t max_logit_rows)
    : impl_(std::make_unique<Impl>(Impl{.backend = backend,
                                        .tp = tp,
                                        .config = config,
                                        .weights = weights,
                                        .workspace = workspace,
                                        .at_once = chunk_rows(max_logit_rows, tp.size())})) {
  MPINFER_CHECK(weights.last, "LM head on a stage that is not the last");
  MPINFER_CHECK(tp.size() == weights.tp && tp.rank() == weights.tp_rank,
                "weights of rank {} of {} on rank {} of {}", weights.tp_rank, weights.tp, tp.rank(),
                tp.size());
}

LmHead::~LmHead() = default;

void LmHead::gather(Stream stream, const Matrix& hidden, const Matrix& residual,
                    const int32_t* row_index) {
  if (hidden.rows == 0) return;
  impl_->backend.gather_rows(stream, hidden, residual, row_index);
  impl_->backend.rms_norm(stream, hidden, hidden, impl_->weights.final_norm,
                          impl_->config.rms_norm_eps);
}

// A positive logits_scale moves no maximum, so it is left out.
void LmHead::greedy(Stream stream, int32_t* ids, const Matrix& hidden) {
  Impl& m = *impl_;
  const Workspace::Scope scope(m.workspace);
  MaxPair* pairs = take_pairs(m.workspace, m.tp.size(), std::min(hidden.rows, kGreedyRows));
  for (int64_t begin = 0; begin < hidden.rows; begin += kGreedyRows) {
    const int64_t rows = std::min(kGreedyRows, hidden.rows - begin);
    MaxPair* mine = pairs + rows * m.tp.rank();
    m.backend.lm_head_max(stream, mine, hidden.slice_rows(begin, rows), m.weights.lm_head,
                          checked_cast<int32_t>(m.weights.vocab_begin));
    m.tp.all_gather(stream, pairs, mine, rows * static_cast<int64_t>(sizeof(MaxPair)));
    m.backend.merge_max(stream, ids + begin, pairs, m.tp.size(), rows);
  }
}

void LmHead::sample(Stream stream, int32_t* ids, const Matrix& hidden, const SamplingInput& input) {
  Impl& m = *impl_;
  for (int64_t begin = 0; begin < hidden.rows; begin += m.at_once) {
    const int64_t rows = std::min(m.at_once, hidden.rows - begin);
    SamplingInput chunk{.rows = input.rows + begin};
    if (input.adjustment_offsets != nullptr) {
      chunk.adjustment_offsets = input.adjustment_offsets + begin;
      chunk.adjustments = input.adjustments;
    }
    if (input.row_masks != nullptr) {
      chunk.row_masks = input.row_masks + begin;
      chunk.masks = input.masks;
    }
    m.sample_chunk(stream, ids + begin, hidden.slice_rows(begin, rows), chunk);
  }
}

void LmHead::logprobs(Stream stream, LogprobEntry* out, const Matrix& hidden, const int32_t* ids,
                      int32_t num_top) {
  Impl& m = *impl_;
  for (int64_t begin = 0; begin < hidden.rows; begin += m.at_once) {
    const int64_t rows = std::min(m.at_once, hidden.rows - begin);
    m.logprob_chunk(stream, out + begin * (1 + int64_t{num_top}), hidden.slice_rows(begin, rows),
                    ids + begin, num_top);
  }
}

void LmHead::logits(Stream stream, const Matrix& out, const Matrix& hidden) {
  Impl& m = *impl_;
  const int64_t at_once = m.at_once / m.tp.size();
  const Workspace::Scope scope(m.workspace);
  const Matrix parts =
      take_buffers(m.workspace, m.config.vocab_size, m.tp.size(), m.at_once).received;
  for (int64_t begin = 0; begin < hidden.rows; begin += at_once) {
    const int64_t rows = std::min(at_once, hidden.rows - begin);
    const Matrix mine = parts.slice_rows(rows * m.tp.rank(), rows);
    m.local_logits(stream, mine, hidden.slice_rows(begin, rows));
    m.tp.all_gather(stream, parts.data, mine.data, rows * parts.cols * size_of(DType::kF32));
    m.join(stream, out.slice_rows(begin, rows), parts);
  }
}

int64_t LmHead::workspace_bytes(const ModelConfig& config, int tp, int64_t max_logit_rows,
                                DType /*activation*/) {
  Workspace pairs;
  take_pairs(pairs, tp, kGreedyRows);
  Workspace chunk;
  take_buffers(chunk, config.vocab_size, tp, chunk_rows(max_logit_rows, tp));
  take_entries(chunk, chunk_rows(max_logit_rows, tp));
  return std::max(pairs.peak_bytes(), chunk.peak_bytes());
}

}  // namespace mpinfer::model
