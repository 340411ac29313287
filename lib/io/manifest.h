// The manifest: OUT.run/manifest.json says what a run is, how far it got and how it ended. It is
// replaced whole, so a reader never sees half of it. Its state and exit code are the run's,
// whatever the launcher returns.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace mpinfer::io {

struct Attempt {
  std::string start = {};  // UTC, ISO 8601
  std::string end = {};
  std::vector<std::string> hosts = {};
  std::string layout = {};
  std::string reason = {};  // why it ended
  int exit_code = -1;       // -1: not ended
  int64_t rows_before = 0;
  int64_t rows_after = 0;
};

struct Manifest {
  static constexpr int kSchema = 1;

  std::string tool_version;
  std::string run_id;   // hash of identity and input
  std::string created;  // start of the first attempt
  int shard = 0;
  int num_shards = 1;
  int64_t num_rows_here = 0;  // of num_rows: this shard's
  std::vector<std::string> arguments;
  std::map<std::string, std::string> configuration;  // long flag → value and where it came from
  std::map<std::string, std::string> identity;       // model, tokenizer, seed, dtype, …
  std::vector<std::string> input_files;
  int64_t input_bytes = 0;
  std::string input_hash;
  int64_t first_row = 0;  // of the input: what is skipped
  int64_t num_rows = 0;
  int64_t num_answered = 0;
  int64_t num_failed = 0;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::map<std::string, double> seconds;
  std::string state = "running";  // running, stopped, complete, failed
  int exit_code = -1;             // of the last attempt; -1: it has not ended
  std::string reason;             // why it ended
  std::string output;             // absolute path; empty: standard output
  int64_t output_bytes = -1;      // once it is complete
  std::vector<Attempt> attempts;
};

// Throws Error(kOutOfResource).
void write_manifest(const std::string& path, const Manifest& manifest);
// Empty when there is none. Throws Error(kUsage) for one that cannot be understood, naming the
// field.
std::optional<Manifest> read_manifest(const std::string& path);

std::string utc_now();

}  // namespace mpinfer::io
