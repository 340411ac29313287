#include "lib/io/index.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <charconv>
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
  std::vector<RowEntry> rows;  // lines counted within the piece
  int64_t num_lines = 0;
  std::vector<int64_t> watched_counts;
  int64_t num_without_max_tokens = 0;
  std::vector<uint64_t> id_hashes;
  IdCounts ids;
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

  void estimate(std::string_view line, RowEntry* row, Piece* piece) const {
    row->prompt_tokens = 1;
    row->completion_tokens = 0;
    MemberScanner scanner(line);
    Member member;
    std::string_view id;
    while (scanner.next(&member)) {
      if (member.key == "max_tokens" || member.key == "max_completion_tokens") {
        row->completion_tokens = small_number(member.value, row->completion_tokens);
      } else if (member.key == "id" || member.key == "custom_id") {
        id = member.value;
      } else if (member.key == "prompt_token_ids" || member.key == prompt_field_ ||
                 member.key == prompt_root_) {
        row->prompt_tokens = estimated_tokens(member.value);
        row->prefix = prefix_of(member.value);
      } else if (member.key == "messages") {
        row->prompt_tokens = estimated_text_tokens(member.value);
        row->prefix = prefix_of(member.value);
      } else if (member.key == "sampling_params" || member.key == "body") {
        estimate_nested(member.value, row);
      } else {
        count_watched(member.key, &piece->watched_counts);
      }
    }
    if (scanner.ok()) count_id(id, piece);
    if (row->completion_tokens > 0) return;
    row->completion_tokens = options_.default_completion_tokens;
    ++piece->num_without_max_tokens;
  }

 private:
  static void count_id(std::string_view id, Piece* piece) {
    if (id.empty() || id == "null") {
      ++piece->ids.num_missing;
      return;
    }
    if (id[0] != '"') ++piece->ids.num_numbers;
    piece->id_hashes.push_back(hash_of(id));
  }
  // sampling_params, or the body of a row in the OpenAI batch form.
  static void estimate_nested(std::string_view object, RowEntry* row) {
    MemberScanner scanner(object);
    Member member;
    while (scanner.next(&member)) {
      if (member.key == "max_tokens" || member.key == "max_completion_tokens") {
        row->completion_tokens = small_number(member.value, row->completion_tokens);
      } else if (member.key == "messages") {
        row->prompt_tokens = estimated_text_tokens(member.value);
        row->prefix = prefix_of(member.value);
      } else if (member.key == "prompt") {
        row->prompt_tokens = estimated_tokens(member.value);
        row->prefix = prefix_of(member.value);
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
    RowEntry row{
        .offset = line.offset,
        .hash = hash_of(line.bytes),
        .line = line.number,
        .length = line.too_long ? RowEntry::kTooLong : static_cast<uint32_t>(line.bytes.size()),
        .file = static_cast<uint16_t>(piece->file)};
    if (line.too_long) {
      row.prompt_tokens = 1;
    } else {
      estimator.estimate(line.bytes, &row, piece);
    }
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

// Pieces are taken in order, so what is done when enough rows are found is a prefix of the input.
void index_pieces(const std::vector<File>& files, const IndexOptions& options,
                  std::vector<Piece>* pieces) {
  const int64_t enough = options.limit < 0 ? INT64_MAX : options.skip + options.limit;
  const RowEstimator estimator(options);
  std::atomic<size_t> next{0};
  std::atomic<int64_t> found{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    try {
      while (found.load() < enough) {
        const size_t p = next.fetch_add(1);
        if (p >= pieces->size()) return;
        Piece& piece = (*pieces)[p];
        index_piece(files[static_cast<size_t>(piece.file)], options, estimator, &piece);
        found.fetch_add(static_cast<int64_t>(piece.rows.size()));
      }
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      found.store(INT64_MAX / 2);
    }
  };
  std::vector<std::thread> threads;
  const auto num_threads = std::min<size_t>(static_cast<size_t>(std::max(1, options.threads)),
                                            std::max<size_t>(1, pieces->size()));
  for (size_t t = 1; t < num_threads; ++t) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

// Before the rows are joined, so that memory does not grow beyond theirs.
void count_ids(std::vector<Piece>* pieces, IdCounts* ids) {
  std::vector<uint64_t> hashes;
  for (Piece& piece : *pieces) {
    hashes.insert(hashes.end(), piece.id_hashes.begin(), piece.id_hashes.end());
    piece.id_hashes = {};
    ids->num_missing += piece.ids.num_missing;
    ids->num_numbers += piece.ids.num_numbers;
  }
  ids->num_ids = static_cast<int64_t>(hashes.size());
  std::sort(hashes.begin(), hashes.end());
  const auto distinct = std::unique(hashes.begin(), hashes.end()) - hashes.begin();
  ids->num_repeated = ids->num_ids - distinct;
}

// Appends the pieces' rows with lines counted per file; frees each piece as it goes.
void join_pieces(std::vector<Piece>* pieces, InputIndex* index) {
  size_t num_rows = 0;
  for (const Piece& piece : *pieces) num_rows += piece.rows.size();
  count_ids(pieces, &index->ids);
  index->rows.reserve(num_rows);
  int32_t file = 0;
  int64_t lines_before = 0;
  for (Piece& piece : *pieces) {
    if (piece.file != file) {
      file = piece.file;
      lines_before = 0;
    }
    for (RowEntry& row : piece.rows) {
      row.line += lines_before;
      index->rows.push_back(row);
    }
    lines_before += piece.num_lines;
    index->num_lines += piece.num_lines;
    index->num_without_max_tokens += piece.num_without_max_tokens;
    for (size_t i = 0; i < piece.watched_counts.size(); ++i) {
      index->watched_counts[i] += piece.watched_counts[i];
    }
    piece = Piece();
  }
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

uint64_t hash_of_rows(const std::vector<RowEntry>& rows) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  for (const RowEntry& row : rows) XXH3_64bits_update(state, &row.hash, sizeof(row.hash));
  const uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return hash;
}

}  // namespace

int64_t cost_of(const RowEntry& row) {
  return int64_t{row.prompt_tokens} + kDecodeCost * int64_t{row.completion_tokens};
}

int64_t InputIndex::bytes() const {
  int64_t sum = 0;
  for (const int64_t bytes : file_bytes) sum += bytes;
  return sum;
}

void InputIndex::keep(const std::vector<bool>& wanted) {
  MPINFER_CHECK(wanted.size() == rows.size(), "{} wishes for {} rows", wanted.size(), rows.size());
  std::vector<uint32_t> kept;
  size_t count = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!wanted[i]) continue;
    kept.push_back(checked_cast<uint32_t>(index_of(i) - first_row));
    rows[count++] = rows[i];
  }
  rows.resize(count);
  places = std::move(kept);
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
    index.file_bytes.push_back(file_bytes(files.back()));
  }
  std::vector<Piece> pieces = cut_into_pieces(index.file_bytes, options.piece_bytes);
  index_pieces(files, options, &pieces);
  join_pieces(&pieces, &index);
  apply_skip_and_limit(options, &index);
  index.hash = hash_of_rows(index.rows);
  return index;
}

std::string read_row(const File& file, const RowEntry& row) {
  MPINFER_CHECK(row.length != RowEntry::kTooLong, "line {} is too long to be read", row.line);
  std::string line(row.length, '\0');
  const int64_t count = read_at(file, line.data(), row.length, row.offset);
  if (count != row.length || hash_of(line) != row.hash) {
    throw Error(
        ExitCode::kUsage,
        fmt::format("input {} changed while it was used: line {} is not what rank 0 indexed",
                    file.name(), row.line));
  }
  return line;
}

}  // namespace mpinfer::io
