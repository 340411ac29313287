// What a run tells at its end: one record a rank, the totals, report.json and the summary on
// stderr.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lib/comm/mesh.h"
#include "lib/job/session.h"

namespace mpinfer::job {

struct RankReport {
  int rank = 0;
  std::string host;
  std::string device;
  comm::Coordinates at;
  int32_t first_layer = 0;  // half-open range
  int32_t last_layer = 0;
  int64_t num_rows = 0;                // of its replica, on its leader
  ResultCounts counts;                 // likewise
  ResultCounts earlier;                // of earlier attempts, by the leader that read them
  int64_t computed_prompt_tokens = 0;  // recomputed ones included
  int64_t kv_blocks = 0;
  int64_t preemptions = 0;
  int64_t peak_memory = 0;                // bytes
  std::map<std::string, double> seconds;  // start, load, compute, communication, host, idle, gather
  // Rows that chose the expert at each place, [layers, experts]; empty on ranks that count for no
  // one.
  std::vector<int64_t> expert_counts;
};

std::string serialise(const RankReport& report);
RankReport deserialise_rank_report(const std::string& bytes);

// A rank that died while the others went on.
struct LostRank {
  int rank = 0;  // as the launcher started it
  std::string host;
  double seconds = 0.0;    // since the start of the job
  int64_t rows_left = -1;  // not done then, and dealt again to the replicas that were left
};

struct RunReport {
  std::string tool_version;
  comm::Layout layout;
  std::string layout_reason;
  int32_t num_experts = 0;                             // of a layer that has them; 0: a dense model
  std::vector<std::vector<int32_t>> expert_placement;  // by layer, the place of each; empty: its id
  int64_t num_rows = 0;
  std::vector<RankReport> ranks;
  std::map<std::string, double> seconds;  // start, load, generate, gather, total
  int exit_code = 0;
  std::string output;
  std::string run_dir;
  std::vector<LostRank> lost;
};

// How evenly rows chose experts, over the whole job.
struct ExpertLoad {
  std::vector<std::vector<int64_t>> layers;  // rows by layer and expert; empty for a dense layer
  std::vector<int64_t> ranks;                // rows by rank of an expert-parallel group (ep > 1)
  // Largest over mean, less one: the mean over layers, since a layer waits for its fullest part.
  double expert_imbalance = 0.0;
  double rank_imbalance = 0.0;
};
ExpertLoad expert_load(const RunReport& report);

ResultCounts totals_of(const RunReport& report);
void write_report(const std::string& path, const RunReport& report);
// The lines of the summary.
std::vector<std::string> summary_of(const RunReport& report);
// A line for each lost rank.
std::vector<std::string> losses_of(const RunReport& report);
const char* meaning_of(int exit_code);

}  // namespace mpinfer::job
