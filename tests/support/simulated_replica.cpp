// A stand-in for the engine: token = function of prompt and position, so that scheduler, journal,
// gather and merge run at thousands of rows a second without a model's arithmetic. Only the leader
// works; the replica's other ranks wait for it. MPINFER_SIMULATED_STEP_US sleeps at every step.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <thread>

#include "apps/commands/replica.h"
#include "lib/io/index.h"

namespace mpinfer::apps {
namespace {

int64_t step_us = 0;

[[gnu::constructor]] void read_step() {
  const char* text = std::getenv("MPINFER_SIMULATED_STEP_US");
  if (text == nullptr) return;
  step_us = std::atoll(text);
  ::unsetenv("MPINFER_SIMULATED_STEP_US");
}

struct Running {
  Request request;
  uint64_t hash = 0;
  std::vector<int32_t> output;
};

class SimulatedReplica : public engine::Generator {
 public:
  SimulatedReplica(const comm::HostComm& replica, int64_t vocab_size, int32_t max_num_seqs,
                   comm::Watch& watch)
      : replica_(replica), vocab_size_(vocab_size), max_num_seqs_(max_num_seqs), watch_(watch) {}

  engine::EngineStats run(engine::RequestSource* source, engine::CompletionSink* sink,
                          engine::StopStringMatcher* /*matcher*/) override {
    watch_.first_step_done();
    if (replica_.rank() == 0) lead(*source, *sink);
    char end = 0;
    const auto request = replica_.start_broadcast(&end, 1, 0);
    while (!request->test()) {
      watch_.check();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    return stats_;
  }

  engine::Progress progress() const override {
    return {.num_waiting = 0,
            .num_running = static_cast<int64_t>(running_.size()),
            .kv_blocks_used = 0,
            .kv_blocks_total = 1,
            .prompt_tokens = stats_.prompt_tokens,
            .completion_tokens = stats_.completion_tokens};
  }

 private:
  void lead(engine::RequestSource& source, engine::CompletionSink& sink) {
    bool more = true;
    bool drained = false;
    while (more || !running_.empty()) {
      watch_.check();
      if (!drained && source.drain_requested()) {
        drained = true;
        more = false;
      }
      if (drained && source.cancel_requested()) {
        for (const Running& r : running_) sink.unfinished(r.request.index, r.output);
        running_.clear();
        return;
      }
      if (more) admit(source, &more);
      if (sink.wants_unfinished()) {
        for (const Running& r : running_) sink.unfinished(r.request.index, r.output);
      }
      step(sink);
      if (step_us > 0) ::usleep(static_cast<useconds_t>(step_us));
    }
  }

  void admit(engine::RequestSource& source, bool* more) {
    const auto room = max_num_seqs_ - static_cast<int32_t>(running_.size());
    auto pull = source.pull(std::max(0, room));
    *more = pull.more_to_come;
    if (pull.requests.empty() && running_.empty()) ::usleep(100);
    for (Request& request : pull.requests) {
      Running running;
      const auto& ids = request.prompt_token_ids;
      running.hash =
          io::hash_of({reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)});
      running.output = request.begun_token_ids;
      stats_.prompt_tokens += static_cast<int64_t>(ids.size());
      running.request = std::move(request);
      running_.push_back(std::move(running));
    }
  }

  void step(engine::CompletionSink& sink) {
    ++stats_.steps;
    for (Running& running : running_) {
      const uint64_t words[2] = {running.hash, running.output.size()};
      const uint64_t hash = io::hash_of({reinterpret_cast<const char*>(words), sizeof(words)});
      running.output.push_back(static_cast<int32_t>(hash % static_cast<uint64_t>(vocab_size_)));
      ++stats_.completion_tokens;
    }
    const auto ended =
        std::stable_partition(running_.begin(), running_.end(), [](const Running& running) {
          return static_cast<int32_t>(running.output.size()) < running.request.sampling.max_tokens;
        });
    for (auto running = ended; running != running_.end(); ++running) {
      Completion completion;
      completion.index = running->request.index;
      completion.token_ids = std::move(running->output);
      sink.finished(std::move(completion));
      ++stats_.finished;
    }
    running_.erase(ended, running_.end());
  }

  const comm::HostComm& replica_;
  int64_t vocab_size_;
  int32_t max_num_seqs_;
  comm::Watch& watch_;
  std::vector<Running> running_;
  engine::EngineStats stats_;
};

}  // namespace

std::unique_ptr<engine::Generator> make_replica(const Options& /*options*/,
                                                const model::ModelConfig& config,
                                                const planner::Plan& plan, const comm::Mesh& mesh,
                                                Device& /*device*/, comm::Watch& watch,
                                                TokenGrammars* /*grammars*/) {
  return std::make_unique<SimulatedReplica>(mesh.replica, config.vocab_size,
                                            plan.memory.max_num_seqs, watch);
}

}  // namespace mpinfer::apps
