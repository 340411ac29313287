// mpinfer merge OUT: the ordered output from the journals of all shards. A shard that is missing or
// not done is named with its rows, and OUT is left alone; --partial writes what there is beside it.
#include <algorithm>

#include "apps/commands/commands.h"
#include "apps/commands/run_setup.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/ordered_writer.h"
#include "lib/io/progress.h"
#include "lib/io/run_record.h"
#include "lib/job/output.h"
#include "lib/job/run_status.h"

namespace mpinfer::apps {
namespace {

// Every shard that was begun is of the same run; the first of them.
const io::Manifest& common_manifest(const std::vector<job::RunStatus>& shards) {
  const io::Manifest* first = nullptr;
  for (const job::RunStatus& shard : shards) {
    if (!shard.manifest) continue;
    if (first == nullptr) first = &*shard.manifest;
    if (shard.manifest->run_id == first->run_id) continue;
    std::string difference = io::first_difference(first->identity, shard.manifest->identity);
    if (difference.empty()) difference = "the input is another";
    throw Error(ExitCode::kUsage, fmt::format("{}: is of another run than the shards before it: {}",
                                              shard.directory, difference));
  }
  if (first == nullptr) throw Error(ExitCode::kUsage, "no shard was begun");
  return *first;
}

struct AllResults {
  std::vector<io::File> journals;
  std::vector<io::StoredResult> results;
};

AllResults read_shards(const std::vector<job::RunStatus>& shards) {
  AllResults all;
  for (const job::RunStatus& shard : shards) {
    if (!shard.manifest) continue;
    job::EarlierResults found = job::read_all_results(shard);
    const auto before = static_cast<uint32_t>(all.journals.size());
    for (io::File& journal : found.journals) all.journals.push_back(std::move(journal));
    for (io::StoredResult& result : found.results) {
      result.journal += before;
      all.results.push_back(result);
    }
  }
  return all;
}

// "rows 20 to 29 (10 of them)", of the rows that no shard has.
std::string missing_rows(const AllResults& all, const io::Manifest& manifest) {
  std::vector<bool> done(static_cast<size_t>(manifest.num_rows), false);
  for (const io::StoredResult& result : all.results) {
    done[static_cast<size_t>(result.row - manifest.first_row)] = true;
  }
  const auto first = std::find(done.begin(), done.end(), false);
  if (first == done.end()) return "";
  const auto last = std::find(done.rbegin(), done.rend(), false);
  return fmt::format("rows {} to {} ({} of them)", manifest.first_row + (first - done.begin()),
                     manifest.first_row + (done.rend() - last) - 1,
                     io::with_thousands(std::count(first, done.end(), false)));
}

}  // namespace

int merge_command(const Options& options) {
  const std::string directory = run_directory(options);
  const auto shards = job::read_status(directory);
  const io::Manifest& manifest = common_manifest(shards);
  if (shards.size() == 1 && shards[0].num_shards == 1 && !options.partial) {
    throw Error(
        ExitCode::kUsage,
        fmt::format("{}: a run without shards writes its output itself; run it again to end "
                    "it, or give --partial for the rows there are",
                    directory));
  }
  AllResults all = read_shards(shards);
  const std::string missing = missing_rows(all, manifest);
  const auto errors = manifest.configuration.find("errors");
  const bool separate =
      errors != manifest.configuration.end() && errors->second.starts_with("separate");
  job::OutputOptions output{.path = options.output,
                            .errors_path = separate ? options.output + ".errors" : "",
                            .first_row = manifest.first_row,
                            .num_rows = manifest.num_rows};
  if (options.partial) {
    output.path = options.output == "-" ? "-" : options.output + ".partial";
    if (separate) output.errors_path = output.path + ".errors";
    const int64_t lines = job::write_partial_output(all.journals, std::move(all.results), output);
    spdlog::info("{}: {} of {} rows{}", output.path, io::with_thousands(lines),
                 io::with_thousands(manifest.num_rows),
                 missing.empty() ? "" : "; without " + missing);
    return 0;
  }
  int code = 0;
  for (const job::RunStatus& shard : shards) {
    if (shard.state == "complete") {
      code = std::max(code, shard.exit_code);
      continue;
    }
    spdlog::error("shard {} of {}: {}{}", shard.shard, shard.num_shards,
                  shard.manifest ? shard.state : "not begun",
                  shard.reason.empty() ? "" : ": " + printable(shard.reason));
  }
  if (!missing.empty()) {
    spdlog::error("{}: not written: {} have no answer", options.output, missing);
    return static_cast<int>(ExitCode::kStopped);
  }
  io::require_writable_output(options.output, manifest.input_files, /*overwrite=*/true);
  const io::RunLock lock(directory, {.job = options.job.id});
  output.locked = options.output != "-";
  job::write_output(comm::HostComm(), all.journals, std::move(all.results), output);
  spdlog::info("{}: {} rows of {} shards", options.output, io::with_thousands(manifest.num_rows),
               shards.size());
  return code;
}

}  // namespace mpinfer::apps
