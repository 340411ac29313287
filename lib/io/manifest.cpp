#include "lib/io/manifest.h"

#include <chrono>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/file.h"

namespace mpinfer::io {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;

Json json_of(const Attempt& attempt) {
  return {{"start", attempt.start},
          {"end", attempt.end},
          {"hosts", attempt.hosts},
          {"layout", attempt.layout},
          {"reason", attempt.reason},
          {"exit_code", attempt.exit_code},
          {"rows_before", attempt.rows_before},
          {"rows_after", attempt.rows_after}};
}

Attempt attempt_of(const Json& json) {
  Attempt attempt;
  json.at("start").get_to(attempt.start);
  json.at("end").get_to(attempt.end);
  json.at("hosts").get_to(attempt.hosts);
  json.at("layout").get_to(attempt.layout);
  json.at("reason").get_to(attempt.reason);
  json.at("exit_code").get_to(attempt.exit_code);
  json.at("rows_before").get_to(attempt.rows_before);
  json.at("rows_after").get_to(attempt.rows_after);
  return attempt;
}

Manifest manifest_of(const Json& json) {
  Manifest manifest;
  if (json.at("schema").get<int>() != Manifest::kSchema) {
    throw Error(ExitCode::kUsage, fmt::format("schema {}; this program writes {}",
                                              json.at("schema").dump(), Manifest::kSchema));
  }
  json.at("tool_version").get_to(manifest.tool_version);
  json.at("run_id").get_to(manifest.run_id);
  json.at("created").get_to(manifest.created);
  const Json& shard = json.at("shard");
  shard.at("number").get_to(manifest.shard);
  shard.at("of").get_to(manifest.num_shards);
  shard.at("rows").get_to(manifest.num_rows_here);
  json.at("exit_code").get_to(manifest.exit_code);
  json.at("reason").get_to(manifest.reason);
  const Json& output = json.at("output");
  output.at("path").get_to(manifest.output);
  output.at("bytes").get_to(manifest.output_bytes);
  json.at("arguments").get_to(manifest.arguments);
  json.at("configuration").get_to(manifest.configuration);
  json.at("identity").get_to(manifest.identity);
  const Json& input = json.at("input");
  input.at("files").get_to(manifest.input_files);
  input.at("bytes").get_to(manifest.input_bytes);
  input.at("hash").get_to(manifest.input_hash);
  input.at("first").get_to(manifest.first_row);
  input.at("rows").get_to(manifest.num_rows);
  const Json& counts = json.at("counts");
  counts.at("answered").get_to(manifest.num_answered);
  counts.at("failed").get_to(manifest.num_failed);
  const Json& tokens = json.at("tokens");
  tokens.at("prompt").get_to(manifest.prompt_tokens);
  tokens.at("completion").get_to(manifest.completion_tokens);
  json.at("seconds").get_to(manifest.seconds);
  json.at("state").get_to(manifest.state);
  for (const Json& attempt : json.at("attempts")) manifest.attempts.push_back(attempt_of(attempt));
  return manifest;
}

}  // namespace

void write_manifest(const std::string& path, const Manifest& manifest) {
  Json attempts = Json::array();
  for (const Attempt& attempt : manifest.attempts) attempts.push_back(json_of(attempt));
  const Json json = {
      {"schema", Manifest::kSchema},
      {"tool_version", manifest.tool_version},
      {"run_id", manifest.run_id},
      {"created", manifest.created},
      {"shard",
       {{"number", manifest.shard}, {"of", manifest.num_shards}, {"rows", manifest.num_rows_here}}},
      {"state", manifest.state},
      {"exit_code", manifest.exit_code},
      {"reason", manifest.reason},
      {"output", {{"path", manifest.output}, {"bytes", manifest.output_bytes}}},
      {"arguments", manifest.arguments},
      {"configuration", manifest.configuration},
      {"identity", manifest.identity},
      {"input",
       {{"files", manifest.input_files},
        {"bytes", manifest.input_bytes},
        {"hash", manifest.input_hash},
        {"first", manifest.first_row},
        {"rows", manifest.num_rows}}},
      {"counts", {{"answered", manifest.num_answered}, {"failed", manifest.num_failed}}},
      {"tokens", {{"prompt", manifest.prompt_tokens}, {"completion", manifest.completion_tokens}}},
      {"seconds", manifest.seconds},
      {"attempts", attempts}};
  // Arguments and paths may hold any bytes: what is no UTF-8 is replaced.
  replace_file(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::optional<Manifest> read_manifest(const std::string& path) {
  if (!std::filesystem::exists(path)) return std::nullopt;
  const std::string bytes = read_whole_file(path, kMaxManifestBytes);
  try {
    return manifest_of(Json::parse(bytes));
  } catch (const nlohmann::json::exception& error) {
    throw Error(ExitCode::kUsage, fmt::format("{}: {}", path, printable(error.what())));
  } catch (const Error& error) {
    throw Error(ExitCode::kUsage, fmt::format("{}: {}", path, error.what()));
  }
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  const size_t length = std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text, length};
}

}  // namespace mpinfer::io
