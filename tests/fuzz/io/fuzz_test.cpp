// Mutated JSONL files and journals through index, request builder and result lines: every row is a
// request or an error value, every output line is valid JSON that carries the input's members, no
// journal record is invented. MPINFER_FUZZ_ROUNDS asks for more rounds than the default.
#include <cstdlib>
#include <filesystem>
#include <map>
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

// Of every field that rows have, one that is good, and what may stand there instead.
const std::vector<std::pair<std::string, std::string>>& fields() {
  static const std::vector<std::pair<std::string, std::string>> kFields = {
      {"prompt", R"("p")"},
      {"prompt_token_ids", "[5,6]"},
      {"messages", R"([{"role":"user","content":"x"}])"},
      {"tools", R"([{"type":"function"}])"},
      {"tool_choice", R"("none")"},
      {"documents", R"([{"text":"t"}])"},
      {"chat_template_kwargs", R"({"k":1})"},
      {"continuations", R"([" a","b"])"},
      {"add_special_tokens", "false"},
      {"max_tokens", "3"},
      {"max_completion_tokens", "3"},
      {"min_tokens", "1"},
      {"temperature", "0.5"},
      {"top_p", "0.5"},
      {"top_k", "3"},
      {"min_p", "0.5"},
      {"seed", "7"},
      {"n", "2"},
      {"stop", R"(["z"])"},
      {"stop_token_ids", "[7]"},
      {"include_stop_str_in_output", "true"},
      {"ignore_eos", "true"},
      {"skip_special_tokens", "false"},
      {"repetition_penalty", "1.5"},
      {"frequency_penalty", "1"},
      {"presence_penalty", "-1"},
      {"logit_bias", R"({"5":1})"},
      {"allowed_token_ids", "[5,6]"},
      {"bad_words", R"(["a"])"},
      {"logprobs", "true"},
      {"top_logprobs", "2"},
      {"prompt_logprobs", "0"},
      {"response_format", R"({"type":"json_object"})"},
      {"structured_outputs", R"({"regex":"a+"})"},
      {"guided_json", R"({"type":"null"})"},
      {"guided_regex", R"("[ab]{2}")"},
      {"guided_choice", R"(["a"])"},
      {"stream", "false"},
      {"best_of", "2"},
      {"echo", "false"},
      {"modalities", R"(["text"])"},
      {"reasoning_effort", R"("low")"},
      {"user", R"("u")"},
      {"model", R"("m")"},
      {"surprise", "1"}};
  return kFields;
}

std::string random_value(Random& random, int depth = 0) {
  static const std::vector<std::string> kValues = {"null",
                                                   "true",
                                                   "false",
                                                   "0",
                                                   "-1",
                                                   "1.5",
                                                   "-0.0",
                                                   "1e308",
                                                   "9223372036854775807",
                                                   "18446744073709551615",
                                                   "\"\"",
                                                   "\"5\"",
                                                   "\"\\u0000\"",
                                                   "\"{\"",
                                                   "\"[a\"",
                                                   "[]",
                                                   "{}",
                                                   "[259]",
                                                   "[-1]",
                                                   "[[5]]",
                                                   "{\"5\":null}",
                                                   "{\"type\":5}",
                                                   "{\"role\":\"user\"}"};
  const auto kind = random() % 8;
  if (depth > 2 || kind > 2) return kValues[random() % kValues.size()];
  std::string out;
  for (auto n = random() % 4; n > 0; --n) {
    if (!out.empty()) out += ',';
    if (kind == 0) out += '"' + fields()[random() % fields().size()].first + "\":";
    out += random_value(random, depth + 1);
  }
  return kind == 0 ? "{" + out + "}" : "[" + out + "]";
}

// A few members: most as they should be, some with any value.
std::string random_members(Random& random) {
  std::string out;
  for (auto n = random() % 7; n > 0; --n) {
    const auto& [name, good] = fields()[random() % fields().size()];
    out += (out.empty() ? "\"" : ",\"") + name + "\":";
    out += random() % 3 == 0 ? random_value(random) : good;
  }
  return "{" + out + "}";
}

std::string random_row(Random& random) {
  std::string members = random_members(random);
  if (random() % 3 == 0)
    members.insert(1, R"("prompt":"p")" + std::string(members == "{}" ? "" : ","));
  if (random() % 4 == 0) {
    members.insert(1,
                   R"("sampling_params":)" + random_members(random) + (members == "{}" ? "" : ","));
  }
  if (random() % 2 == 0) return members;
  const char* url = random() % 2 == 0 ? "/v1/chat/completions" : "/v1/completions";
  return std::string(R"({"custom_id":"c","url":")") + url + R"(","body":)" +
         (random() % 9 == 0 ? random_value(random) : members) + "}";
}

void try_row(const std::string& line, const io::RowEntry& row, const job::RequestBuilder& builder,
             job::OutputFormat format = job::OutputFormat::kFlat) {
  const auto request = builder.build(0, line);
  if (!request) {
    const std::string output = job::format_refusal(
        line, {.index = 5, .error = &request.error(), .file = "in", .line = row.line},
        {.format = format});
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
      {.format = format, .token_ids = true});
  CHECK(output.find('\n') == std::string::npos);
  CHECK(nlohmann::json::accept(output));
  if (format == job::OutputFormat::kFlat) check_passed_on(line, output);
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

TEST_CASE("fields of every name with values of every kind: a request or an error row") {
  const auto tokenizer = tests::byte_tokenizer();
  const tests::TemporaryDirectory directory;
  const auto chat = text::ChatTemplate::load(
      "", tests::write_text(directory / "t", "{% for m in messages %}{{ m.content }}{% endfor %}"));
  text::grammar::Grammars grammars(*tokenizer, 259, {2});
  Random random(5);
  std::map<std::string, int> refused;
  int accepted = 0;
  for (int round = 0; round < rounds(20000); ++round) {
    const std::string line = random_row(random);
    INFO(line);
    const job::RequestBuilder builder({.row_params = static_cast<job::RowParams>(round % 3),
                                       .max_model_len = 64,
                                       .vocab_size = 259,
                                       .chat_template = round % 2 == 0 ? &chat : nullptr,
                                       .grammars = &grammars},
                                      round % 8 == 0 ? nullptr : tokenizer.get());
    const auto request = builder.build(0, line);
    accepted += request ? 1 : 0;
    if (!request) ++refused[request.error().code];
    try_row(line, {}, builder, job::OutputFormat::kAuto);
    try_row(line, {}, builder, job::OutputFormat::kOpenAi);
  }
  CHECK(accepted > 1000);
  for (const char* code : {"invalid_param", "unsupported", "empty_prompt", "template_error"})
    CHECK(refused[code] > 20);
  CHECK(refused.size() == 4);
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
