#include "lib/model/expert_placement.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/model/config_reader.h"

namespace mpinfer::model {
namespace {

// Rank of each expert, then places within ranks by ascending expert.
std::vector<int32_t> balance_layer(const std::vector<int64_t>& rows, int ep) {
  const size_t experts = rows.size();
  const auto ranks = static_cast<size_t>(ep);
  std::vector<size_t> order(experts);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return rows[a] > rows[b]; });
  std::vector<int64_t> load(ranks, 0);
  std::vector<size_t> room(ranks);
  for (size_t r = 0; r < ranks; ++r) room[r] = experts / ranks + (r < experts % ranks ? 1 : 0);
  std::vector<size_t> rank_of(experts);
  for (const size_t expert : order) {
    size_t best = ranks;
    for (size_t r = 0; r < ranks; ++r) {
      if (room[r] > 0 && (best == ranks || load[r] < load[best])) best = r;
    }
    rank_of[expert] = best;
    load[best] += rows[expert];
    --room[best];
  }
  std::vector<int32_t> place(experts);
  int32_t next = 0;
  for (size_t r = 0; r < ranks; ++r) {
    for (size_t expert = 0; expert < experts; ++expert) {
      if (rank_of[expert] == r) place[expert] = next++;
    }
  }
  return place;
}

}  // namespace

ExpertPlacement balance_experts(const std::vector<std::vector<int64_t>>& rows, int32_t num_experts,
                                int ep) {
  ExpertPlacement placement;
  for (const std::vector<int64_t>& layer : rows) {
    MPINFER_CHECK(layer.empty() || std::ssize(layer) == num_experts, "{} of {} experts",
                  layer.size(), num_experts);
    placement.push_back(layer.empty() ? std::vector<int32_t>() : balance_layer(layer, ep));
  }
  return placement;
}

std::string placement_text(const ExpertPlacement& placement, int32_t num_experts) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::object();
  for (size_t layer = 0; layer < placement.size(); ++layer) {
    if (!placement[layer].empty()) layers[std::to_string(layer)] = placement[layer];
  }
  return nlohmann::ordered_json{{"schema", 1}, {"num_experts", num_experts}, {"layers", layers}}
             .dump() +
         "\n";
}

ExpertPlacement read_placement(const std::string& text, const std::string& path,
                               const ModelConfig& config) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ExitCode::kUsage, fmt::format("--expert-placement {}: {}", printable(path), what));
  };
  if (!config.has_experts()) refuse(config.architecture + " has no experts");
  if (config.moe.num_groups > 1) {
    refuse(
        fmt::format("{} chooses among {} groups of neighbouring experts, which must stay "
                    "together; leave the option out",
                    config.architecture, config.moe.num_groups));
  }
  const nlohmann::json json = parse_json_object(text, printable(path));
  const ConfigReader reader(json, printable(path));
  const int32_t experts = config.moe.num_experts;
  const int64_t of = reader.integer("num_experts", {0, 1 << 20});
  if (of != experts) refuse(fmt::format("is of {} experts, the model has {}", of, experts));
  const ConfigReader layers = reader.object("layers");
  ExpertPlacement placement(config.layers.size());
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const std::string field = std::to_string(layer);
    if (!layers.has(field.c_str())) continue;
    const std::vector<int64_t> places = layers.integers(field.c_str(), static_cast<size_t>(experts),
                                                        {0, static_cast<double>(experts - 1)});
    std::vector<bool> taken(static_cast<size_t>(experts), false);
    for (const int64_t place : places) taken[static_cast<size_t>(place)] = true;
    if (std::ssize(places) != experts ||
        std::find(taken.begin(), taken.end(), false) != taken.end()) {
      refuse(fmt::format("layer {} is no permutation of {} experts", layer, experts));
    }
    for (const int64_t place : places) placement[layer].push_back(static_cast<int32_t>(place));
  }
  return placement;
}

}  // namespace mpinfer::model
