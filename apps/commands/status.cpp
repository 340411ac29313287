// mpinfer status OUT: how far a run or its shards are and how they ended, from the run directory
// alone, whatever the launcher returned.
#include <nlohmann/json.hpp>

#include "apps/commands/commands.h"
#include "apps/commands/run_setup.h"
#include "lib/core/log.h"
#include "lib/io/progress.h"
#include "lib/job/report.h"
#include "lib/job/run_status.h"

namespace mpinfer::apps {
namespace {

nlohmann::ordered_json json_of(const job::RunStatus& status) {
  nlohmann::ordered_json json = {{"shard", status.shard},         {"state", status.state},
                                 {"exit_code", status.exit_code}, {"reason", status.reason},
                                 {"rows", status.num_rows},       {"answered", status.num_answered},
                                 {"failed", status.num_failed},   {"directory", status.directory}};
  json["attempts"] = status.manifest ? status.manifest->attempts.size() : 0;
  json["holder"] = status.holder ? nlohmann::ordered_json(status.holder->description())
                                 : nlohmann::ordered_json();
  return json;
}

std::string line_of(const job::RunStatus& status) {
  const std::string name =
      status.num_shards > 1 ? fmt::format("shard {} of {}: ", status.shard, status.num_shards) : "";
  if (!status.manifest) return name + "not begun";
  std::string line = fmt::format(
      "{}{}: {} of {} rows done, {} of them failed; {} attempt{}", name, status.state,
      io::with_thousands(status.num_answered + status.num_failed),
      io::with_thousands(status.num_rows), io::with_thousands(status.num_failed),
      status.manifest->attempts.size(), status.manifest->attempts.size() == 1 ? "" : "s");
  if (status.holder) return line + "; " + status.holder->description();
  return fmt::format(
      "{}; exit code {}: {}", line, status.exit_code,
      status.reason.empty() ? job::meaning_of(status.exit_code) : printable(status.reason, 2000));
}

}  // namespace

int status_command(const Options& options) {
  spdlog::set_level(spdlog::level::err);
  const auto shards = job::read_status(run_directory(options));
  const int exit_code = job::exit_code_of(shards);
  if (options.json) {
    nlohmann::ordered_json json = {{"exit_code", exit_code}};
    json["shards"] = nlohmann::ordered_json::array();
    for (const auto& shard : shards) json["shards"].push_back(json_of(shard));
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    for (const auto& shard : shards) fmt::print("{}\n", line_of(shard));
  }
  std::fflush(stdout);
  return options.exit_code ? exit_code : 0;
}

}  // namespace mpinfer::apps
