#include "lib/job/output.h"

#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "lib/core/log.h"
#include "lib/io/exchange.h"
#include "lib/io/journal.h"
#include "lib/io/ordered_writer.h"

namespace mpinfer::job {
namespace {

// The answer of --prompt: its text, ended by a newline.
void print_answer(std::string_view line) {
  const auto json = nlohmann::json::parse(line);
  if (!json.at("error").is_null()) {
    spdlog::error("{}", json.at("error").at("message").get<std::string>());
    return;
  }
  std::string text;
  if (json.at("output").is_string()) {
    text = json.at("output").get<std::string>();
  } else {
    text = json.at("output_token_ids").dump();
  }
  io::write_all(io::File(STDOUT_FILENO, "standard output"), text + "\n");
}

}  // namespace

void write_output(const comm::HostComm& leaders, const io::File& journal,
                  const OutputOptions& options) {
  const io::JournalContents contents = io::read_journal(journal);
  std::vector<io::StoredResult> results;
  results.reserve(contents.records.size());
  for (const io::JournalRecord& record : contents.records) {
    results.push_back({.row = record.row, .offset = record.offset, .length = record.length});
  }
  const io::GatherOptions gather{.first_row = options.first_row, .num_rows = options.num_rows};
  if (options.path.empty()) {
    io::gather_results(leaders, journal, std::move(results), gather, print_answer);
    return;
  }
  std::unique_ptr<io::OrderedWriter> writer;
  if (leaders.rank() == 0) writer = std::make_unique<io::OrderedWriter>(options.path);
  io::gather_results(leaders, journal, std::move(results), gather,
                     [&](std::string_view line) { writer->write_line(line); });
  if (writer) writer->finish();
}

}  // namespace mpinfer::job
