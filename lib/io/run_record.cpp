#include "lib/io/run_record.h"

#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/core/fault_point.h"
#include "lib/core/log.h"
#include "lib/io/file.h"

namespace mpinfer::io {
namespace {

constexpr std::string_view kIndexMagic = "mpinfer row hashes 1\n";
constexpr int64_t kMaxVerdictBytes = 65536;

std::string manifest_path(const std::string& directory) {
  return directory + "/manifest.json";
}

// -1: there is no regular file.
int64_t bytes_of_file(const std::string& path) {
  struct stat status {};
  if (path.empty() || ::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return -1;
  return status.st_size;
}

void keep_row_hashes(const std::string& path, const InputIndex& index) {
  constexpr size_t kWindowBytes = size_t{1} << 16;
  replace_file(path, [&](const File& file) {
    std::string bytes(kIndexMagic);
    for (const Row& row : index.rows) {
      bytes.append(reinterpret_cast<const char*>(&row.entry.hash), sizeof(row.entry.hash));
      if (bytes.size() < kWindowBytes) continue;
      write_all(file, bytes);
      bytes.clear();
    }
    write_all(file, bytes);
  });
}

// Of utc_now()'s text; 0 for another.
int64_t seconds_of(const std::string& utc) {
  std::tm parts{};
  if (::strptime(utc.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts) == nullptr) return 0;
  return static_cast<int64_t>(::timegm(&parts));
}

std::string verdict_prefix(int attempt) {
  return fmt::format("verdict-{:04}-", attempt);
}

}  // namespace

ResumeMode resume_mode(std::string_view name) {
  if (name == "auto") return ResumeMode::kAuto;
  if (name == "never") return ResumeMode::kNever;
  if (name == "require") return ResumeMode::kRequire;
  throw Error(ExitCode::kUsage,
              fmt::format("--resume {}: use auto, never or require", printable(name)));
}

std::string journal_name(int attempt, int replica) {
  return fmt::format("{}{:04}-r{:05}.log", kJournalPrefix, attempt, replica);
}

std::string first_difference(const std::map<std::string, std::string>& before,
                             const std::map<std::string, std::string>& now) {
  const auto value_in = [](const auto& values, const std::string& name) {
    const auto found = values.find(name);
    return found == values.end() ? std::string("nothing") : printable(found->second);
  };
  std::map<std::string, std::string> all = before;
  all.insert(now.begin(), now.end());
  for (const auto& [name, value] : all) {
    const std::string was = value_in(before, name);
    const std::string is = value_in(now, name);
    if (was != is) return fmt::format("{} was {}, is {}", name, was, is);
  }
  return "";
}

RunRecord::RunRecord(const std::string& directory, const std::string& output,
                     const ResumePolicy& policy, const LockOptions& lock)
    : directory_(directory), policy_(policy) {
  if (std::filesystem::exists(directory) && !std::filesystem::is_directory(directory)) {
    throw Error(ExitCode::kUsage,
                fmt::format("run directory {}: is a file; name another with --run-dir", directory));
  }
  const bool held = std::filesystem::exists(manifest_path(directory));
  const int64_t output_bytes = bytes_of_file(output);
  if (!policy.overwrite) {
    if (policy.mode == ResumeMode::kRequire && !held) {
      throw Error(ExitCode::kUsage,
                  fmt::format("--resume require: {} holds no run to go on with", directory));
    }
    if (policy.mode == ResumeMode::kNever && held) {
      throw Error(ExitCode::kUsage,
                  fmt::format("--resume never: {} holds an earlier run; to replace it: {}",
                              directory, policy.overwrite_command));
    }
    if (output_bytes >= 0 && !held) {
      throw Error(
          ExitCode::kUsage,
          fmt::format("--output {}: exists ({} bytes) and {} holds no run that wrote it; to "
                      "replace it: {}",
                      output, output_bytes, directory, policy.overwrite_command));
    }
  }
  lock_ = std::make_unique<RunLock>(directory, lock);
  if (!lock_->taken_from().empty()) {
    spdlog::info("{}: its earlier holder is gone ({})", directory, lock_->taken_from());
  }
  try {
    if (!policy.overwrite) earlier_ = read_manifest(manifest_path(directory));
  } catch (const Error& error) {
    throw Error(ExitCode::kUsage,
                fmt::format("{}; to start again: {}", error.what(), policy.overwrite_command));
  }
}

// What is left of earlier runs: theirs to lose only here, after every refusal.
void RunRecord::clear() {
  std::filesystem::remove(manifest_path(directory_));
  for (const std::string_view prefix : {kJournalPrefix, std::string_view("verdict-"),
                                        std::string_view("rows"), std::string_view("report")}) {
    for (const std::string& name : list_directory(directory_, prefix)) {
      std::filesystem::remove(directory_ + "/" + name);
    }
  }
}

std::string RunRecord::changed_row(const InputIndex& index) const {
  try {
    const File file = open_input(directory_ + "/rows");
    const int64_t head = static_cast<int64_t>(kIndexMagic.size());
    const int64_t num_rows = (file_bytes(file) - head) / static_cast<int64_t>(sizeof(uint64_t));
    std::vector<uint64_t> hashes(static_cast<size_t>(std::max<int64_t>(0, num_rows)));
    const int64_t bytes = num_rows * static_cast<int64_t>(sizeof(uint64_t));
    if (num_rows > 0 && read_at(file, hashes.data(), bytes, head) != bytes) return "";
    for (size_t i = 0; i < index.rows.size(); ++i) {
      const RowEntry& row = index.rows[i].entry;
      if (i < hashes.size() && row.hash == hashes[i]) continue;
      return fmt::format("the first that differs is {}:{}",
                         index.files[static_cast<size_t>(row.file)], row.line);
    }
    if (hashes.size() > index.rows.size()) {
      return fmt::format("the last {} rows are gone", hashes.size() - index.rows.size());
    }
  } catch (const Error&) {
    // The hashes are a help for this message; without them the input's hash still differs.
  }
  return "";
}

void RunRecord::refuse_other_run(const Manifest& now, const InputIndex& index) const {
  std::string difference = first_difference(earlier_->identity, now.identity);
  if (difference.empty() && earlier_->num_shards != now.num_shards) {
    difference =
        fmt::format("the number of shards was {}, is {}", earlier_->num_shards, now.num_shards);
  }
  if (difference.empty() &&
      (earlier_->input_hash != now.input_hash || earlier_->num_rows != now.num_rows)) {
    const std::string row = changed_row(index);
    difference = fmt::format("the input had {} rows, has {}{}{}", earlier_->num_rows, now.num_rows,
                             row.empty() ? "" : "; ", row);
  }
  if (difference.empty()) return;
  throw Error(ExitCode::kUsage,
              fmt::format("run directory {}: holds another run: {}; give what it was started with, "
                          "or another output, or replace it: {}",
                          directory_, difference, policy_.overwrite_command));
}

int RunRecord::next_attempt() const {
  int last = static_cast<int>(earlier_ ? earlier_->attempts.size() : 0);
  for (const std::string& name : list_directory(directory_, kJournalPrefix)) {
    int attempt = 0;
    const char* digits = name.data() + kJournalPrefix.size();
    std::from_chars(digits, name.data() + name.size(), attempt);
    last = std::max(last, attempt);
  }
  return last + 1;
}

Opening RunRecord::open(const Manifest& now, const InputIndex& index, const Attempt& attempt) {
  Opening opening;
  const int64_t output_bytes = bytes_of_file(now.output);
  if (earlier_) {
    refuse_other_run(now, index);
    opening.kind = StartKind::kResumed;
    const bool complete = earlier_->state == "complete";
    const bool retries = policy_.retry_errors && earlier_->num_failed > 0;
    const bool written = output_bytes >= 0 || now.output.empty() || now.num_shards > 1;
    if (complete && written && now.num_shards == 1 && !now.output.empty() &&
        output_bytes != earlier_->output_bytes) {
      throw Error(
          ExitCode::kUsage,
          fmt::format("--output {}: has {} bytes, the run wrote {}; move it away to have it "
                      "written again, or start again: {}",
                      now.output, output_bytes, earlier_->output_bytes, policy_.overwrite_command));
    }
    if (complete && written && !retries) {
      opening.kind = StartKind::kAlreadyComplete;
      opening.exit_code = earlier_->exit_code;
      return opening;
    }
  } else {
    clear();
  }
  for (const std::string& name : list_directory(directory_, "")) {
    if (name.ends_with(".tmp")) std::filesystem::remove(directory_ + "/" + name);
  }
  opening.attempt = next_attempt();
  std::unique_lock lock(mutex_);
  manifest_ = now;
  manifest_.created = attempt.start;
  if (earlier_) {
    manifest_.created = earlier_->created;
    manifest_.attempts = earlier_->attempts;
    manifest_.num_answered = earlier_->num_answered;
    manifest_.num_failed = earlier_->num_failed;
    manifest_.prompt_tokens = earlier_->prompt_tokens;
    manifest_.completion_tokens = earlier_->completion_tokens;
  } else {
    keep_row_hashes(directory_ + "/rows", index);
  }
  // Attempts that were killed have no entry of their own making: the numbers stay those of the
  // journals.
  manifest_.attempts.resize(static_cast<size_t>(opening.attempt - 1));
  manifest_.attempts.push_back(attempt);
  opening.created = seconds_of(manifest_.created);
  manifest_.state = "running";
  manifest_.exit_code = -1;
  opened_ = true;
  lock.unlock();
  try {
    change([](Manifest&) {});
  } catch (const Error& error) {
    // It may be there all the same, when only its directory could not be synced.
    close("failed", static_cast<int>(error.exit_code()), error.what());
    throw;
  }
  fault_point("opened");
  return opening;
}

void RunRecord::change(const std::function<void(Manifest&)>& change) {
  const std::lock_guard lock(mutex_);
  if (!opened_) return;
  change(manifest_);
  write_manifest(manifest_path(directory_), manifest_);
}

void RunRecord::close(const std::string& state, int exit_code, const std::string& reason) {
  const auto verdict =
      state == "complete"
          ? std::nullopt
          : read_verdict(directory_, static_cast<int>(this->manifest().attempts.size()));
  change([&](Manifest& manifest) {
    manifest.state = verdict ? "failed" : state;
    manifest.exit_code = verdict ? verdict->exit_code : exit_code;
    manifest.reason = verdict ? verdict->what : reason;
    Attempt& attempt = manifest.attempts.back();
    attempt.end = utc_now();
    attempt.exit_code = manifest.exit_code;
    attempt.reason = manifest.reason;
    attempt.rows_after = manifest.num_answered + manifest.num_failed;
  });
}

Manifest RunRecord::manifest() const {
  const std::lock_guard lock(mutex_);
  return manifest_;
}

void leave_verdict(const std::string& directory, int attempt, int rank, const Verdict& verdict) {
  if (!std::filesystem::exists(manifest_path(directory))) return;
  const nlohmann::ordered_json json = {
      {"exit_code", verdict.exit_code}, {"rank", rank}, {"what", verdict.what}};
  replace_file(fmt::format("{}/{}r{:05}.json", directory, verdict_prefix(attempt), rank),
               json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

std::optional<Verdict> read_verdict(const std::string& directory, int attempt) {
  for (const std::string& name : list_directory(directory, verdict_prefix(attempt))) {
    if (!name.ends_with(".json")) continue;
    const auto json = nlohmann::json::parse(
        read_whole_file(directory + "/" + name, kMaxVerdictBytes), nullptr, false);
    if (!json.is_object() || !json.contains("exit_code") || !json["exit_code"].is_number_integer())
      continue;
    const auto what = json.find("what");
    return Verdict{json["exit_code"].get<int>(),
                   what != json.end() && what->is_string() ? what->get<std::string>() : ""};
  }
  return std::nullopt;
}

}  // namespace mpinfer::io
