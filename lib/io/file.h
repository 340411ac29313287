// Files: an owned descriptor and the few verbs the data road needs. One write loop serves every
// writer: it goes on after EINTR and short writes; a full disk is Error(kOutOfResource). Reading is
// by pread, so a file may be read from several threads. Refuses to read what is no regular file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/error.h"

namespace mpinfer::io {

class File {
 public:
  File() = default;
  File(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}
  File(File&& other) noexcept { swap(other); }
  File& operator=(File&& other) noexcept {
    File moved(std::move(other));
    swap(moved);
    return *this;
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { close(); }

  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  const std::string& name() const { return name_; }  // for messages
  void close() noexcept;

 private:
  void swap(File& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(name_, other.name_);
  }
  int fd_ = -1;
  std::string name_;
};

// A regular file for reading. Throws Error(kInputUnreadable) naming the path and the reason.
File open_input(const std::string& path);
// A new file for appending and reading back; fails if path exists. Throws Error(kOutOfResource).
File create_exclusive(const std::string& path);
// Write-only; flags: O_CREAT and O_TRUNC or neither. Throws Error(kOutOfResource).
File open_to_write(const std::string& path, int flags);
// A nameless file that goes away with its descriptor, for what need not outlive the process.
File make_anonymous_file();

int64_t file_bytes(const File& file);
// Reads up to bytes at offset, less only at the end of the file; returns how many.
// Throws Error(kInputUnreadable).
int64_t read_at(const File& file, void* data, int64_t bytes, int64_t offset);
// Throws Error(kOutOfResource): ENOSPC, EDQUOT, EFBIG, EIO, EPIPE.
void write_all(const File& file, std::string_view bytes);
// One write, tried again after EINTR: bytes written and the error that ended it, 0 for none.
struct WriteResult {
  size_t written = 0;
  int error = 0;
};
WriteResult write_some(const File& file, std::string_view bytes);
// What write_all throws.
Error write_error(const File& file, int error, size_t bytes_left);
// Shortens the file; a failure is only logged.
void cut_off(const File& file, int64_t bytes);
// Asks the system to begin writing what was last written, so that sync_data has less to wait for.
void start_writeback(const File& file, int64_t offset, int64_t bytes);
// fdatasync; a failure means the bytes are lost, it is never tried again on the same descriptor.
void sync_data(const File& file);
// Makes a created or renamed name durable.
void sync_directory_of(const std::string& path);
// Throws Error(kOutOfResource).
void rename_file(const std::string& from, const std::string& to);

// Whole small file: temporary beside it, fsync, rename, fsync of the directory.
void replace_file(const std::string& path, std::string_view bytes);
void replace_file(const std::string& path, const std::function<void(const File&)>& write);
std::string read_whole_file(const std::string& path, int64_t max_bytes);
// Names in a directory that begin with prefix, sorted; none if it is not there.
std::vector<std::string> list_directory(const std::string& path, std::string_view prefix);
// Creates path and its parents. Throws Error(kUsage).
void make_directories(const std::string& path);
std::string directory_of(const std::string& path);

}  // namespace mpinfer::io
