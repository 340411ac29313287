// Checkpoint: the safetensors files of a model directory, seen through their headers. Every number
// of a header is checked before it is used: lengths against the file, shapes by checked
// multiplication, offsets must tile the data without hole or overlap. No weights are read and
// nothing is reserved from a file's number. Throws Error(kModelRefused) naming file, tensor and
// rule.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lib/model/model_file.h"

namespace mpinfer::model {

struct StoredTensor {
  static constexpr int32_t kMaxRank = 8;

  std::string name;
  std::string dtype;  // as the header says: "BF16"
  std::array<int64_t, kMaxRank> shape{};
  int32_t rank = 0;
  int32_t file = 0;    // index into Checkpoint::files()
  int64_t offset = 0;  // of the first byte, from the start of the file
  int64_t bytes = 0;
};

// Width in bytes of a safetensors dtype, 0 when it is not one.
int64_t width_of(std::string_view safetensors_dtype);

// The tensors of one file, in the order of their offsets; header_text receives the raw header.
std::vector<StoredTensor> read_header(const ModelFile& file, std::string* header_text);

// Which file holds which tensor, of an index.json.
struct IndexEntry {
  std::string tensor;
  std::string file;
};
std::vector<IndexEntry> parse_index(const std::string& text, const std::string& path);

class Checkpoint {
 public:
  // model.safetensors, or the files that model.safetensors.index.json names.
  explicit Checkpoint(const std::string& directory);

  const std::vector<ModelFile>& files() const { return files_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const StoredTensor* find(const std::string& name) const;  // null: not there
  std::string path_of(const StoredTensor& tensor) const;
  // Of names, sizes and headers of all files; the directory's own path does not count.
  uint64_t hash() const { return hash_; }

 private:
  void add_file(const std::string& directory, const std::string& name);
  void require_index(const std::vector<IndexEntry>& index, const std::string& path) const;

  std::vector<ModelFile> files_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
  uint64_t hash_ = 0;
};

}  // namespace mpinfer::model
