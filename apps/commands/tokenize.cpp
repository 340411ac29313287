// mpinfer tokenize: rows in, the same rows with prompt_token_ids out (or, with --decode, ids in and
// text out). Needs the tokenizer alone; a row that cannot be tokenised gets an error member.
#include <nlohmann/json.hpp>

#include "apps/commands/commands.h"
#include "apps/commands/row_setup.h"
#include "apps/commands/rows.h"
#include "apps/commands/run_setup.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/field_scanner.h"
#include "lib/io/ordered_writer.h"
#include "lib/job/json_text.h"
#include "lib/job/request_builder.h"
#include "lib/text/tokenizer.h"

namespace mpinfer::apps {
namespace {

// The members of a row but those named like ours, each with a comma behind it.
std::string members_of(std::string_view line, std::string_view ours,
                       std::string_view also_ours = "error") {
  std::string out;
  io::MemberScanner scanner(line);
  io::Member member;
  while (scanner.next(&member)) {
    const std::string key = member.decoded_key();
    if (key == ours || key == also_ours || key == "error") continue;
    out += member.text;
    out += ", ";
  }
  return out;
}

std::string refused(std::string_view line, const InputRow& row, const RowError& error) {
  const bool readable =
      error.code != "invalid_json" && error.code != "invalid_utf8" && error.code != "line_too_long";
  const std::string members = readable ? members_of(line, "") : std::string();
  const nlohmann::ordered_json object = {
      {"code", error.code},
      {"message", error.message},
      {"param",
       error.param.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(error.param)},
      {"file", row.file},
      {"line", row.line.number}};
  return fmt::format("{{{}\"error\": {}}}", members,
                     object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

// rendered: what a template made of the row, or empty.
std::string answered(std::string_view line, const std::vector<int32_t>& ids,
                     const std::string& rendered, const text::Tokenizer& tokenizer, bool decode) {
  const char* ours = decode ? "prompt" : "prompt_token_ids";
  std::string out =
      fmt::format("{{{}", members_of(line, ours, rendered.empty() ? "error" : "prompt"));
  if (!rendered.empty() && !decode) {
    out += "\"prompt\": ";
    job::append_json_string(&out, rendered);
    out += ", ";
  }
  out += fmt::format("\"{}\": ", ours);
  if (decode) {
    job::append_json_string(&out, tokenizer.decode(ids, /*skip_special_tokens=*/false));
  } else {
    out += nlohmann::json(ids).dump();
  }
  return out + ", \"error\": null}";
}

}  // namespace

int tokenize_command(const Options& options) {
  io::require_writable_output(options.output, options.input, options.overwrite);
  const std::string directory = tokenizer_directory(options);
  if (directory.empty()) {
    throw Error(ExitCode::kModelRefused,
                fmt::format("{}: has no tokenizer.json; name its directory with --tokenizer",
                            printable(options.model)));
  }
  const auto tokenizer = text::Tokenizer::load(directory);
  const RowSetup setup(options, directory);
  job::BuilderOptions builder_options = setup.builder_options(options);
  builder_options.row_params = job::RowParams::kNone;
  builder_options.max_model_len = INT32_MAX;
  builder_options.vocab_size = tokenizer->vocab_size();
  const job::RequestBuilder builder(builder_options, tokenizer.get());
  io::OrderedWriter writer(options.output);
  int64_t num_failed = 0;
  for_each_row(options, [&](const InputRow& row) {
    std::string rendered;
    const std::string_view line = row.line.bytes;
    const Expected<Request> request =
        row.line.too_long ? tl::make_unexpected(job::RequestBuilder::line_too_long())
                          : builder.build(row.index, line, &rendered);
    if (request) {
      writer.write_line(
          answered(line, request->prompt_token_ids, rendered, *tokenizer, options.decode));
    } else {
      ++num_failed;
      writer.write_line(refused(line, row, request.error()));
    }
  });
  writer.finish();
  if (num_failed > 0)
    spdlog::warn("{} rows could not be tokenised: their error member says why", num_failed);
  return static_cast<int>(num_failed > 0 ? ExitCode::kFailedRows : ExitCode::kComplete);
}

}  // namespace mpinfer::apps
