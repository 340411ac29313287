#include "apps/job_environment.h"

#include <unistd.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/option_values.h"
#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::apps {
namespace {

std::string text_of(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The value of MPINFER_DP_<name> or VLLM_DP_<name>; empty: neither is set.
std::string dp_text(const std::string& name) {
  const std::string ours = text_of(("MPINFER_DP_" + name).c_str());
  const std::string alias = text_of(("VLLM_DP_" + name).c_str());
  if (!ours.empty() && !alias.empty() && ours != alias) {
    throw Error(ExitCode::kUsage, fmt::format("MPINFER_DP_{} {} and VLLM_DP_{} {} differ", name,
                                              printable(ours), name, printable(alias)));
  }
  return ours.empty() ? alias : ours;
}

struct Pair {
  int rank = -1;
  int size = -1;
};

Pair own_pair() {
  const std::string rank = dp_text("RANK");
  const std::string size = dp_text("SIZE");
  if (rank.empty() && size.empty()) return {};
  if (rank.empty() || size.empty()) {
    throw Error(
        ExitCode::kUsage,
        fmt::format("MPINFER_DP_{} is set and MPINFER_DP_{} is not: set both, or --shard i/n",
                    rank.empty() ? "SIZE" : "RANK", rank.empty() ? "RANK" : "SIZE"));
  }
  try {
    Pair pair;
    pair.size = static_cast<int>(parse_integer(size, 1, 1 << 20));
    pair.rank = static_cast<int>(parse_integer(rank, 0, pair.size - 1));
    return pair;
  } catch (const Error& error) {
    throw Error(ExitCode::kUsage, fmt::format("MPINFER_DP_RANK {}, MPINFER_DP_SIZE {}: {}",
                                              printable(rank), printable(size), error.what()));
  }
}

// Every rank's pair; the first refusal is everybody's.
std::vector<Pair> pairs_of(const comm::HostComm& world, std::string* refusal) {
  nlohmann::json mine;
  try {
    const Pair pair = own_pair();
    mine = {pair.rank, pair.size};
  } catch (const Error& error) {
    mine = error.what();
  }
  std::vector<Pair> pairs;
  for (const std::string& text :
       world.all_gather(mine.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace))) {
    const auto json = nlohmann::json::parse(text);
    if (json.is_string()) {
      *refusal = json.get<std::string>();
      return {};
    }
    pairs.push_back({json[0].get<int>(), json[1].get<int>()});
  }
  return pairs;
}

}  // namespace

void prepare_world_of_one() {
  for (const char* name : {"PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"}) {
    if (std::getenv(name) != nullptr) return;
  }
  setenv("OMPI_MCA_ess_singleton_isolated", "1", /*overwrite=*/0);
  // Where Open MPI keeps its session: it ends the process when it cannot make a directory there.
  const std::string own = text_of("TMPDIR");
  if (::access(own.empty() ? "/tmp" : own.c_str(), W_OK) == 0) return;
  for (const char* directory : {"/tmp", "/dev/shm", "/var/tmp", "."}) {
    if (::access(directory, W_OK) != 0) continue;
    setenv("OMPI_MCA_orte_tmpdir_base", directory, /*overwrite=*/0);
    return;
  }
}

Options::Job read_job() {
  const auto number = [](const char* name) {
    return static_cast<int64_t>(std::strtoll(text_of(name).c_str(), nullptr, 10));
  };
  return {.id = text_of("SLURM_JOB_ID"),
          .restart_count = number("SLURM_RESTART_COUNT"),
          .end_time = number("SLURM_JOB_END_TIME")};
}

DpVariables read_dp_variables(comm::HostComm world) {
  DpVariables variables;
  const std::vector<Pair> pairs = pairs_of(world, &variables.refusal);
  if (!variables.refusal.empty()) {
    variables.world = std::move(world);
    return variables;
  }
  const Pair first = pairs.front();
  std::map<int, int> ranks_of;
  bool same = true;
  for (const Pair& pair : pairs) {
    ++ranks_of[pair.rank];
    same = same && pair.rank == first.rank && pair.size == first.size;
  }
  if (!same) {
    bool covers = static_cast<int>(ranks_of.size()) == first.size;
    for (const Pair& pair : pairs) {
      covers = covers && pair.size == first.size &&
               ranks_of[pair.rank] * first.size == static_cast<int>(pairs.size());
    }
    if (!covers) {
      variables.refusal = fmt::format(
          "MPINFER_DP_RANK and MPINFER_DP_SIZE differ between the {} ranks of this job without "
          "giving each of 0 to {} equally many: set them alike (this job is one shard), or as dp "
          "coordinates",
          pairs.size(), first.size - 1);
      variables.world = std::move(world);
      return variables;
    }
    variables.dp = first.size;
    variables.world = world.split(0, pairs[static_cast<size_t>(world.rank())].rank);
    return variables;
  }
  if (first.size > 0) {
    variables.shard = first.rank;
    variables.num_shards = first.size;
  }
  variables.world = std::move(world);
  return variables;
}

}  // namespace mpinfer::apps
