#include "lib/job/earlier_results.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <deque>
#include <nlohmann/json.hpp>
#include <tuple>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/io/field_scanner.h"
#include "lib/io/run_record.h"

namespace mpinfer::job {
namespace {

struct FoundRecord {
  io::StoredResult at;
  uint64_t key = 0;
  io::TokenCounts tokens;
  int32_t attempt = 0;
  io::RecordKind kind = io::RecordKind::kAnswer;
};

// What rank 0 needs to settle a row.
struct Claim {
  uint64_t key = 0;
  uint32_t row = 0;  // − first_row
  int32_t attempt = 0;
  char kind = 'A';
  char padding[7] = {};
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
std::vector<T> values_of(const std::string& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

int attempt_of(const std::string& name) {
  int attempt = 0;
  const char* digits = name.data() + io::kJournalPrefix.size();
  std::from_chars(digits, name.data() + name.size(), attempt);
  return attempt;
}

// The first line of a journal, enough to know whose it is; empty: damaged or another run's.
std::string nonce_of(const io::File& file, const std::string& run_id) {
  io::LineReader reader(file, 0, io::file_bytes(file), int64_t{1} << 20);
  io::Line line;
  if (!reader.next(&line) || line.too_long) return "";
  const std::string_view bytes = line.bytes;
  const size_t begin = bytes.find('{');
  const size_t end = bytes.rfind('}');
  if (begin == std::string_view::npos || end == std::string_view::npos || end < begin) return "";
  const auto json = nlohmann::json::parse(bytes.substr(begin, end + 1 - begin), nullptr, false);
  if (!json.is_object() || json.value("run", nlohmann::json()) != nlohmann::json(run_id)) return "";
  const auto nonce = json.find("nonce");
  return nonce != json.end() && nonce->is_string() ? nonce->get<std::string>() : "";
}

// Every journal goes to one of the leaders that see it, in turn.
std::vector<std::string> my_journals(const comm::HostComm& leaders, const EarlierOptions& options,
                                     int64_t* num_journals) {
  std::map<std::string, std::string> seen;  // nonce and name → path
  for (const std::string& name : io::list_directory(options.directory, io::kJournalPrefix)) {
    if (attempt_of(name) >= options.attempt) continue;
    const std::string path = options.directory + "/" + name;
    const std::string nonce = nonce_of(io::open_input(path), options.run_id);
    if (nonce.empty()) {
      spdlog::warn("{}: its first line does not say that it is of this run; left out", path);
      continue;
    }
    seen[name + " " + nonce] = path;
  }
  std::string list;
  for (const auto& [label, path] : seen) list += label + "\n";
  std::map<std::string, std::vector<int>> seers;
  const auto lists = leaders.all_gather(list);
  for (size_t rank = 0; rank < lists.size(); ++rank) {
    size_t begin = 0;
    for (size_t end = lists[rank].find('\n'); end != std::string::npos;
         end = lists[rank].find('\n', begin)) {
      seers[lists[rank].substr(begin, end - begin)].push_back(static_cast<int>(rank));
      begin = end + 1;
    }
  }
  std::vector<std::string> mine;
  size_t turn = 0;
  for (const auto& [label, ranks] : seers) {
    if (ranks[turn++ % ranks.size()] == leaders.rank()) mine.push_back(seen.at(label));
  }
  *num_journals = static_cast<int64_t>(seers.size());
  return mine;
}

std::string error_code_of(std::string_view line) {
  io::MemberScanner scanner(line);
  io::Member member;
  while (scanner.next(&member)) {
    if (member.key != "error") continue;
    const auto error = nlohmann::json::parse(member.value, nullptr, false);
    if (error.is_object() && error.contains("code") && error["code"].is_string()) {
      return error["code"].get<std::string>();
    }
  }
  return "of an earlier attempt";
}

struct Scan {
  std::deque<FoundRecord> records;        // grows and shrinks without a copy
  std::map<int64_t, std::string> errors;  // row → code
  std::map<int64_t, std::pair<uint64_t, std::vector<int32_t>>> partials;  // row → key, ids
};

void scan(const io::File& journal, uint32_t number, int attempt, const EarlierOptions& options,
          Scan* out) {
  const int64_t end = options.first_row + options.num_rows;
  const auto contents =
      io::scan_journal(journal, [&](const io::JournalRecord& record, std::string_view payload) {
        if (record.row < options.first_row || record.row >= end) return;
        if (record.kind == io::RecordKind::kPartial) {
          auto& [key, ids] = out->partials[record.row];
          std::vector<int32_t> found = parse_partial(payload);
          if (found.size() > ids.size() || key != record.key) ids = std::move(found);
          key = record.key;
          return;
        }
        if (record.kind == io::RecordKind::kError) {
          if (options.retry_errors) return;
          out->errors[record.row] = error_code_of(payload);
        }
        out->records.push_back({.at = {.row = record.row,
                                       .offset = record.offset,
                                       .length = record.length,
                                       .journal = number},
                                .key = record.key,
                                .tokens = record.tokens,
                                .attempt = attempt,
                                .kind = record.kind});
      });
  if (contents.torn_bytes > 0) {
    spdlog::debug("{}: {} bytes of an unfinished commit are dropped", journal.name(),
                  contents.torn_bytes);
  }
}

// Rank 0's side of one window: the best claim of each row wins; reply[leader][i] is '1' then.
std::vector<std::string> settle(const std::vector<std::string>& claims,
                                const EarlierOptions& options, const io::InputIndex* index,
                                std::vector<bool>* done) {
  struct Best {
    int32_t leader = -1;
    size_t place = 0;
    std::tuple<bool, int32_t> merit;  // an answer before an error, then the later attempt
  };
  std::map<uint32_t, Best> best;
  std::vector<std::string> replies(claims.size());
  for (size_t leader = 0; leader < claims.size(); ++leader) {
    const auto list = values_of<Claim>(claims[leader]);
    replies[leader].assign(list.size(), '0');
    for (size_t i = 0; i < list.size(); ++i) {
      const Claim& claim = list[i];
      if (options.fingerprint != 0 &&
          claim.key != record_key(index->rows[claim.row].entry.hash, options.fingerprint)) {
        continue;
      }
      const std::tuple<bool, int32_t> merit{claim.kind == 'A', claim.attempt};
      Best& b = best[claim.row];
      if (b.leader >= 0 && b.merit >= merit) continue;
      b = {static_cast<int32_t>(leader), i, merit};
    }
  }
  for (const auto& [row, b] : best) {
    replies[static_cast<size_t>(b.leader)][b.place] = '1';
    (*done)[row] = true;
  }
  return replies;
}

void count(const FoundRecord& record, const std::map<int64_t, std::string>& errors,
           ResultCounts* counts) {
  if (record.kind == io::RecordKind::kError) {
    ++counts->num_failed;
    ++counts->errors[errors.at(record.at.row)];
    return;
  }
  ++counts->num_answered;
  counts->prompt_tokens += record.tokens.prompt;
  counts->completion_tokens += record.tokens.completion;
}

// Unfinished rows of every leader, on rank 0: row, key, number of ids, ids.
UnfinishedRows gather_unfinished(const comm::HostComm& leaders, const Scan& mine,
                                 const EarlierOptions& options, const io::InputIndex* index,
                                 const std::vector<bool>& done) {
  std::vector<int64_t> words;
  for (const auto& [row, partial] : mine.partials) {
    words.push_back(row);
    words.push_back(static_cast<int64_t>(partial.first));
    words.push_back(static_cast<int64_t>(partial.second.size()));
    words.insert(words.end(), partial.second.begin(), partial.second.end());
  }
  UnfinishedRows rows;
  for (const std::string& bytes : leaders.gather(bytes_of(words), 0)) {
    const auto list = values_of<int64_t>(bytes);
    for (size_t at = 0; at + 3 <= list.size();) {
      const int64_t row = list[at];
      const auto key = static_cast<uint64_t>(list[at + 1]);
      const auto size = static_cast<size_t>(list[at + 2]);
      const auto place = static_cast<size_t>(row - options.first_row);
      const bool ours = options.fingerprint == 0 ||
                        key == record_key(index->rows[place].entry.hash, options.fingerprint);
      if (!done[place] && ours && size > rows[row].size()) {
        rows[row].assign(list.begin() + static_cast<std::ptrdiff_t>(at + 3),
                         list.begin() + static_cast<std::ptrdiff_t>(at + 3 + size));
      }
      at += 3 + size;
    }
  }
  std::erase_if(rows, [](const auto& entry) { return entry.second.empty(); });
  return rows;
}

}  // namespace

std::string format_partial(const std::vector<int32_t>& token_ids) {
  return nlohmann::json(token_ids).dump();
}

std::vector<int32_t> parse_partial(std::string_view payload) {
  std::vector<int32_t> ids;
  const char* at = payload.data();
  const char* end = at + payload.size();
  while (at != end) {
    int32_t id = 0;
    if (*at == '[' || *at == ',' || *at == ']') {
      ++at;
      continue;
    }
    const auto result = std::from_chars(at, end, id);
    if (result.ec != std::errc{} || id < 0) return {};
    at = result.ptr;
    ids.push_back(id);
  }
  return ids;
}

EarlierResults read_earlier_results(const comm::HostComm& leaders, const EarlierOptions& options,
                                    const io::InputIndex* index) {
  EarlierResults earlier;
  const bool root = leaders.rank() == 0;
  if (root) earlier.done.assign(static_cast<size_t>(options.num_rows), false);
  if (options.directory.empty() || options.attempt == 1) return earlier;
  Scan found;
  for (const std::string& path : my_journals(leaders, options, &earlier.num_journals)) {
    io::File journal = io::open_input(path);
    scan(journal, static_cast<uint32_t>(earlier.journals.size()),
         attempt_of(path.substr(path.rfind('/') + 1)), options, &found);
    earlier.journals.push_back(std::move(journal));
  }
  std::sort(found.records.begin(), found.records.end(),
            [](const FoundRecord& a, const FoundRecord& b) {
              return std::tie(a.at.row, a.at.journal, a.at.offset) <
                     std::tie(b.at.row, b.at.journal, b.at.offset);
            });
  earlier.results.reserve(found.records.size());
  for (int64_t begin = 0; begin < options.num_rows; begin += options.window_rows) {
    const int64_t end = options.first_row + std::min(options.num_rows, begin + options.window_rows);
    std::vector<Claim> claims;
    size_t count_here = 0;
    for (const FoundRecord& record : found.records) {
      if (record.at.row >= end) break;
      ++count_here;
      claims.push_back({.key = record.key,
                        .row = checked_cast<uint32_t>(record.at.row - options.first_row),
                        .attempt = record.attempt,
                        .kind = static_cast<char>(record.kind)});
    }
    const auto all = leaders.gather(bytes_of(claims), 0);
    std::vector<std::string> replies;
    if (root) replies = settle(all, options, index, &earlier.done);
    const std::string mine = leaders.scatter(replies, 0);
    for (size_t i = 0; i < mine.size(); ++i) {
      if (mine[i] != '1') continue;
      const FoundRecord& record = found.records[i];
      count(record, found.errors, &earlier.counts);
      earlier.results.push_back(record.at);
    }
    found.records.erase(found.records.begin(),
                        found.records.begin() + static_cast<std::ptrdiff_t>(count_here));
  }
  earlier.unfinished = gather_unfinished(leaders, found, options, index, earlier.done);
  earlier.num_done = leaders.all_reduce_sum(static_cast<int64_t>(earlier.results.size()));
  return earlier;
}

}  // namespace mpinfer::job
