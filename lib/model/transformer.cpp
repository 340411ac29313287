#include "lib/model/transformer.h"

#include <algorithm>

#include "lib/core/error.h"
#include "lib/model/attention.h"
#include "lib/model/boundary.h"
#include "lib/model/embedding.h"
#include "lib/model/latent_attention.h"
#include "lib/model/mlp.h"
#include "lib/model/moe.h"
#include "lib/model/params.h"
#include "lib/model/rope.h"

namespace mpinfer::model {
namespace {

using backend::Matrix;
using backend::Stream;
using backend::Workspace;

struct StepSizes {  // of one TP rank
  int tp = 1;
  bool pieces = false;  // sums over tp may go in pieces
  int64_t hidden = 0;
  Part q_heads = {};
  Part kv_heads = {};
  int64_t q_width = 0;
  int64_t qkv_width = 0;
  int64_t all_qkv_width = 0;  // 0: a rank computes q and k of its own heads alone
  int64_t intermediate = 0;
  MoeSizes moe = {};
};

StepSizes step_sizes(const ModelConfig& config, const ShardOf& shard) {
  const int tp = shard.tp;
  const int tp_rank = shard.tp_rank;
  const Part q = query_heads(config, tp, tp_rank);
  const Part kv = kv_heads(config, tp, tp_rank);
  const int64_t q_width = q.size * config.head_dim;
  const int64_t kv_width = kv.size * config.head_dim;
  const int64_t all_heads = int64_t{config.num_attention_heads} + config.num_key_value_heads;
  return {
      .tp = tp,
      .hidden = config.hidden_size,
      .q_heads = q,
      .kv_heads = kv,
      .q_width = q_width,
      .qkv_width = q_width + 2 * kv_width,
      .all_qkv_width = config.qk_norm_whole && tp > 1 ? all_heads * config.head_dim + kv_width : 0,
      .intermediate = ceil_part(config.intermediate_size, tp, tp_rank).size,
      .moe = moe_sizes(config, shard)};
}

struct StepBuffers {
  BoundaryRows boundary;  // all but the residual
  AttentionBuffers attention;
  LatentBuffers latent;  // instead of attention
  MlpBuffers mlp;
  MoeBuffers moe;
};

// Attention and MLP never live together: they share their temporaries' memory. most_rows: the
// largest of a lockstep group's members, which all must agree on.
StepBuffers take_buffers(Workspace& workspace, const ModelConfig& config, const StepSizes& sizes,
                         int64_t rows, int64_t most_rows, DType dtype) {
  StepBuffers out;
  out.boundary.normed = workspace.take(rows, sizes.hidden, dtype);
  out.boundary.partial = workspace.take(rows, sizes.hidden, dtype);
  if (sizes.pieces) {
    out.boundary.received =
        workspace.take(Boundary::received_rows(rows, sizes.tp), sizes.hidden, dtype);
  }
  const int64_t mark = workspace.mark();
  if (config.is_latent()) {
    out.latent = take_latent_buffers(workspace, config, sizes.q_heads.size, out.boundary.partial);
  } else {
    out.attention.qkv = workspace.take(rows, sizes.qkv_width, dtype);
    if (sizes.all_qkv_width > 0) {
      out.attention.all_qkv = workspace.take(rows, sizes.all_qkv_width, dtype);
    }
    out.attention.attended = workspace.take(rows, sizes.q_width, dtype);
  }
  workspace.reset(mark);
  const int64_t chunk = std::min(rows, mlp_chunk_rows(sizes.intermediate, dtype));
  out.mlp.gate_up = workspace.take(chunk, 2 * sizes.intermediate, dtype);
  out.mlp.activated = workspace.take(chunk, sizes.intermediate, dtype);
  if (config.has_experts()) {
    workspace.reset(mark);
    out.moe = take_moe_buffers(workspace, config, sizes.moe, out.boundary.partial, most_rows);
  }
  return out;
}

int64_t most_rows_of(const BatchInput& batch) {
  if (batch.group_rows.empty()) return batch.num_rows;
  return *std::max_element(batch.group_rows.begin(), batch.group_rows.end());
}

ShardOf shard_of(const StageWeights& weights) {
  return {.stage = weights.stage,
          .tp = weights.tp,
          .tp_rank = weights.tp_rank,
          .ep = weights.ep,
          .ep_rank = weights.ep_rank};
}

}  // namespace

struct Transformer::Impl {
  backend::Backend& backend;
  comm::Communicator& tp;
  const ModelConfig& config;
  const StageWeights& weights;
  KvCache& cache;
  Workspace& workspace;
  StepSizes sizes;
  comm::Communicator* ep = nullptr;
  backend::Buffer rope_table = {};
  backend::RopeView rope = {};
  backend::Buffer counts = {};  // i64 [layers, experts]

  void make_rope(int64_t max_positions) {
    const std::vector<float> table = model::rope_table(config.rope, max_positions);
    const int64_t bytes = std::ssize(table) * size_of(DType::kF32);
    rope_table = backend.allocate(bytes);
    backend.upload(Stream::kCopy, rope_table.data(), table.data(), bytes);
    backend.synchronize();
    rope = {.cos_sin = static_cast<const float*>(rope_table.data()),
            .rotary_dim = config.rope.rotary_dim};
  }

  Partial run_experts(Stream stream, int32_t index, const BatchInput& batch, const Matrix& x,
                      const MoeBuffers& buffers, const std::optional<backend::AddNorm>& then) {
    return moe({.backend = backend,
                .config = config,
                .stage = weights,
                .weights = weights.layers[static_cast<size_t>(index)],
                .ep = ep,
                .group_rows = batch.group_rows,
                .counts = static_cast<int64_t*>(counts.data()) + index * config.moe.num_experts},
               stream, x, buffers, then);
  }

  void run_attention(Stream stream, int32_t index, const BatchInput& batch, Boundary& boundary,
                     const StepBuffers& buffers) {
    const LayerWeights& layer = weights.layers[static_cast<size_t>(index)];
    const int32_t layer_id = weights.stage.begin + index;
    const AttentionLayer attention{.backend = backend,
                                   .config = config,
                                   .layer = config.layers[static_cast<size_t>(layer_id)],
                                   .weights = layer,
                                   .kv = cache.layer(layer_id),
                                   .rope = rope,
                                   .first_q_head = sizes.q_heads.begin,
                                   .first_kv_head = sizes.kv_heads.begin};
    if (config.is_latent()) {
      boundary.sum_all(
          attend_latent(attention, stream, boundary.all_normed(), batch, buffers.latent),
          layer.post_attention_norm);
      return;
    }
    for (int piece = 0; piece < boundary.num_pieces(); ++piece) {
      project_qkv(attention, stream, boundary.normed(piece), boundary.rows_of(piece),
                  buffers.attention);
      boundary.add_earlier();
    }
    attend(attention, stream, batch, buffers.attention);
    for (int piece = 0; piece < boundary.num_pieces(); ++piece) {
      boundary.sum(piece,
                   project_out(attention, stream, boundary.partial(piece), boundary.rows_of(piece),
                               buffers.attention),
                   layer.post_attention_norm);
    }
  }

  void run_layer(Stream stream, int32_t index, const BatchInput& batch, Boundary& boundary,
                 const StepBuffers& buffers) {
    run_attention(stream, index, batch, boundary, buffers);
    const auto at = static_cast<size_t>(index);
    const LayerWeights& layer = weights.layers[at];
    const void* next_norm =
        at + 1 == weights.layers.size() ? nullptr : weights.layers[at + 1].input_norm;
    const auto layer_id = static_cast<size_t>(weights.stage.begin + index);
    if (config.layers[layer_id].moe) {
      const std::optional<backend::AddNorm> then = boundary.alone(next_norm);
      const Partial partial =
          run_experts(stream, index, batch, boundary.all_normed(), buffers.moe, then);
      if (!then) boundary.sum_all(partial, next_norm);
      return;
    }
    for (int piece = 0; piece < boundary.num_pieces(); ++piece) {
      const Matrix normed = boundary.normed(piece);
      boundary.sum(
          piece, mlp(backend, stream, boundary.partial(piece), normed, config, layer, buffers.mlp),
          next_norm);
    }
  }
};

Transformer::Transformer(backend::Backend& backend, comm::Communicator& tp,
                         const ModelConfig& config, const StageWeights& weights, KvCache& cache,
                         Workspace& workspace, int64_t max_positions, comm::Communicator* ep)
    : impl_(std::make_unique<Impl>(Impl{.backend = backend,
                                        .tp = tp,
                                        .config = config,
                                        .weights = weights,
                                        .cache = cache,
                                        .workspace = workspace,
                                        .sizes = step_sizes(config, shard_of(weights))})) {
  MPINFER_CHECK(tp.size() == weights.tp && tp.rank() == weights.tp_rank,
                "weights of rank {} of {} on rank {} of {}", weights.tp_rank, weights.tp, tp.rank(),
                tp.size());
  impl_->sizes.pieces = tp.may_sum_pieces();
  if (weights.ep > weights.tp) impl_->ep = ep;
  MPINFER_CHECK(weights.ep <= weights.tp ||
                    (ep != nullptr && ep->size() == weights.ep && ep->rank() == weights.ep_rank),
                "experts over {} ranks without their communicator", weights.ep);
  impl_->make_rope(max_positions);
  const int64_t bytes = std::ssize(weights.layers) * config.moe.num_experts * 8;
  impl_->counts = backend.allocate(bytes);
  backend.fill_bytes(Stream::kCompute, impl_->counts.data(), 0, bytes);
}

Transformer::~Transformer() = default;

// Without rows of its own: the collectives of the layers with experts, and nothing else.
void Transformer::serve_group(Stream stream, const BatchInput& batch, const Matrix& none) {
  Impl& m = *impl_;
  const Workspace::Scope scope(m.workspace);
  const StepBuffers buffers = take_buffers(m.workspace, m.config, m.sizes, 0, most_rows_of(batch),
                                           m.backend.activation_dtype());
  for (int32_t index = 0; index < m.weights.stage.end - m.weights.stage.begin; ++index) {
    if (!m.config.layers[static_cast<size_t>(m.weights.stage.begin + index)].moe) continue;
    m.run_experts(stream, index, batch, none, buffers.moe, std::nullopt);
  }
}

void Transformer::forward(Stream stream, const BatchInput& batch, const Matrix& residual) {
  Impl& m = *impl_;
  if (batch.num_rows == 0) {
    if (m.ep != nullptr) serve_group(stream, batch, residual);
    return;
  }
  MPINFER_CHECK(batch.groups.size() == m.config.cache_groups.size(), "{} groups for {}",
                batch.groups.size(), m.config.cache_groups.size());
  MPINFER_CHECK(residual.rows == batch.num_rows && residual.cols == m.config.hidden_size,
                "residual [{}, {}] for {} rows", residual.rows, residual.cols, batch.num_rows);
  const Workspace::Scope scope(m.workspace);
  const StepBuffers buffers = take_buffers(m.workspace, m.config, m.sizes, batch.num_rows,
                                           most_rows_of(batch), m.backend.activation_dtype());
  if (m.weights.first) {
    embed(m.backend, m.tp, stream, residual, m.config, m.weights, batch.ids);
  }
  BoundaryRows rows = buffers.boundary;
  rows.residual = residual;
  Boundary boundary(
      m.backend, m.tp, stream, rows,
      {.residual_scale = m.config.residual_multiplier, .norm_eps = m.config.rms_norm_eps});
  boundary.norm(m.weights.layers.front().input_norm);
  for (int32_t index = 0; index < m.weights.stage.end - m.weights.stage.begin; ++index) {
    m.run_layer(stream, index, batch, boundary, buffers);
  }
  boundary.finish();
}

int64_t Transformer::workspace_bytes(const ModelConfig& config, int tp, int64_t max_rows,
                                     DType activation, int ep, bool pieces) {
  Workspace measuring;
  StepSizes sizes = step_sizes(config, {.stage = {}, .tp = tp, .ep = ep});
  sizes.pieces = pieces && tp > 1;
  take_buffers(measuring, config, sizes, max_rows, max_rows, activation);
  return measuring.peak_bytes();
}

std::vector<int64_t> Transformer::expert_counts() const {
  std::vector<int64_t> out(static_cast<size_t>(impl_->counts.bytes()) / 8);
  impl_->backend.download(Stream::kCompute, out.data(), impl_->counts.data(),
                          impl_->counts.bytes());
  impl_->backend.synchronize();
  return out;
}

}  // namespace mpinfer::model
