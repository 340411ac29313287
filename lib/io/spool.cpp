#include "lib/io/spool.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::io {
namespace {

constexpr size_t kChunk = 1 << 20;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ExitCode::kInputUnreadable, fmt::format("input {}: {}", printable(path), why));
}

// What is read one after the other; EINTR is tried again.
class Source {
 public:
  explicit Source(const std::string& path) : path_(path), buffer_(kChunk) {
    const int fd = path == "-" ? ::dup(STDIN_FILENO) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) refuse(path, std::strerror(errno));
    file_ = File(fd, path);
  }
  // Empty at the end.
  std::string_view next() {
    ssize_t count = 0;
    do {
      count = ::read(file_.fd(), buffer_.data(), buffer_.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) refuse(path_, std::strerror(errno));
    offset_ += count;
    return {buffer_.data(), static_cast<size_t>(count)};
  }
  int64_t offset() const { return offset_; }  // behind what was read last
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::vector<char> buffer_;
  File file_;
  int64_t offset_ = 0;
};

void copy(Source& source, const File& out) {
  for (std::string_view bytes = source.next(); !bytes.empty(); bytes = source.next())
    write_all(out, bytes);
}

void inflate_gzip(Source& source, const File& out) {
  constexpr int kGzip = 15 + 16;
  z_stream stream{};
  if (inflateInit2(&stream, kGzip) != Z_OK)
    throw Error(ExitCode::kOutOfResource, "no memory to decompress with");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> ended(&stream, inflateEnd);
  std::vector<char> plain(kChunk);
  bool inside = false;  // of a member; several may follow each other
  for (std::string_view bytes = source.next(); !bytes.empty(); bytes = source.next()) {
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
    stream.avail_in = static_cast<uInt>(bytes.size());
    do {
      stream.next_out = reinterpret_cast<Bytef*>(plain.data());
      stream.avail_out = static_cast<uInt>(plain.size());
      inside = true;
      const int status = inflate(&stream, Z_NO_FLUSH);
      const int64_t at = source.offset() - stream.avail_in;
      if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR) {
        refuse(source.path(), fmt::format("damaged gzip data at byte {}: {}", at,
                                          stream.msg == nullptr ? "no message" : stream.msg));
      }
      write_all(out, {plain.data(), plain.size() - stream.avail_out});
      if (status == Z_STREAM_END) {
        inside = false;
        inflateReset(&stream);
      }
    } while (stream.avail_in > 0 || (inside && stream.avail_out == 0));
  }
  if (inside) refuse(source.path(), fmt::format("gzip data cut short at byte {}", source.offset()));
}

void inflate_zstd(Source& source, const File& out) {
  const std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream(ZSTD_createDStream(),
                                                                        ZSTD_freeDStream);
  if (stream == nullptr) throw Error(ExitCode::kOutOfResource, "no memory to decompress with");
  std::vector<char> plain(kChunk);
  size_t wanted = 0;  // 0: a frame has just ended
  for (std::string_view bytes = source.next(); !bytes.empty(); bytes = source.next()) {
    ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
    ZSTD_outBuffer to{};
    do {
      to = {plain.data(), plain.size(), 0};
      wanted = ZSTD_decompressStream(stream.get(), &to, &in);
      if (ZSTD_isError(wanted) != 0U) {
        refuse(source.path(), fmt::format("damaged zstd data at byte {}: {}",
                                          source.offset() - static_cast<int64_t>(in.size - in.pos),
                                          ZSTD_getErrorName(wanted)));
      }
      write_all(out, {plain.data(), to.pos});
    } while (in.pos < in.size || to.pos == to.size);
  }
  if (wanted != 0)
    refuse(source.path(), fmt::format("zstd data cut short at byte {}", source.offset()));
}

void write_plain(const std::string& path, const File& out) {
  Source source(path);
  if (path.ends_with(".gz")) return inflate_gzip(source, out);
  if (path.ends_with(".zst")) return inflate_zstd(source, out);
  copy(source, out);
}

}  // namespace

bool needs_spool(const std::string& path) {
  if (path == "-" || path.ends_with(".gz") || path.ends_with(".zst")) return true;
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISFIFO(status.st_mode);
}

Spooled spool_input(const std::string& path, const std::string& target, bool reuse) {
  if (target.empty()) {
    Spooled spooled{"", make_anonymous_file()};
    write_plain(path, spooled.held);
    spooled.path = fmt::format("/proc/self/fd/{}", spooled.held.fd());
    return spooled;
  }
  if (reuse && std::filesystem::exists(target)) {
    spdlog::info("input {}: taken from {}, where an earlier start put it",
                 path == "-" ? "standard input" : printable(path), target);
    return {target, File()};
  }
  const std::string temporary = target + ".tmp";
  std::filesystem::remove(temporary);
  make_directories(directory_of(target));
  try {
    const File out = create_exclusive(temporary);
    write_plain(path, out);
    sync_data(out);
  } catch (...) {
    std::filesystem::remove(temporary);
    throw;
  }
  rename_file(temporary, target);
  sync_directory_of(target);
  return {target, File()};
}

}  // namespace mpinfer::io
