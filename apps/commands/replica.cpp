#include "apps/commands/replica.h"

#include <exception>

#include "apps/commands/planning.h"
#include "lib/backend/workspace.h"
#include "lib/comm/mpi_communicator.h"
#include "lib/comm/nccl_communicator.h"
#include "lib/model/kv_cache.h"
#include "lib/model/lm_head.h"
#include "lib/model/loader.h"
#include "lib/model/transformer.h"

namespace mpinfer::apps {
namespace {

class Replica : public engine::Generator {
 public:
  Replica(const Options& options, const model::ModelConfig& config, const planner::Plan& plan,
          const comm::Mesh& mesh, Device& device, comm::Watch& watch, TokenGrammars* grammars)
      : backend_(*device.backend) {
    const auto make = device.cuda ? comm::make_nccl_communicator : comm::make_mpi_communicator;
    tp_ = make(mesh.tp, backend_, watch, "tp", comm::AxisUse::kCollectives);
    pp_ = make(mesh.pp, backend_, watch, "pp", comm::AxisUse::kTransfers);
    const model::StageLayers stage = plan.stages[static_cast<size_t>(mesh.at.pp)];
    const model::ShardOf shard{stage,
                               mesh.layout.pp,
                               mesh.at.pp,
                               mesh.layout.tp,
                               mesh.at.tp,
                               mesh.layout.ep,
                               mesh.layout.ep > 1 ? mesh.ep.rank() : 0};
    ep_ = make(mesh.ep, backend_, watch, "ep", comm::AxisUse::kCollectives);
    const auto format =
        options.load_format == "dummy" ? model::LoadFormat::kDummy : model::LoadFormat::kAuto;
    weights_ = std::make_unique<model::StageWeights>(model::load_weights(
        backend_, options.model, config, shard, format, options.seed, device.threads));
    const DType activation = backend_.activation_dtype();
    engine_options_.block_size =
        options.block_size > 0 ? static_cast<int32_t>(options.block_size) : (device.cuda ? 32 : 16);
    engine_options_.num_blocks = plan.memory.num_blocks;
    engine_options_.max_num_seqs = plan.memory.max_num_seqs;
    engine_options_.max_num_batched_tokens =
        static_cast<int32_t>(options.max_num_batched_tokens > 0 ? options.max_num_batched_tokens
                                                                : (device.cuda ? 16384 : 8192));
    engine_options_.max_model_len = checked_cast<int32_t>(plan.memory.max_model_len);
    engine_options_.seed = options.seed;
    engine_options_.prefix_caching = options.prefix_caching;
    engine_options_.break_even_seqs = plan.break_even_seqs;
    engine_options_.max_logit_rows = max_logit_rows(device.cuda);
    cache_ = std::make_unique<model::KvCache>(backend_, config, stage, mesh.layout.tp,
                                              engine_options_.block_size, plan.memory.num_blocks,
                                              activation);
    const int64_t rows = engine_options_.max_num_batched_tokens;
    workspace_ = std::make_unique<backend::Workspace>(
        tp_->allocate(model::Transformer::workspace_bytes(config, mesh.layout.tp, rows, activation,
                                                          mesh.layout.ep, device.cuda) +
                      model::LmHead::workspace_bytes(config, mesh.layout.tp,
                                                     engine_options_.max_logit_rows, activation)));
    transformer_ =
        std::make_unique<model::Transformer>(backend_, *tp_, config, *weights_, *cache_,
                                             *workspace_, plan.memory.max_model_len, ep_.get());
    if (weights_->last) {
      lm_head_ = std::make_unique<model::LmHead>(backend_, *tp_, config, *weights_, *workspace_,
                                                 engine_options_.max_logit_rows);
    }
    engine_ = std::make_unique<engine::Engine>(
        engine_options_, engine::EngineParts{backend_, *transformer_, lm_head_.get(), config, *pp_,
                                             mesh.replica, watch, &mesh.members, grammars});
  }

  // Unwinding: memory could not be freed while a kernel waits for a peer that is gone.
  ~Replica() override {
    if (std::uncaught_exceptions() == 0) return;
    for (const auto* communicator : {&tp_, &pp_, &ep_}) (*communicator)->abandon();
  }
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  engine::EngineStats run(engine::RequestSource* source, engine::CompletionSink* sink,
                          engine::StopStringMatcher* matcher) override {
    return engine_->run(source, sink, matcher);
  }
  engine::Progress progress() const override { return engine_->progress(); }
  std::vector<int64_t> expert_counts() const override {
    // Ranks of a replica choose for the same rows, but in a lockstep group each for a slice.
    const bool counts = weights_->tp_rank == 0 || weights_->ep > weights_->tp;
    return counts ? transformer_->expert_counts() : std::vector<int64_t>();
  }

 private:
  backend::Backend& backend_;
  std::unique_ptr<comm::Communicator> tp_;
  std::unique_ptr<comm::Communicator> pp_;
  std::unique_ptr<comm::Communicator> ep_;
  std::unique_ptr<model::StageWeights> weights_;
  engine::EngineOptions engine_options_;
  std::unique_ptr<model::KvCache> cache_;
  std::unique_ptr<backend::Workspace> workspace_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<model::LmHead> lm_head_;
  std::unique_ptr<engine::Engine> engine_;
};

}  // namespace

std::unique_ptr<engine::Generator> make_replica(const Options& options,
                                                const model::ModelConfig& config,
                                                const planner::Plan& plan, const comm::Mesh& mesh,
                                                Device& device, comm::Watch& watch,
                                                TokenGrammars* grammars) {
  return std::make_unique<Replica>(options, config, plan, mesh, device, watch, grammars);
}

}  // namespace mpinfer::apps
