#include "lib/io/jsonl.h"

#include <algorithm>
#include <cstring>

namespace mpinfer::io {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr size_t kKeptOfTooLong = 4096;
constexpr size_t kNone = static_cast<size_t>(-1);
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

bool is_blank(std::string_view bytes) {
  return bytes.find_first_not_of(" \t\r\v\f") == std::string_view::npos;
}

}  // namespace

LineReader::LineReader(const File& file, int64_t begin, int64_t end, int64_t max_line_bytes)
    : file_(file),
      begin_(begin),
      end_(end),
      max_line_bytes_(max_line_bytes),
      // One byte before begin tells whether a line begins there.
      buffer_offset_(begin > 0 ? begin - 1 : 0) {}

bool LineReader::read_more() {
  if (position_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + position_, filled_ - position_);
    buffer_offset_ += static_cast<int64_t>(position_);
    filled_ -= position_;
    position_ = 0;
  }
  if (buffer_.size() < filled_ + kReadBytes) {
    buffer_.resize(std::max(filled_ + kReadBytes, filled_ + filled_ / 2));
  }
  const int64_t count = read_at(file_, buffer_.data() + filled_, static_cast<int64_t>(kReadBytes),
                                buffer_offset_ + static_cast<int64_t>(filled_));
  filled_ += static_cast<size_t>(count);
  return count > 0;
}

size_t LineReader::find_newline(size_t from) const {
  if (from >= filled_) return kNone;
  const void* found = std::memchr(buffer_.data() + from, '\n', filled_ - from);
  if (found == nullptr) return kNone;
  return static_cast<size_t>(static_cast<const char*>(found) - buffer_.data());
}

bool LineReader::skip_past_newline() {
  do {
    const size_t newline = find_newline(position_);
    if (newline != kNone) {
      position_ = newline + 1;
      return true;
    }
    position_ = filled_;
  } while (read_more());
  return false;
}

void LineReader::skip_partial_line() {
  if (begin_ > 0) {
    while (offset() < end_) {
      const size_t newline = find_newline(position_);
      if (newline != kNone) {
        position_ = newline + 1;
        return;
      }
      position_ = filled_;
      if (!read_more()) return;
    }
    return;
  }
  while (filled_ < kByteOrderMark.size() && read_more()) {
  }
  if (std::string_view(buffer_.data(), filled_).starts_with(kByteOrderMark)) {
    position_ = kByteOrderMark.size();
  }
}

void LineReader::read_line(Line* line) {
  *line = {};
  line->offset = offset();
  const auto limit = static_cast<size_t>(max_line_bytes_);
  size_t scanned = 0;
  size_t newline = kNone;
  while ((newline = find_newline(position_ + scanned)) == kNone) {
    scanned = filled_ - position_;
    if (scanned > limit + 1 || !read_more()) break;
  }
  const size_t length = (newline == kNone ? filled_ : newline) - position_;
  const char* from = buffer_.data() + position_;
  line->bytes = std::string_view(from, length);
  line->length = static_cast<int64_t>(length);
  line->terminated = newline != kNone;
  if (line->terminated && line->bytes.ends_with('\r')) {
    line->bytes.remove_suffix(1);
    --line->length;
  }
  if (line->bytes.size() <= limit) {
    position_ += length + (line->terminated ? 1 : 0);
    return;
  }
  line->too_long = true;
  head_.assign(from, from + std::min(length, kKeptOfTooLong));
  line->bytes = std::string_view(head_.data(), head_.size());
  line->terminated = skip_past_newline();
  line->length = offset() - line->offset - (line->terminated ? 1 : 0);
}

bool LineReader::next(Line* line) {
  if (!started_) {
    started_ = true;
    skip_partial_line();
  }
  while (offset() < end_ && (position_ < filled_ || read_more())) {
    read_line(line);
    line->number = ++num_lines_;
    if (line->too_long || !is_blank(line->bytes)) return true;
  }
  return false;
}

}  // namespace mpinfer::io
