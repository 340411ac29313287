#include "lib/model/model_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::model {
namespace {

constexpr int64_t kMaxRead = int64_t{1} << 30;  // pread takes at most 2^31 - 4096 bytes

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ExitCode::kModelRefused, what);
}

}  // namespace

void require_plain_name(std::string_view name, std::string_view source) {
  const bool plain = !name.empty() && name.size() <= 255 && name.front() != '.' &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
  if (!plain) {
    refuse(fmt::format("{}: file name \"{}\" is not one plain path component", source,
                       printable(name)));
  }
  constexpr std::array<std::string_view, 5> kPickled = {".bin", ".pt", ".pth", ".pkl", ".ckpt"};
  for (std::string_view suffix : kPickled) {
    if (name.ends_with(suffix)) {
      refuse(fmt::format("{}: \"{}\" is a pickled file, which is never opened; only .safetensors",
                         source, printable(name)));
    }
  }
}

ModelFile::ModelFile(const std::string& directory, const std::string& name)
    : path_(directory + "/" + name), name_(name) {
  require_plain_name(name, directory);
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    refuse(fmt::format("{}: cannot be opened: {}", printable(path_), std::strerror(errno)));
  }
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(std::exchange(descriptor_, -1));
    refuse(fmt::format("{}: not a regular file", printable(path_)));
  }
  size_ = status.st_size;
}

ModelFile::~ModelFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

ModelFile::ModelFile(ModelFile&& other) noexcept
    : path_(std::move(other.path_)),
      name_(std::move(other.name_)),
      size_(other.size_),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

ModelFile& ModelFile::operator=(ModelFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(name_, other.name_);
  std::swap(size_, other.size_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

void ModelFile::read(void* out, int64_t offset, int64_t bytes) const {
  char* at = static_cast<char*>(out);
  for (int64_t left = bytes; left > 0;) {
    const auto wanted = static_cast<size_t>(std::min(left, kMaxRead));
    const ssize_t got = ::pread(descriptor_, at, wanted, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      refuse(fmt::format("{}: reading {} bytes at offset {} failed: {}", printable(path_), left,
                         offset, std::strerror(errno)));
    }
    if (got == 0) {
      refuse(fmt::format("{}: ends at offset {}, {} bytes early: it changed while it was read",
                         printable(path_), offset, left));
    }
    at += got;
    offset += got;
    left -= got;
  }
}

bool file_exists(const std::string& directory, const std::string& name) {
  struct stat status {};
  return ::stat((directory + "/" + name).c_str(), &status) == 0;
}

std::string read_text(const std::string& directory, const std::string& name, int64_t limit) {
  const ModelFile file(directory, name);
  if (file.size() > limit) {
    refuse(
        fmt::format("{}: {} bytes, the limit is {}", printable(file.path()), file.size(), limit));
  }
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(text.data(), 0, file.size());
  return text;
}

}  // namespace mpinfer::model
