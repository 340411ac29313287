#include "lib/io/ordered_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "lib/core/error.h"
#include "lib/core/fault_point.h"

namespace mpinfer::io {
namespace {

constexpr size_t kFlushBytes = size_t{1} << 20;

std::string reason(int error) {
  return std::generic_category().message(error);
}

bool is_special_file(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
}

// What a symbolic link points at is replaced, not the link.
std::string behind_links(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_symlink(path, ignored)) return path;
  const auto target = std::filesystem::weakly_canonical(path, ignored);
  return ignored ? path : target.string();
}

}  // namespace

OrderedWriter::OrderedWriter(const std::string& output, const std::string& temporary)
    : path_(behind_links(output)) {
  const std::string& path = path_;
  if (path == "-") {
    file_ = File(STDOUT_FILENO, "standard output");
    return;
  }
  const bool direct = is_special_file(path);
  const std::string name = direct               ? path
                           : !temporary.empty() ? temporary
                                                : fmt::format("{}.{}.tmp", path, ::getpid());
  file_ = open_to_write(name, direct ? 0 : O_CREAT | O_TRUNC);
  if (!direct) temporary_ = name;
}

OrderedWriter::~OrderedWriter() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void OrderedWriter::write_line(std::string_view line) {
  buffer_ += line;
  buffer_ += '\n';
  if (buffer_.size() >= kFlushBytes) flush();
}

void OrderedWriter::flush() {
  if (const int fault = fault_point("merge"); fault > 0) {
    throw write_error(file_, fault, buffer_.size());
  }
  write_all(file_, buffer_);
  if (!temporary_.empty()) start_writeback(file_, bytes_, static_cast<int64_t>(buffer_.size()));
  bytes_ += static_cast<int64_t>(buffer_.size());
  buffer_.clear();
}

void OrderedWriter::finish() {
  flush();
  if (temporary_.empty()) return;
  sync_data(file_);
  file_.close();
  fault_point("before-rename");
  rename_file(temporary_, path_);
  temporary_.clear();
  fault_point("after-rename");
  sync_directory_of(path_);
}

void require_writable_output(const std::string& path, const std::vector<std::string>& inputs,
                             bool overwrite) {
  if (path == "-") return;
  struct stat out {};
  if (::stat(path.c_str(), &out) == 0) {
    if (S_ISDIR(out.st_mode)) {
      throw Error(ExitCode::kUsage,
                  fmt::format("--output {}: is a directory; name a file in it", path));
    }
    for (const std::string& input : inputs) {
      struct stat in {};
      if (::stat(input.c_str(), &in) == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino) {
        throw Error(ExitCode::kUsage,
                    fmt::format("--output {}: is the input {}; name another file", path, input));
      }
    }
    if (S_ISREG(out.st_mode) && !overwrite) {
      throw Error(ExitCode::kUsage,
                  fmt::format("--output {}: exists ({} bytes); give --overwrite to replace it, or "
                              "another name",
                              path, out.st_size));
    }
    if (!S_ISREG(out.st_mode)) return;
  }
  const std::string directory = directory_of(path);
  if (::access(directory.c_str(), W_OK | X_OK) != 0) {
    throw Error(ExitCode::kUsage, fmt::format("--output {}: cannot write in directory {}: {}", path,
                                              directory, reason(errno)));
  }
}

}  // namespace mpinfer::io
