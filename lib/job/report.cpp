#include "lib/job/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/io/file.h"
#include "lib/io/progress.h"

namespace mpinfer::job {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const RankReport& report) {
  return {{"rank", report.rank},
          {"host", report.host},
          {"device", report.device},
          {"coordinate", {{"dp", report.at.dp}, {"pp", report.at.pp}, {"tp", report.at.tp}}},
          {"layers", {report.first_layer, report.last_layer}},
          {"rows", report.num_rows},
          {"answered", report.counts.num_answered},
          {"failed", report.counts.num_failed},
          {"errors", report.counts.errors},
          {"prompt_tokens", report.counts.prompt_tokens},
          {"cached_tokens", report.counts.cached_tokens},
          {"computed_prompt_tokens", report.computed_prompt_tokens},
          {"completion_tokens", report.counts.completion_tokens},
          {"earlier",
           {{"answered", report.earlier.num_answered},
            {"failed", report.earlier.num_failed},
            {"errors", report.earlier.errors},
            {"prompt_tokens", report.earlier.prompt_tokens},
            {"completion_tokens", report.earlier.completion_tokens}}},
          {"seconds", report.seconds},
          {"kv_blocks", report.kv_blocks},
          {"preemptions", report.preemptions},
          {"peak_memory", report.peak_memory},
          {"expert_counts", report.expert_counts}};
}

double seconds_of(const RankReport& report, const char* name) {
  const auto found = report.seconds.find(name);
  return found == report.seconds.end() ? 0.0 : found->second;
}

double seconds_of(const RunReport& report, const char* name) {
  const auto found = report.seconds.find(name);
  return found == report.seconds.end() ? 0.0 : found->second;
}

struct Spread {  // of the replicas' generate time
  double longest = 0.0;
  double shortest = 0.0;
  double mean = 0.0;
  double steady = 0.0;  // output tokens a second while all replicas work
};

Spread spread_of(const RunReport& report) {
  Spread spread;
  int count = 0;
  for (const RankReport& rank : report.ranks) {
    const double seconds = seconds_of(rank, "generate");
    if (rank.num_rows == 0 || seconds <= 0.0) continue;
    spread.shortest = count == 0 ? seconds : std::min(spread.shortest, seconds);
    spread.longest = std::max(spread.longest, seconds);
    spread.mean += seconds;
    spread.steady += static_cast<double>(rank.counts.completion_tokens) / seconds;
    ++count;
  }
  if (count > 0) spread.mean /= count;
  return spread;
}

double per_second(int64_t tokens, double seconds) {
  return seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0;
}

double excess(const std::vector<int64_t>& counts) {
  double sum = 0.0;
  double most = 0.0;
  for (const int64_t count : counts) {
    sum += static_cast<double>(count);
    most = std::max(most, static_cast<double>(count));
  }
  return sum > 0.0 ? most * static_cast<double>(counts.size()) / sum - 1.0 : 0.0;
}

struct NewTokens {  // of this attempt
  int64_t prompt = 0;
  int64_t completion = 0;
};

NewTokens new_tokens(const RunReport& report) {
  NewTokens tokens;
  for (const RankReport& rank : report.ranks) {
    tokens.prompt += rank.counts.prompt_tokens;
    tokens.completion += rank.counts.completion_tokens;
  }
  return tokens;
}

}  // namespace

std::string serialise(const RankReport& report) {
  return json_of(report).dump();
}

RankReport deserialise_rank_report(const std::string& bytes) {
  const Json json = Json::parse(bytes);
  RankReport report;
  json.at("rank").get_to(report.rank);
  json.at("host").get_to(report.host);
  json.at("device").get_to(report.device);
  const Json& at = json.at("coordinate");
  report.at = {at.at("dp").get<int>(), at.at("pp").get<int>(), at.at("tp").get<int>()};
  report.first_layer = json.at("layers").at(0).get<int32_t>();
  report.last_layer = json.at("layers").at(1).get<int32_t>();
  json.at("rows").get_to(report.num_rows);
  json.at("answered").get_to(report.counts.num_answered);
  json.at("failed").get_to(report.counts.num_failed);
  json.at("errors").get_to(report.counts.errors);
  json.at("prompt_tokens").get_to(report.counts.prompt_tokens);
  json.at("computed_prompt_tokens").get_to(report.computed_prompt_tokens);
  json.at("completion_tokens").get_to(report.counts.completion_tokens);
  json.at("cached_tokens").get_to(report.counts.cached_tokens);
  const Json& earlier = json.at("earlier");
  earlier.at("answered").get_to(report.earlier.num_answered);
  earlier.at("failed").get_to(report.earlier.num_failed);
  earlier.at("errors").get_to(report.earlier.errors);
  earlier.at("prompt_tokens").get_to(report.earlier.prompt_tokens);
  earlier.at("completion_tokens").get_to(report.earlier.completion_tokens);
  json.at("seconds").get_to(report.seconds);
  json.at("kv_blocks").get_to(report.kv_blocks);
  json.at("preemptions").get_to(report.preemptions);
  json.at("peak_memory").get_to(report.peak_memory);
  json.at("expert_counts").get_to(report.expert_counts);
  return report;
}

ExpertLoad expert_load(const RunReport& report) {
  ExpertLoad load;
  const auto experts = static_cast<size_t>(report.num_experts);
  for (const RankReport& rank : report.ranks) {
    for (size_t i = 0; i < rank.expert_counts.size(); ++i) {
      if (rank.expert_counts[i] == 0) continue;
      const size_t layer = static_cast<size_t>(rank.first_layer) + i / experts;
      if (load.layers.size() <= layer) load.layers.resize(layer + 1);
      load.layers[layer].resize(experts);  // by place, for now
      load.layers[layer][i % experts] += rank.expert_counts[i];
    }
  }
  const auto parts = static_cast<size_t>(report.layout.ep);
  if (parts > 1) load.ranks.resize(parts);
  int num_layers = 0;
  for (size_t index = 0; index < load.layers.size(); ++index) {
    const std::vector<int64_t> layer = load.layers[index];
    if (layer.empty()) continue;
    if (index < report.expert_placement.size() && !report.expert_placement[index].empty()) {
      for (size_t e = 0; e < experts; ++e) {
        load.layers[index][e] = layer[static_cast<size_t>(report.expert_placement[index][e])];
      }
    }
    ++num_layers;
    load.expert_imbalance += excess(layer);
    if (parts == 1) continue;
    std::vector<int64_t> by_rank;
    size_t expert = 0;
    for (size_t part = 0; part < parts; ++part) {  // the first hold one more
      const size_t held = experts / parts + (part < experts % parts ? 1 : 0);
      by_rank.push_back(0);
      for (const size_t end = expert + held; expert < end; ++expert)
        by_rank.back() += layer[expert];
      load.ranks[part] += by_rank.back();
    }
    load.rank_imbalance += excess(by_rank);
  }
  if (num_layers > 0) {
    load.expert_imbalance /= num_layers;
    load.rank_imbalance /= num_layers;
  }
  return load;
}

ResultCounts totals_of(const RunReport& report) {
  ResultCounts totals;
  for (const RankReport& rank : report.ranks) {
    for (const ResultCounts* counts : {&rank.counts, &rank.earlier}) {
      totals.num_answered += counts->num_answered;
      totals.num_failed += counts->num_failed;
      totals.prompt_tokens += counts->prompt_tokens;
      totals.completion_tokens += counts->completion_tokens;
      totals.cached_tokens += counts->cached_tokens;
      for (const auto& [code, count] : counts->errors) totals.errors[code] += count;
    }
  }
  return totals;
}

void write_report(const std::string& path, const RunReport& report) {
  const ResultCounts totals = totals_of(report);
  const Spread spread = spread_of(report);
  Json ranks = Json::array();
  for (const RankReport& rank : report.ranks) {
    ranks.push_back(json_of(rank));
    ranks.back().erase("expert_counts");  // summed below
  }
  Json json = {
      {"schema", 1},
      {"tool", "mpinfer " + report.tool_version},
      {"exit_code", report.exit_code},
      {"layout",
       {{"dp", report.layout.dp},
        {"pp", report.layout.pp},
        {"tp", report.layout.tp},
        {"ep", report.layout.ep},
        {"reason", report.layout_reason}}},
      {"totals",
       {{"rows", report.num_rows},
        {"answered", totals.num_answered},
        {"failed", totals.num_failed},
        {"errors", totals.errors},
        {"prompt_tokens", totals.prompt_tokens},
        {"cached_tokens", totals.cached_tokens},
        {"completion_tokens", totals.completion_tokens}}},
      {"seconds", report.seconds},
      {"tokens_per_second",
       {{"steady", spread.steady},
        {"end_to_end", per_second(new_tokens(report).completion, seconds_of(report, "total"))}}},
      {"tail_seconds", spread.longest - spread.shortest},
      {"imbalance", spread.mean > 0.0 ? spread.longest / spread.mean - 1.0 : 0.0},
      {"ranks", ranks}};
  for (const LostRank& lost : report.lost) {
    json["lost_ranks"].push_back({{"rank", lost.rank},
                                  {"host", lost.host},
                                  {"seconds", lost.seconds},
                                  {"rows_left", lost.rows_left}});
  }
  if (report.num_experts > 0) {
    const ExpertLoad load = expert_load(report);
    json["experts"] = {{"rows_by_layer", load.layers},
                       {"imbalance", load.expert_imbalance},
                       {"rows_by_rank", load.ranks},
                       {"rank_imbalance", load.rank_imbalance}};
  }
  io::replace_file(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::vector<std::string> losses_of(const RunReport& report) {
  std::vector<std::string> lines;
  for (const LostRank& lost : report.lost) {
    lines.push_back(fmt::format(
        "rank {} on {} was lost {:.1f} s after the start: the {} rows not done by then were dealt "
        "again to those that were left",
        lost.rank, lost.host, lost.seconds, io::with_thousands(lost.rows_left)));
  }
  return lines;
}

const char* meaning_of(int exit_code) {
  switch (static_cast<ExitCode>(exit_code)) {
    case ExitCode::kComplete:
      return "complete";
    case ExitCode::kFailedRows:
      return "rows failed: see the error member of their lines";
    case ExitCode::kStopped:
      return "stopped; the same command goes on where this one ended";
    default:
      return "see the message above";
  }
}

std::vector<std::string> summary_of(const RunReport& report) {
  const ResultCounts totals = totals_of(report);
  const NewTokens now = new_tokens(report);
  const Spread spread = spread_of(report);
  std::vector<std::string> lines;
  lines.push_back(
      fmt::format("{} rows: {} answered, {} failed; {} prompt and {} output tokens",
                  io::with_thousands(report.num_rows), io::with_thousands(totals.num_answered),
                  io::with_thousands(totals.num_failed), io::with_thousands(totals.prompt_tokens),
                  io::with_thousands(totals.completion_tokens)));
  if (report.num_experts > 0) {
    const ExpertLoad load = expert_load(report);
    std::string line =
        fmt::format("experts: the fullest of {} has {:.0f} % more rows than the mean",
                    report.num_experts, 100.0 * load.expert_imbalance);
    if (report.layout.ep > 1) {
      line += fmt::format(", the fullest of {} ranks {:.0f} %", report.layout.ep,
                          100.0 * load.rank_imbalance);
    }
    lines.push_back(line);
  }
  if (totals.cached_tokens > 0) {
    int64_t computed = 0;
    for (const RankReport& rank : report.ranks) {
      if (rank.at.pp == 0 && rank.at.tp == 0) computed += rank.computed_prompt_tokens;
    }
    lines.push_back(fmt::format(
        "prompts that begin alike: {} prompt tokens shared, {} computed ({:.1f} % hits)",
        io::with_thousands(totals.cached_tokens), io::with_thousands(computed),
        100.0 * static_cast<double>(totals.cached_tokens) /
            static_cast<double>(totals.cached_tokens + computed)));
  }
  for (const auto& [code, count] : totals.errors) {
    lines.push_back(fmt::format("  {}: {} rows", code, io::with_thousands(count)));
  }
  lines.push_back(fmt::format("seconds: start {:.2f}, load {:.2f}, generate {:.2f}, gather {:.2f}",
                              seconds_of(report, "start"), seconds_of(report, "load"),
                              seconds_of(report, "generate"), seconds_of(report, "gather")));
  const double generate = seconds_of(report, "generate");
  lines.push_back(fmt::format(
      "output {:.1f} tok/s while generating ({:.1f} a rank), {:.1f} with everything; with the "
      "prompts {:.1f}",
      per_second(now.completion, generate),
      per_second(now.completion, generate) / std::max(1, report.layout.world()),
      per_second(now.completion, seconds_of(report, "total")),
      per_second(now.completion + now.prompt, generate)));
  if (report.layout.dp > 1 && spread.longest > 0.0) {
    lines.push_back(fmt::format("replicas busy {:.0f} to 100 % of the generate time",
                                100.0 * spread.shortest / spread.longest));
  }
  if (!report.output.empty()) {
    lines.push_back(fmt::format("output {}{}", report.output,
                                report.run_dir.empty() ? "" : ", run directory " + report.run_dir));
  } else if (!report.run_dir.empty()) {
    lines.push_back("run directory " + report.run_dir);
  }
  lines.push_back(fmt::format("exit code {}: {}", report.exit_code, meaning_of(report.exit_code)));
  return lines;
}

}  // namespace mpinfer::job
