// Mutated JSONL files and journals through index, request builder and result lines: every row is a
// request or an error value, every output line is valid JSON that carries the input's members, no
// journal record is invented. MPINFER_FUZZ_ROUNDS asks for more rounds than the default.
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/index.h"
#include "lib/io/journal.h"
#include "lib/io/manifest.h"
#include "lib/job/request_builder.h"
#include "lib/job/result_format.h"
#include "tests/support/catch.h"
#include "tests/unit/io/temporary_directory.h"
#include "tests/unit/job/byte_tokenizer.h"

namespace {

using namespace mpinfer;
using Random = std::mt19937;

int rounds(int by_default) {
  const char* asked = std::getenv("MPINFER_FUZZ_ROUNDS");
  return asked == nullptr ? by_default : std::atoi(asked);
}

const std::vector<std::string>& fragments() {
  static const std::vector<std::string> kFragments = {"{",
                                                      "}",
                                                      "[",
                                                      "]",
                                                      "\"",
                                                      ":",
                                                      ",",
                                                      "\\",
                                                      "\\\"",
                                                      "\\u0000",
                                                      "\\ud800",
                                                      "\\ud83d\\ude00",
                                                      "\n",
                                                      "\r\n",
                                                      "\xef\xbb\xbf",
                                                      "\xff",
                                                      "\xc3\xa9",
                                                      "\xed\xa0\x80",
                                                      "null",
                                                      "true",
                                                      "1e999",
                                                      "-0",
                                                      "18446744073709551616",
                                                      "1.10",
                                                      "NaN",
                                                      "\"prompt\"",
                                                      "\"prompt\":",
                                                      "\"prompt_token_ids\":[1,2]",
                                                      "\"sampling_params\":{",
                                                      "\"stop\":[\"a\"]",
                                                      "\"index\":1",
                                                      "\"error\":null",
                                                      "\"max_tokens\":5",
                                                      "\"messages\":[]",
                                                      "\"custom_id\":\"a\",\"url\":\"b\"",
                                                      "{\"prompt\":\"a b\",\"temperature\":0.5}",
                                                      std::string(1, '\0'),
                                                      std::string(140, '[')};
  return kFragments;
}

std::string mutated(std::string text, Random& random) {
  for (auto n = random() % 6; n > 0; --n) {
    const size_t at = text.empty() ? 0 : random() % text.size();
    switch (random() % 5) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(random() % 256);
        break;
      case 1:
        text.erase(at, 1 + random() % 20);
        break;
      case 2:
        text.insert(at, fragments()[random() % fragments().size()]);
        break;
      case 3:
        text.insert(at, text.substr(at, random() % 40));
        break;
      default:
        text.resize(at);
    }
  }
  return text;
}

std::vector<std::string> corpus() {
  std::vector<std::string> texts;
  for (const auto& entry :
       std::filesystem::directory_iterator(MPINFER_SOURCE_DIR "/tests/fuzz/io/corpus")) {
    texts.push_back(tests::read_text(entry.path().string()));
  }
  return texts;
}

// The output line of an accepted row holds every member of the row that is not ours, with its
// value.
void check_passed_on(const std::string& line, const std::string& output) {
  const auto in = nlohmann::json::parse(line);
  const auto out = nlohmann::json::parse(output);
  static const std::vector<std::string> kOurs = {"index",         "output",
                                                 "finish_reason", "stop_reason",
                                                 "prompt_tokens", "completion_tokens",
                                                 "error",         "output_token_ids"};
  for (const auto& [name, value] : in.items()) {
    if (std::find(kOurs.begin(), kOurs.end(), name) != kOurs.end()) continue;
    CHECK(out.contains(name));
    CHECK(out.value(name, nlohmann::json()) == value);
  }
}

void try_row(const std::string& line, const io::RowEntry& row, const job::RequestBuilder& builder) {
  const auto request = builder.build(0, line);
  if (!request) {
    const std::string output = job::format_refusal(
        line, {.index = 5, .error = &request.error(), .file = "in", .line = row.line},
        {.format = job::OutputFormat::kFlat});
    const auto json = nlohmann::json::parse(output);
    CHECK(json.at("error").at("code") == request.error().code);
    CHECK(json.at("index") == 5);
    return;
  }
  CHECK(request->sampling.max_tokens >= 1);
  CHECK(!request->prompt_token_ids.empty());
  // As n of them, each with the prompt's ids as its tokens.
  Completion completion;
  completion.index = 5;
  completion.token_ids = request->prompt_token_ids;
  const auto samples = static_cast<size_t>(request->sampling.n);
  const std::string output = job::format_answer(
      line,
      {.index = 5,
       .samples = std::vector<job::SampleAnswer>(samples, {&completion, line.substr(0, 50)}),
       .sampling = &request->sampling},
      {.format = job::OutputFormat::kFlat, .token_ids = true});
  CHECK(output.find('\n') == std::string::npos);
  check_passed_on(line, output);
}

}  // namespace

TEST_CASE("mutated JSONL") {
  const auto tokenizer = tests::byte_tokenizer();
  const auto texts = corpus();
  REQUIRE(texts.size() >= 3);
  const tests::TemporaryDirectory directory;
  Random random(2024);
  int64_t num_rows = 0;
  for (int round = 0; round < rounds(2000); ++round) {
    const std::string text = mutated(texts[random() % texts.size()], random);
    const std::string path = tests::write_text(directory / "in", text);
    const io::InputIndex index =
        io::build_index({.files = {path},
                         .threads = 1,
                         .max_line_bytes = 4096,
                         .piece_bytes = 1 + static_cast<int64_t>(random() % 300)});
    const job::RequestBuilder builder({.field = random() % 4 == 0 ? "a.b" : "prompt",
                                       .row_params = static_cast<job::RowParams>(random() % 3),
                                       .too_long = static_cast<job::TooLong>(random() % 3),
                                       .max_model_len = 64,
                                       .vocab_size = 259},
                                      tokenizer.get());
    const io::File file = io::open_input(path);
    for (const auto& [place, row] : index.rows) {
      ++num_rows;
      if (row.length != io::RowEntry::kTooLong) try_row(io::read_row(file, row), row, builder);
    }
  }
  CHECK(num_rows > 0);
}

TEST_CASE("mutated journals") {
  spdlog::set_level(spdlog::level::off);  // a warning for each damaged line
  const tests::TemporaryDirectory directory;
  Random random(7);
  for (int round = 0; round < rounds(1000); ++round) {
    std::string text = io::journal_line(io::RecordKind::kHeader, 0, 0, "{}");
    for (int64_t row = 0; row < 5; ++row) {
      text += io::journal_line(io::RecordKind::kAnswer, row, 77, "payload " + std::to_string(row));
    }
    const io::File file =
        io::open_input(tests::write_text(directory / "journal", mutated(text, random)));
    for (const io::JournalRecord& record : io::read_journal(file).records) {
      std::string payload(record.length, '\0');
      CHECK(io::read_at(file, payload.data(), record.length, record.offset) == record.length);
      CHECK(payload == "payload " + std::to_string(record.row));
      CHECK(record.key == 77);
    }
  }
}

TEST_CASE("mutated manifests: understood whole or refused with the file's name") {
  const tests::TemporaryDirectory directory;
  const std::string path = directory / "manifest.json";
  io::Manifest manifest;
  manifest.run_id = "0123456789abcdef";
  manifest.arguments = {"run", "--model", "m"};
  manifest.identity = {{"seed", "0"}, {"dtype", "bf16"}};
  manifest.input_files = {"in.jsonl"};
  manifest.attempts = {{.start = "2026-01-01T00:00:00Z", .hosts = {"a", "b"}}, {}};
  io::write_manifest(path, manifest);
  const std::string whole = tests::read_text(path);
  Random random(11);
  int refused = 0;
  for (int round = 0; round < rounds(1000); ++round) {
    tests::write_text(path, mutated(whole, random));
    try {
      const auto read = io::read_manifest(path);
      REQUIRE(read.has_value());
      // What was understood can be written and is understood again.
      io::write_manifest(path, *read);
      CHECK(io::read_manifest(path)->attempts.size() == read->attempts.size());
    } catch (const Error& error) {
      ++refused;
      CHECK(error.exit_code() == ExitCode::kUsage);
      CHECK(std::string(error.what()).find(path) != std::string::npos);
    }
  }
  CHECK(refused > 0);
}
