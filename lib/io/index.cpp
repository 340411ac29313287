#include "lib/io/index.h"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "lib/core/error.h"
#include "lib/io/field_scanner.h"

namespace mpinfer::io {
namespace {

constexpr double kBytesPerToken = 4.0;
constexpr int64_t kDecodeCost =
    4;  // a decoded token streams weights that prefill reads once a chunk

struct Piece {
  int32_t file = 0;
  int64_t begin = 0;
  int64_t end = 0;
  std::vector<Row> rows;  // lines counted within the piece; index: hash of the row's id, 0 for none
  int64_t num_lines = 0;
  std::vector<int64_t> watched_counts;
  int64_t num_without_max_tokens = 0;
  IdCounts ids;
};

struct Estimate {
  uint32_t prompt_tokens = 1;
  uint32_t completion_tokens = 0;
  uint16_t prefix = 0;
};

uint32_t small_number(std::string_view text, uint32_t otherwise) {
  uint32_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc{} && value > 0 ? std::min(value, 1U << 24) : otherwise;
}

uint32_t estimated_text_tokens(std::string_view value) {
  return static_cast<uint32_t>(static_cast<double>(value.size()) / kBytesPerToken) + 1;
}

uint32_t estimated_tokens(std::string_view value) {
  if (value.starts_with('[')) {
    return static_cast<uint32_t>(std::count(value.begin(), value.end(), ',') + 1);
  }
  return estimated_text_tokens(value);
}

// Prompts that agree in their first bytes may share the KV of more than a block.
uint16_t prefix_of(std::string_view value) {
  constexpr size_t kBytes = 512;
  if (value.size() < kBytes) return 0;
  return static_cast<uint16_t>(hash_of(value.substr(0, kBytes)) % 0xffff + 1);
}

class RowEstimator {
 public:
  explicit RowEstimator(const IndexOptions& options)
      : options_(options), prompt_field_(options.prompt_field) {
    prompt_root_ = prompt_field_.substr(0, prompt_field_.find('.'));
  }

  void estimate(std::string_view line, Row* row, Piece* piece) const {
    Estimate found;
    MemberScanner scanner(line);
    Member member;
    std::string_view id;
    while (scanner.next(&member)) {
      if (member.key == "max_tokens" || member.key == "max_completion_tokens") {
        found.completion_tokens = small_number(member.value, found.completion_tokens);
      } else if (member.key == "id" || member.key == "custom_id") {
        id = member.value;
      } else if (member.key == "prompt_token_ids" || member.key == prompt_field_ ||
                 member.key == prompt_root_) {
        found.prompt_tokens = estimated_tokens(member.value);
        found.prefix = prefix_of(member.value);
      } else if (member.key == "messages") {
        found.prompt_tokens = estimated_text_tokens(member.value);
        found.prefix = prefix_of(member.value);
      } else if (member.key == "sampling_params" || member.key == "body") {
        estimate_nested(member.value, &found);
      } else {
        count_watched(member.key, &piece->watched_counts);
      }
    }
    if (scanner.ok()) count_id(id, row, piece);
    if (found.completion_tokens == 0) {
      found.completion_tokens = options_.default_completion_tokens;
      ++piece->num_without_max_tokens;
    }
    constexpr uint64_t kMost = RowEntry::kMaxTokens;
    row->entry.prompt_tokens = std::min<uint64_t>(found.prompt_tokens, kMost) & kMost;
    row->entry.completion_tokens = std::min<uint64_t>(found.completion_tokens, kMost) & kMost;
    row->entry.prefix = found.prefix;
  }

 private:
  static void count_id(std::string_view id, Row* row, Piece* piece) {
    if (id.empty() || id == "null") {
      ++piece->ids.num_missing;
      return;
    }
    if (id[0] != '"') ++piece->ids.num_numbers;
    row->index = static_cast<int64_t>(std::max<uint64_t>(1, hash_of(id)));
  }
  // sampling_params, or the body of a row in the OpenAI batch form.
  static void estimate_nested(std::string_view object, Estimate* found) {
    MemberScanner scanner(object);
    Member member;
    while (scanner.next(&member)) {
      if (member.key == "max_tokens" || member.key == "max_completion_tokens") {
        found->completion_tokens = small_number(member.value, found->completion_tokens);
      } else if (member.key == "messages") {
        found->prompt_tokens = estimated_text_tokens(member.value);
        found->prefix = prefix_of(member.value);
      } else if (member.key == "prompt") {
        found->prompt_tokens = estimated_tokens(member.value);
        found->prefix = prefix_of(member.value);
      }
    }
  }
  void count_watched(std::string_view key, std::vector<int64_t>* counts) const {
    for (size_t i = 0; i < options_.watched_keys.size(); ++i) {
      if (key == options_.watched_keys[i]) ++(*counts)[i];
    }
  }

  const IndexOptions& options_;
  std::string prompt_field_;
  std::string prompt_root_;
};

void index_piece(const File& file, const IndexOptions& options, const RowEstimator& estimator,
                 Piece* piece) {
  piece->watched_counts.assign(options.watched_keys.size(), 0);
  LineReader reader(file, piece->begin, piece->end, options.max_line_bytes);
  Line line;
  while (reader.next(&line)) {
    Row row;
    row.entry.hash = hash_of(line.bytes);
    row.entry.offset = static_cast<uint64_t>(line.offset) & RowEntry::kMaxOffset;
    row.entry.file = static_cast<uint16_t>(piece->file);
    row.entry.line = checked_cast<uint32_t>(line.number);
    row.entry.length =
        line.too_long ? RowEntry::kTooLong : static_cast<uint32_t>(line.bytes.size());
    row.entry.prompt_tokens = 1;
    if (!line.too_long) estimator.estimate(line.bytes, &row, piece);
    piece->rows.push_back(row);
  }
  piece->num_lines = reader.num_lines();
}

std::vector<Piece> cut_into_pieces(const std::vector<int64_t>& file_bytes, int64_t piece_bytes) {
  std::vector<Piece> pieces;
  for (size_t f = 0; f < file_bytes.size(); ++f) {
    for (int64_t begin = 0; begin < file_bytes[f]; begin += piece_bytes) {
      Piece piece;
      piece.file = static_cast<int32_t>(f);
      piece.begin = begin;
      piece.end = std::min(begin + piece_bytes, file_bytes[f]);
      pieces.push_back(std::move(piece));
    }
  }
  return pieces;
}

// Puts pieces together in the input's order.
class Joiner {
 public:
  explicit Joiner(InputIndex* index) : index_(*index) {}

  void join(const Piece& piece) {
    if (piece.file != file_) {
      file_ = piece.file;
      lines_before_ = 0;
    }
    if (lines_before_ + piece.num_lines > UINT32_MAX) {
      throw Error(ExitCode::kUsage,
                  fmt::format("input {}: more than {} lines; cut it in two",
                              index_.files[static_cast<size_t>(file_)], UINT32_MAX));
    }
    for (Row row : piece.rows) {
      row.entry.line += static_cast<uint32_t>(lines_before_);
      index_.rows.push_back(row);
    }
    lines_before_ += piece.num_lines;
    index_.num_lines += piece.num_lines;
    index_.num_without_max_tokens += piece.num_without_max_tokens;
    index_.ids.num_missing += piece.ids.num_missing;
    index_.ids.num_numbers += piece.ids.num_numbers;
    for (size_t i = 0; i < piece.watched_counts.size(); ++i) {
      index_.watched_counts[i] += piece.watched_counts[i];
    }
  }

 private:
  InputIndex& index_;
  int32_t file_ = 0;
  int64_t lines_before_ = 0;
};

// A thread that is ahead waits until the pieces before its own have joined the index, so that few
// pieces hold rows, and what is there when enough rows are found is a prefix of the input.
void index_pieces(const std::vector<File>& files, const IndexOptions& options,
                  const std::vector<Piece>& pieces, InputIndex* index) {
  const auto enough =
      static_cast<size_t>(options.limit < 0 ? INT64_MAX : options.skip + options.limit);
  const RowEstimator estimator(options);
  Joiner joiner(index);
  std::mutex mutex;
  std::condition_variable joined;
  size_t next = 0;
  size_t num_joined = 0;
  std::exception_ptr failure;
  const auto work = [&] {
    std::unique_lock lock(mutex);
    try {
      while (!failure && next < pieces.size() && index->rows.size() < enough) {
        const size_t number = next++;
        lock.unlock();
        Piece piece = pieces[number];
        index_piece(files[static_cast<size_t>(piece.file)], options, estimator, &piece);
        lock.lock();
        joined.wait(lock, [&] { return failure || num_joined == number; });
        if (failure) return;
        if (index->rows.size() < enough) joiner.join(piece);
        ++num_joined;
        joined.notify_all();
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      if (!failure) failure = std::current_exception();
      joined.notify_all();
    }
  };
  std::vector<std::thread> threads;
  const auto num_threads = std::min<size_t>(static_cast<size_t>(std::max(1, options.threads)),
                                            std::max<size_t>(1, pieces.size()));
  for (size_t t = 1; t < num_threads; ++t) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

// Counts repeated ids, whose hashes stand where the indices will; in shares of the hashes, because
// all of them at once would be a fifth of the index.
void count_ids(const Rows& rows, IdCounts* ids) {
  constexpr int kShareBits = 3;
  std::vector<uint64_t> hashes;
  for (uint64_t share = 0; share < (1U << kShareBits); ++share) {
    hashes.clear();
    for (const Row& row : rows) {
      const auto hash = static_cast<uint64_t>(row.index);
      if (hash != 0 && hash >> (64 - kShareBits) == share) hashes.push_back(hash);
    }
    std::sort(hashes.begin(), hashes.end());
    ids->num_ids += static_cast<int64_t>(hashes.size());
    ids->num_repeated += hashes.end() - std::unique(hashes.begin(), hashes.end());
  }
}

void number_rows(Rows* rows) {
  int64_t index = 0;
  for (Row& row : *rows) row.index = index++;
}

void apply_skip_and_limit(const IndexOptions& options, InputIndex* index) {
  auto& rows = index->rows;
  const auto total = static_cast<int64_t>(rows.size());
  const int64_t begin = std::min(std::max<int64_t>(0, options.skip), total);
  const int64_t end = options.limit < 0 ? total : std::min(total, begin + options.limit);
  rows.erase(rows.begin() + end, rows.end());
  rows.erase(rows.begin(), rows.begin() + begin);
  index->first_row = begin;
}

uint64_t hash_of_rows(const Rows& rows) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  for (const Row& row : rows) {
    XXH3_64bits_update(state, &row.entry.hash, sizeof(row.entry.hash));
  }
  const uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return hash;
}

}  // namespace

int64_t cost_of(const RowEntry& row) {
  return static_cast<int64_t>(row.prompt_tokens) +
         kDecodeCost * static_cast<int64_t>(row.completion_tokens);
}

int64_t InputIndex::bytes() const {
  int64_t sum = 0;
  for (const int64_t bytes : file_bytes) sum += bytes;
  return sum;
}

uint64_t hash_of(std::string_view bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

InputIndex build_index(const IndexOptions& options) {
  InputIndex index;
  index.files = options.files;
  index.watched_counts.assign(options.watched_keys.size(), 0);
  constexpr size_t kMostFiles = 65536;
  if (options.files.size() > kMostFiles) {
    throw Error(ExitCode::kUsage, fmt::format("{} input files; the limit is {}: join some",
                                              options.files.size(), kMostFiles));
  }
  std::vector<File> files;
  for (const std::string& path : options.files) {
    files.push_back(open_input(path));
    const int64_t bytes = file_bytes(files.back());
    if (static_cast<uint64_t>(bytes) > RowEntry::kMaxOffset) {
      throw Error(ExitCode::kUsage,
                  fmt::format("input {}: {} bytes; the limit is {}: cut it in two", path, bytes,
                              RowEntry::kMaxOffset));
    }
    index.file_bytes.push_back(bytes);
  }
  index_pieces(files, options, cut_into_pieces(index.file_bytes, options.piece_bytes), &index);
  count_ids(index.rows, &index.ids);
  number_rows(&index.rows);
  apply_skip_and_limit(options, &index);
  index.hash = hash_of_rows(index.rows);
  return index;
}

std::string read_row(const File& file, const RowEntry& row) {
  MPINFER_CHECK(row.length != RowEntry::kTooLong, "line {} is too long to be read", row.line);
  std::string line(row.length, '\0');
  const int64_t count = read_at(file, line.data(), row.length, static_cast<int64_t>(row.offset));
  if (count != row.length || hash_of(line) != row.hash) {
    throw Error(
        ExitCode::kUsage,
        fmt::format("input {} changed while it was used: line {} is not what rank 0 indexed",
                    file.name(), row.line));
  }
  return line;
}

}  // namespace mpinfer::io
