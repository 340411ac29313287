// mpinfer: parse on rank 0, hand the options to every rank, run one command, turn what was thrown
// into the documented exit code. The only catch of Error in the program.
#include <fmt/core.h>

#include <cstdio>
#include <exception>
#include <string>

#include "apps/commands/commands.h"
#include "apps/job_environment.h"
#include "apps/options.h"
#include "apps/signals.h"
#include "lib/comm/mpi.h"
#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::apps {
namespace {

// Rank 0's verdict on the command line, as every rank gets it.
struct Start {
  int exit_code = 0;
  bool go = false;
  std::string options;
};

Start parse_on_rank_0(int argc, char** argv, const comm::HostComm& world) {
  Start start;
  if (world.rank() == 0) {
    try {
      const Parsed parsed = parse_options(argc, argv);
      if (!parsed.text.empty()) {
        fmt::print("{}", parsed.text);
      } else {
        start.go = true;
        start.options = serialise(parsed.options);
      }
    } catch (const Error& error) {
      fmt::print(stderr, "mpinfer: {}\n", error.what());
      start.exit_code = static_cast<int>(error.exit_code());
    }
  }
  const std::string go = start.go ? "1" : "0";
  std::string bytes = go + start.options;
  world.broadcast(bytes, 0);
  start.go = bytes[0] == '1';
  start.options = bytes.substr(1);
  return start;
}

int run(const Options& options, comm::HostComm world, LastWords& last_words) {
  switch (options.command) {
    case Command::kRun:
      return run_command(options, std::move(world), last_words);
    case Command::kPlan:
      return world.rank() == 0 ? plan_command(options, world.size()) : 0;
    case Command::kCheck:
      return world.rank() == 0 ? check_command(options, world.size()) : 0;
    case Command::kTokenize:
      return world.rank() == 0 ? tokenize_command(options) : 0;
    case Command::kMerge:
      return world.rank() == 0 ? merge_command(options) : 0;
    case Command::kStatus:
      return world.rank() == 0 ? status_command(options) : 0;
  }
  return static_cast<int>(ExitCode::kInternal);
}

// Last words of a rank that cannot go on. A world of one needs no abort.
int give_up(const comm::HostComm& world, const LastWords& last_words, int exit_code,
            const std::string& what) {
  std::fflush(stdout);  // what was said before comes first
  spdlog::error("{}", what);
  if (last_words.say) last_words.say(exit_code, what);
  spdlog::default_logger()->flush();
  if (world.size() > 1 && !last_words.together) comm::MpiSession::abort(exit_code);
  return exit_code;
}

// Shards and coordinates by variables are those of the flags, and may not contradict them.
void apply(const DpVariables& dp, Options* options) {
  if (options->command != Command::kRun) return;
  if (dp.num_shards > 0) {
    if (options->num_shards > 1 &&
        (options->num_shards != dp.num_shards || options->shard != dp.shard)) {
      throw Error(
          ExitCode::kUsage,
          fmt::format("--shard {}/{}: MPINFER_DP_RANK {} and MPINFER_DP_SIZE {} say another",
                      options->shard, options->num_shards, dp.shard, dp.num_shards));
    }
    options->shard = dp.shard;
    options->num_shards = dp.num_shards;
  }
  if (dp.dp == 0) return;
  if (options->dp != 0 && options->dp != dp.dp) {
    throw Error(ExitCode::kUsage, fmt::format("--dp {}: MPINFER_DP_SIZE is {}, and MPINFER_DP_RANK "
                                              "gives the ranks' dp coordinates",
                                              options->dp, dp.dp));
  }
  options->dp = dp.dp;
}

int guarded(int argc, char** argv) {
  block_signals();
  prepare_world_of_one();
  comm::MpiSession session(&argc, &argv);
  DpVariables dp = read_dp_variables(comm::HostComm::world());
  if (!dp.refusal.empty()) {
    if (dp.world.rank() != 0) return 0;
    fmt::print(stderr, "mpinfer: {}\n", dp.refusal);
    return static_cast<int>(ExitCode::kUsage);
  }
  comm::HostComm world = std::move(dp.world);
  const Start start = parse_on_rank_0(argc, argv, world);
  if (!start.go) return start.exit_code;
  const int rank = world.rank();
  const comm::HostComm everyone = world.duplicate();
  LastWords last_words;
  try {
    Options options = deserialise(start.options);
    set_up_log({options.log_level, options.log_format == "json", rank, comm::host_name()});
    apply(dp, &options);
    if (options.command != Command::kRun) unblock_signals();
    return run(options, std::move(world), last_words);
  } catch (const Error& error) {
    spdlog::debug("thrown at {}", error.where());
    return give_up(everyone, last_words, static_cast<int>(error.exit_code()), error.what());
  } catch (const std::bad_alloc&) {
    return give_up(everyone, last_words, static_cast<int>(ExitCode::kOutOfResource),
                   "host memory ran out");
  } catch (const std::exception& error) {
    return give_up(everyone, last_words, static_cast<int>(ExitCode::kInternal),
                   fmt::format("internal error: {}", error.what()));
  }
}

}  // namespace
}  // namespace mpinfer::apps

int main(int argc, char** argv) {
  try {
    return mpinfer::apps::guarded(argc, argv);
  } catch (const mpinfer::Error& error) {
    fmt::print(stderr, "mpinfer: {}\n", error.what());
    return static_cast<int>(error.exit_code());
  }
}
