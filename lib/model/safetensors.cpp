// Format: https://huggingface.co/docs/safetensors/index#format (8-byte little-endian header length,
// JSON header, data). Sizes that are refused: RELIABILITY.md §6.
#include "lib/model/safetensors.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/model/safetensors_json.h"

namespace mpinfer::model {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kMaxIndexBytes = int64_t{64} << 20;
constexpr size_t kMaxFiles = 10'000;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kModelRefused, what);
}

// The length prefix is checked against the file before a byte of the header is allocated.
std::string read_header_text(const ModelFile& file) {
  if (file.size() < 8) {
    refuse(fmt::format("{}: {} bytes are no safetensors file (at least 8)", printable(file.path()),
                       file.size()));
  }
  std::array<uint8_t, 8> prefix{};
  file.read(prefix.data(), 0, 8);
  uint64_t length = 0;
  for (size_t i = 0; i < 8; ++i) length |= static_cast<uint64_t>(prefix[i]) << (8 * i);
  if (length > static_cast<uint64_t>(kMaxHeaderBytes)) {
    refuse(fmt::format("{}: header of {} bytes, the limit is {}", printable(file.path()), length,
                       kMaxHeaderBytes));
  }
  if (length > static_cast<uint64_t>(file.size() - 8)) {
    refuse(fmt::format("{}: header of {} bytes in a file of {} bytes: truncated?",
                       printable(file.path()), length, file.size()));
  }
  std::string text(static_cast<size_t>(length), '\0');
  file.read(text.data(), 8, static_cast<int64_t>(length));
  if (text.empty() || text.front() != '{') {
    refuse(fmt::format("{}: header does not start with '{{'", printable(file.path())));
  }
  return text;
}

// shape × width must be the range that the offsets give.
void require_size(const StoredTensor& tensor, const std::string& path) {
  int64_t bytes = width_of(tensor.dtype);
  for (int32_t d = 0; d < tensor.rank; ++d) {
    if (__builtin_mul_overflow(bytes, tensor.shape[static_cast<size_t>(d)], &bytes)) {
      refuse(
          fmt::format("{}: tensor {}: its shape overflows 63 bits", path, printable(tensor.name)));
    }
  }
  if (bytes != tensor.bytes) {
    refuse(fmt::format("{}: tensor {}: shape and {} need {} bytes, data_offsets give {}", path,
                       printable(tensor.name), tensor.dtype, bytes, tensor.bytes));
  }
}

}  // namespace

int64_t width_of(std::string_view dtype) {
  constexpr std::array<std::pair<std::string_view, int64_t>, 16> kWidths = {{{"BOOL", 1},
                                                                             {"U8", 1},
                                                                             {"I8", 1},
                                                                             {"F8_E5M2", 1},
                                                                             {"F8_E4M3", 1},
                                                                             {"F8_E8M0", 1},
                                                                             {"I16", 2},
                                                                             {"U16", 2},
                                                                             {"F16", 2},
                                                                             {"BF16", 2},
                                                                             {"I32", 4},
                                                                             {"U32", 4},
                                                                             {"F32", 4},
                                                                             {"F64", 8},
                                                                             {"I64", 8},
                                                                             {"U64", 8}}};
  for (const auto& [name, width] : kWidths) {
    if (name == dtype) return width;
  }
  return 0;
}

std::vector<StoredTensor> read_header(const ModelFile& file, std::string* header_text) {
  const std::string path = printable(file.path());
  *header_text = read_header_text(file);
  std::vector<StoredTensor> tensors = parse_header_json(*header_text, path);
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  const int64_t data_begin = 8 + static_cast<int64_t>(header_text->size());
  int64_t position = 0;
  for (StoredTensor& tensor : tensors) {
    if (tensor.offset != position) {
      refuse(
          fmt::format("{}: tensor {}: data_offsets begin at {}, the tensor before ends at {} ({})",
                      path, printable(tensor.name), tensor.offset, position,
                      tensor.offset < position ? "overlap" : "hole"));
    }
    if (tensor.bytes > file.size() - data_begin - position) {
      refuse(fmt::format(
          "{}: tensor {}: {} bytes at offset {}, the file has {} after its header: "
          "truncated?",
          path, printable(tensor.name), tensor.bytes, tensor.offset, file.size() - data_begin));
    }
    require_size(tensor, path);
    position += tensor.bytes;
    tensor.offset += data_begin;
  }
  if (position != file.size() - data_begin) {
    refuse(fmt::format("{}: {} bytes after the last tensor", path,
                       file.size() - data_begin - position));
  }
  return tensors;
}

Checkpoint::Checkpoint(const std::string& directory) {
  const std::string single = "model.safetensors";
  const std::string index_name = "model.safetensors.index.json";
  if (file_exists(directory, single)) {
    add_file(directory, single);
    return;
  }
  if (!file_exists(directory, index_name)) {
    const bool pickled = file_exists(directory, "pytorch_model.bin") ||
                         file_exists(directory, "pytorch_model.bin.index.json");
    refuse(fmt::format("{}: neither {} nor {}{}", printable(directory), single, index_name,
                       pickled ? "; pytorch_model.bin is pickled and never opened: save the model "
                                 "as safetensors"
                               : ""));
  }
  const std::string path = printable(directory + "/" + index_name);
  const std::string text = read_text(directory, index_name, kMaxIndexBytes);
  const std::vector<IndexEntry> index = parse_index(text, path);
  std::vector<std::string> names;
  for (const IndexEntry& entry : index) names.push_back(entry.file);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  if (names.size() > kMaxFiles) {
    refuse(fmt::format("{}: {} files, the limit is {}", path, names.size(), kMaxFiles));
  }
  for (const std::string& name : names) {
    require_plain_name(name, path);
    if (!name.ends_with(".safetensors")) {
      refuse(fmt::format("{}: file name \"{}\" does not end with .safetensors", path,
                         printable(name)));
    }
    if (!file_exists(directory, name)) {
      refuse(fmt::format("{}: names {}, which is not in the directory", path, printable(name)));
    }
  }
  for (const std::string& name : names) add_file(directory, name);
  require_index(index, path);
}

void Checkpoint::add_file(const std::string& directory, const std::string& name) {
  ModelFile file(directory, name);
  std::string header;
  for (StoredTensor& tensor : read_header(file, &header)) {
    tensor.file = static_cast<int32_t>(files_.size());
    const auto [at, added] = by_name_.emplace(tensor.name, tensors_.size());
    if (!added) {
      refuse(fmt::format("{}: tensor {} is also in {}", printable(file.path()),
                         printable(tensor.name), printable(path_of(tensors_[at->second]))));
    }
    tensors_.push_back(std::move(tensor));
  }
  const int64_t size = file.size();
  hash_ = XXH3_64bits_withSeed(name.data(), name.size(), hash_);
  hash_ = XXH3_64bits_withSeed(&size, sizeof(size), hash_);
  hash_ = XXH3_64bits_withSeed(header.data(), header.size(), hash_);
  files_.push_back(std::move(file));
}

void Checkpoint::require_index(const std::vector<IndexEntry>& index,
                               const std::string& path) const {
  for (const IndexEntry& entry : index) {
    const StoredTensor* tensor = find(entry.tensor);
    if (tensor == nullptr || files_[static_cast<size_t>(tensor->file)].name() != entry.file) {
      refuse(fmt::format("{}: weight_map places tensor {} in {}, whose header does not list it",
                         path, printable(entry.tensor), printable(entry.file)));
    }
  }
  if (index.size() != tensors_.size()) {
    refuse(fmt::format("{}: weight_map lists {} tensors, the headers of its files {}", path,
                       index.size(), tensors_.size()));
  }
}

const StoredTensor* Checkpoint::find(const std::string& name) const {
  const auto at = by_name_.find(name);
  return at == by_name_.end() ? nullptr : &tensors_[at->second];
}

std::string Checkpoint::path_of(const StoredTensor& tensor) const {
  const auto file = static_cast<size_t>(tensor.file);
  return file < files_.size() ? files_[file].path() : "the same file";
}

}  // namespace mpinfer::model
