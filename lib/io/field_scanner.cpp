#include "lib/io/field_scanner.h"

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

namespace mpinfer::io {
namespace {

constexpr int kMaxDepth = 128;

constexpr std::array<bool, 256> make_structural() {
  std::array<bool, 256> table{};
  for (const char c : {'"', '{', '}', '[', ']'}) table[static_cast<unsigned char>(c)] = true;
  return table;
}
constexpr std::array<bool, 256> kStructural = make_structural();

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

}  // namespace

std::string Member::decoded_key() const {
  if (key.find('\\') == std::string_view::npos) return std::string(key);
  const std::string quoted = '"' + std::string(key) + '"';
  const auto parsed = nlohmann::json::parse(quoted, nullptr, /*allow_exceptions=*/false);
  return parsed.is_string() ? parsed.get<std::string>() : std::string(key);
}

MemberScanner::MemberScanner(std::string_view object) : text_(object) {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != '{') {
    state_ = State::kFailed;
    return;
  }
  ++at_;
}

void MemberScanner::skip_space() {
  while (at_ < text_.size() && is_space(text_[at_])) ++at_;
}

bool MemberScanner::fail() {
  state_ = State::kFailed;
  return false;
}

// A quote ends the string unless an odd run of backslashes stands before it.
bool MemberScanner::skip_string() {
  const size_t first = ++at_;
  while (at_ < text_.size()) {
    const void* found = std::memchr(text_.data() + at_, '"', text_.size() - at_);
    if (found == nullptr) return false;
    const auto quote = static_cast<size_t>(static_cast<const char*>(found) - text_.data());
    size_t run = quote;
    while (run > first && text_[run - 1] == '\\') --run;
    at_ = quote + 1;
    if ((quote - run) % 2 == 0) return true;
  }
  return false;
}

bool MemberScanner::skip_container() {
  int depth = 0;
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (!kStructural[static_cast<unsigned char>(c)]) {
      ++at_;
    } else if (c == '"') {
      if (!skip_string()) return false;
    } else {
      ++at_;
      depth += c == '{' || c == '[' ? 1 : -1;
      if (depth == 0) return true;
      if (depth > kMaxDepth) return false;
    }
  }
  return false;
}

bool MemberScanner::skip_scalar() {
  const size_t end = text_.find_first_of(",}] \t\r\n", at_);
  if (end == std::string_view::npos || end == at_) return false;
  at_ = end;
  return true;
}

bool MemberScanner::next(Member* member) {
  if (state_ == State::kDone || state_ == State::kFailed) return false;
  skip_space();
  if (at_ >= text_.size()) return fail();
  if (text_[at_] == '}') {
    state_ = State::kDone;
    return false;
  }
  if (state_ == State::kNext) {
    if (text_[at_] != ',') return fail();
    ++at_;
    skip_space();
  }
  state_ = State::kNext;
  if (at_ >= text_.size() || text_[at_] != '"') return fail();
  const size_t key = at_;
  if (!skip_string()) return fail();
  member->key = text_.substr(key + 1, at_ - key - 2);
  skip_space();
  if (at_ >= text_.size() || text_[at_] != ':') return fail();
  ++at_;
  skip_space();
  if (at_ >= text_.size()) return fail();
  const size_t value = at_;
  const char c = text_[at_];
  const bool skipped = c == '"'               ? skip_string()
                       : c == '{' || c == '[' ? skip_container()
                                              : skip_scalar();
  if (!skipped) return fail();
  member->value = text_.substr(value, at_ - value);
  member->text = text_.substr(key, at_ - key);
  return true;
}

}  // namespace mpinfer::io
