#include "lib/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "lib/core/error.h"
#include "lib/core/fault_point.h"
#include "lib/core/log.h"

namespace mpinfer::io {
namespace {

std::string reason(int error) {
  return std::generic_category().message(error);
}

int open_retrying(const char* path, int flags, mode_t mode = 0) {
  while (true) {
    const int fault = fault_point("open");
    const int fd = fault == 0 ? ::open(path, flags | O_CLOEXEC, mode) : -1;
    if (fault != 0) errno = fault;
    if (fd >= 0 || errno != EINTR) return fd;
  }
}

}  // namespace

void File::close() noexcept {
  if (fd_ > STDERR_FILENO) ::close(fd_);
  fd_ = -1;
}

File open_input(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for its writer.
  const int fd = open_retrying(path.c_str(), O_RDONLY | O_NONBLOCK);
  if (fd < 0) {
    throw Error(ExitCode::kInputUnreadable, fmt::format("input {}: {}", path, reason(errno)));
  }
  File file(fd, path);
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    throw Error(ExitCode::kInputUnreadable, fmt::format("input {}: {}", path, reason(errno)));
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(ExitCode::kInputUnreadable,
                fmt::format("input {}: {}; give a regular file", path,
                            S_ISDIR(status.st_mode) ? "is a directory" : "is not a regular file"));
  }
  return file;
}

File create_exclusive(const std::string& path) {
  const int fd = open_retrying(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_APPEND, 0644);
  if (fd < 0) {
    throw Error(ExitCode::kOutOfResource, fmt::format("cannot create {}: {}", path, reason(errno)));
  }
  return {fd, path};
}

File open_to_write(const std::string& path, int flags) {
  const int fd = open_retrying(path.c_str(), O_WRONLY | flags, 0644);
  if (fd < 0) {
    throw Error(ExitCode::kOutOfResource, fmt::format("cannot create {}: {}", path, reason(errno)));
  }
  return {fd, path};
}

File make_anonymous_file() {
  for (const char* directory : {"/tmp", "/var/tmp", "."}) {
    std::string path = fmt::format("{}/mpinfer-XXXXXX", directory);
    const int fd = ::mkostemp(path.data(), O_APPEND | O_CLOEXEC);
    if (fd < 0) continue;
    ::unlink(path.c_str());
    return {fd, path + " (unlinked)"};
  }
  const int fd = ::memfd_create("mpinfer", MFD_CLOEXEC);
  if (fd < 0) {
    throw Error(ExitCode::kOutOfResource,
                fmt::format("no temporary file in /tmp, /var/tmp or here: {}", reason(errno)));
  }
  return {fd, "temporary file in memory"};
}

int64_t file_bytes(const File& file) {
  struct stat status {};
  if (::fstat(file.fd(), &status) != 0) {
    throw Error(ExitCode::kInputUnreadable, fmt::format("{}: {}", file.name(), reason(errno)));
  }
  return status.st_size;
}

int64_t read_at(const File& file, void* data, int64_t bytes, int64_t offset) {
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t count = ::pread(file.fd(), static_cast<char*>(data) + done,
                                  static_cast<size_t>(bytes - done), offset + done);
    if (count < 0) {
      if (errno == EINTR) continue;
      throw Error(ExitCode::kInputUnreadable,
                  fmt::format("{}: reading {} bytes at {}: {}", file.name(), bytes, offset + done,
                              reason(errno)));
    }
    if (count == 0) break;
    done += count;
  }
  return done;
}

WriteResult write_some(const File& file, std::string_view bytes) {
  while (true) {
    const int fault = fault_point("write");
    if (fault == kShortWrite) bytes = bytes.substr(0, (bytes.size() + 1) / 2);
    const ssize_t count = fault > 0 ? -1 : ::write(file.fd(), bytes.data(), bytes.size());
    if (count >= 0) return {static_cast<size_t>(count), 0};
    const int error = fault > 0 ? fault : errno;
    if (error != EINTR) return {0, error};
  }
}

Error write_error(const File& file, int error, size_t bytes_left) {
  return {ExitCode::kOutOfResource, fmt::format("writing {}: {} ({} bytes were left)", file.name(),
                                                reason(error), bytes_left)};
}

void write_all(const File& file, std::string_view bytes) {
  while (!bytes.empty()) {
    const WriteResult result = write_some(file, bytes);
    if (result.error != 0) throw write_error(file, result.error, bytes.size());
    bytes.remove_prefix(result.written);
  }
}

void cut_off(const File& file, int64_t bytes) {
  if (::ftruncate(file.fd(), bytes) != 0) {
    spdlog::warn("{}: cannot be cut off at {} bytes: {}", file.name(), bytes, reason(errno));
  }
}

void start_writeback(const File& file, int64_t offset, int64_t bytes) {
  // What fails here is found by sync_data.
  ::sync_file_range(file.fd(), offset, bytes, SYNC_FILE_RANGE_WRITE);
}

void sync_data(const File& file) {
  const int fault = fault_point("fsync");
  if (fault == 0 && ::fdatasync(file.fd()) == 0) return;
  if (fault != 0) errno = fault;
  if (errno == EINVAL || errno == EROFS) return;  // a pipe or device: nothing to sync
  throw Error(ExitCode::kOutOfResource,
              fmt::format("{}: fdatasync: {}; what was last written may be lost", file.name(),
                          reason(errno)));
}

void sync_directory_of(const std::string& path) {
  const std::string directory = directory_of(path);
  const int fd = open_retrying(directory.c_str(), O_RDONLY | O_DIRECTORY);
  if (fd < 0 && errno == EACCES) return;  // a directory that may be written but not read
  if (fd < 0) {
    throw Error(ExitCode::kOutOfResource, fmt::format("{}: open: {}", directory, reason(errno)));
  }
  const File file(fd, directory);
  const int fault = fault_point("fsync");
  if (fault == 0 && ::fsync(file.fd()) == 0) return;
  if (fault != 0) errno = fault;
  if (errno == EINVAL) return;
  throw Error(ExitCode::kOutOfResource, fmt::format("{}: fsync: {}", directory, reason(errno)));
}

void rename_file(const std::string& from, const std::string& to) {
  const int fault = fault_point("rename");
  if (fault == 0 && ::rename(from.c_str(), to.c_str()) == 0) return;
  throw Error(ExitCode::kOutOfResource, fmt::format("cannot rename {} to {}: {}", from, to,
                                                    reason(fault != 0 ? fault : errno)));
}

void replace_file(const std::string& path, std::string_view bytes) {
  replace_file(path, [&](const File& file) { write_all(file, bytes); });
}

void replace_file(const std::string& path, const std::function<void(const File&)>& write) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  try {
    File file = open_to_write(temporary, O_CREAT | O_TRUNC);
    write(file);
    sync_data(file);
    file.close();
    rename_file(temporary, path);
  } catch (const Error&) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_directory_of(path);
}

std::string read_whole_file(const std::string& path, int64_t max_bytes) {
  const File file = open_input(path);
  const int64_t bytes = file_bytes(file);
  if (bytes > max_bytes) {
    throw Error(ExitCode::kInputUnreadable,
                fmt::format("{}: {} bytes; the limit is {}", path, bytes, max_bytes));
  }
  std::string out(static_cast<size_t>(bytes), '\0');
  out.resize(static_cast<size_t>(read_at(file, out.data(), bytes, 0)));
  return out;
}

std::vector<std::string> list_directory(const std::string& path, std::string_view prefix) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    std::string name = entry.path().filename().string();
    if (name.starts_with(prefix)) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    throw Error(ExitCode::kUsage,
                fmt::format("cannot create directory {}: {}", path, error.message()));
  }
}

std::string directory_of(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace mpinfer::io
