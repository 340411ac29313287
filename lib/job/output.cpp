#include "lib/job/output.h"

#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/ordered_writer.h"
#include "lib/job/result_format.h"

namespace mpinfer::job {
namespace {

// The answer of --prompt: its text, or the texts of its samples, each ended by a newline.
void print_answer(std::string_view line) {
  const auto json = nlohmann::json::parse(line);
  if (!json.at("error").is_null()) {
    spdlog::error("{}", json.at("error").at("message").get<std::string>());
    return;
  }
  const io::File out(::dup(STDOUT_FILENO), "standard output");
  const auto print = [&](const nlohmann::json& text) {
    io::write_all(out, text.get<std::string>() + "\n");
  };
  const auto& output = json.at("output");
  if (output.is_string()) {
    print(output);
  } else if (output.is_array() && !output.empty() && output.front().is_string()) {
    for (const auto& text : output) print(text);
  } else {
    io::write_all(out, json.at("output_token_ids").dump() + "\n");
  }
}

// The lines of a row, each to its file.
void write_payload(std::string_view payload, io::OrderedWriter& writer, io::OrderedWriter* errors) {
  if (payload.starts_with(kSeparateError)) {
    MPINFER_CHECK(errors != nullptr, "an error row without a file to go to");
    errors->write_line(payload.substr(1));
    return;
  }
  while (true) {
    const size_t end = payload.find(kLineSeparator);
    writer.write_line(payload.substr(0, end));
    if (end == std::string_view::npos) return;
    payload.remove_prefix(end + 1);
  }
}

}  // namespace

int64_t write_output(const comm::HostComm& leaders, std::span<const io::File> journals,
                     std::vector<io::StoredResult> results, const OutputOptions& options) {
  const io::GatherOptions gather{
      .first_row = options.first_row, .num_rows = options.num_rows, .on_round = options.on_round};
  if (options.path.empty()) {
    io::gather_results(leaders, journals, std::move(results), gather, print_answer);
    return 0;
  }
  std::unique_ptr<io::OrderedWriter> writer;
  std::unique_ptr<io::OrderedWriter> errors;
  const auto open = [&](const std::string& path) {
    return std::make_unique<io::OrderedWriter>(path, options.locked ? path + ".new.tmp" : "");
  };
  if (leaders.rank() == 0) {
    writer = open(options.path);
    if (!options.errors_path.empty()) errors = open(options.errors_path);
  }
  io::gather_results(leaders, journals, std::move(results), gather, [&](std::string_view payload) {
    write_payload(payload, *writer, errors.get());
  });
  if (errors) errors->finish();
  if (writer) writer->finish();
  return writer ? writer->bytes() : 0;
}

int64_t write_partial_output(std::span<const io::File> journals,
                             std::vector<io::StoredResult> results, const OutputOptions& options) {
  io::OrderedWriter writer(options.path);
  std::unique_ptr<io::OrderedWriter> errors;
  if (!options.errors_path.empty())
    errors = std::make_unique<io::OrderedWriter>(options.errors_path);
  const size_t count = results.size();
  io::visit_results(journals, std::move(results), [&](std::string_view payload) {
    write_payload(payload, writer, errors.get());
  });
  if (errors) errors->finish();
  writer.finish();
  return static_cast<int64_t>(count);
}

}  // namespace mpinfer::job
