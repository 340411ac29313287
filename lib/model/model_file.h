// ModelFile: a regular file of a model directory, read by pread with every length checked, so that
// a file that shrinks while it is read ends the run with a message instead of a fault (no mmap).
// Names come from untrusted index files: one path component, no leading dot, nothing pickled.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mpinfer::model {

class ModelFile {
 public:
  // Throws Error(kModelRefused) when name is not one plain component or the file cannot be opened.
  ModelFile(const std::string& directory, const std::string& name);
  ~ModelFile();
  ModelFile(ModelFile&& other) noexcept;
  ModelFile& operator=(ModelFile&& other) noexcept;
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  const std::string& path() const { return path_; }
  const std::string& name() const { return name_; }
  int64_t size() const { return size_; }

  // Exactly bytes bytes from offset, any thread. Throws Error(kModelRefused) when fewer come.
  void read(void* out, int64_t offset, int64_t bytes) const;

 private:
  std::string path_;
  std::string name_;
  int64_t size_ = 0;
  int descriptor_ = -1;
};

bool file_exists(const std::string& directory, const std::string& name);

// The whole file as text; more than limit bytes are refused.
std::string read_text(const std::string& directory, const std::string& name, int64_t limit);

// Throws Error(kModelRefused) naming source when name could leave the directory or is a pickle.
void require_plain_name(std::string_view name, std::string_view source);

}  // namespace mpinfer::model
