#include "lib/job/run_status.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <filesystem>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/file.h"
#include "lib/io/run_record.h"

namespace mpinfer::job {
namespace {

struct ShardName {
  int shard = -1;
  int num_shards = 0;
};

// "shard-3-of-16"; shard −1: another name.
ShardName shard_of(const std::string& name) {
  ShardName out;
  if (!name.starts_with("shard-")) return {};
  const char* end = name.data() + name.size();
  const auto first = std::from_chars(name.data() + sizeof("shard-") - 1, end, out.shard);
  const std::string_view rest(first.ptr, static_cast<size_t>(end - first.ptr));
  if (first.ec != std::errc{} || !rest.starts_with("-of-")) return {};
  const auto second = std::from_chars(first.ptr + 4, end, out.num_shards);
  if (second.ec != std::errc{} || second.ptr != end || out.shard >= out.num_shards) return {};
  return out;
}

RunStatus status_of(const std::string& directory, int shard, int num_shards) {
  RunStatus status;
  status.directory = directory;
  status.shard = shard;
  status.num_shards = num_shards;
  status.manifest = io::read_manifest(directory + "/manifest.json");
  if (!status.manifest) return status;
  const io::Manifest& manifest = *status.manifest;
  status.state = manifest.state;
  status.reason = manifest.reason;
  status.exit_code = manifest.exit_code;
  status.num_rows = num_shards > 1 ? manifest.num_rows_here : manifest.num_rows;
  status.num_answered = manifest.num_answered;
  status.num_failed = manifest.num_failed;
  const auto holder = io::read_lock(directory);
  if (holder && holder->alive()) status.holder = holder;
  if (manifest.state == "complete") return status;
  const ResultCounts counts = read_all_results(status).counts;
  status.num_answered = counts.num_answered;
  status.num_failed = counts.num_failed;
  const auto verdict = io::read_verdict(directory, static_cast<int>(manifest.attempts.size()));
  if (status.holder) {
    status.state = "running";
    status.exit_code = kUnderWay;
  } else if (verdict) {
    status.state = "failed";
    status.exit_code = verdict->exit_code;
    status.reason = verdict->what;
  } else if (manifest.state == "running") {
    status.state = "died";
    status.exit_code = static_cast<int>(ExitCode::kPeerFailure);
    status.reason = "no process holds the run, and none said why it ended";
  }
  return status;
}

}  // namespace

std::vector<RunStatus> read_status(const std::string& directory) {
  std::vector<RunStatus> shards;
  if (std::filesystem::exists(directory + "/manifest.json")) {
    const ShardName own = shard_of(std::filesystem::path(directory).filename().string());
    if (own.shard >= 0) return {status_of(directory, own.shard, own.num_shards)};
    return {status_of(directory, 0, 1)};
  }
  int num_shards = 0;
  for (const std::string& name : io::list_directory(directory, "shard-")) {
    const ShardName found = shard_of(name);
    if (found.shard < 0) continue;
    if (num_shards != 0 && found.num_shards != num_shards) {
      throw Error(ExitCode::kUsage, fmt::format("{}: holds shards of {} and of {}", directory,
                                                num_shards, found.num_shards));
    }
    num_shards = found.num_shards;
  }
  if (num_shards == 0) {
    throw Error(ExitCode::kUsage, fmt::format("{}: holds no run", printable(directory)));
  }
  for (int shard = 0; shard < num_shards; ++shard) {
    shards.push_back(status_of(fmt::format("{}/shard-{}-of-{}", directory, shard, num_shards),
                               shard, num_shards));
  }
  return shards;
}

int exit_code_of(const std::vector<RunStatus>& shards) {
  constexpr std::array kWorstFirst = {kUnderWay, 7, 70, 6, 5, 4, 2, 75, 3, 0};
  for (const int code : kWorstFirst) {
    const bool any = std::any_of(shards.begin(), shards.end(),
                                 [code](const RunStatus& s) { return s.exit_code == code; });
    if (any) return code;
  }
  return static_cast<int>(ExitCode::kInternal);
}

EarlierResults read_all_results(const RunStatus& run) {
  return read_earlier_results(comm::HostComm(),
                              {.directory = run.directory,
                               .run_id = run.manifest->run_id,
                               .attempt = INT_MAX,
                               .first_row = run.manifest->first_row,
                               .num_rows = run.manifest->num_rows},
                              nullptr);
}

}  // namespace mpinfer::job
