// Finds the members of a JSON object and their byte ranges without building anything: for the
// index's cost estimate (any bytes, best effort) and for the byte-for-byte pass-through of lines
// that a JSON parser has already accepted. Gives up at depth 128; never reads outside the line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mpinfer::io {

struct Member {
  std::string_view key;    // raw, between the quotes
  std::string_view value;  // raw
  std::string_view text;   // from the key's opening quote to the end of the value
  // The key with its escapes resolved; equal to key when it has none.
  std::string decoded_key() const;
};

class MemberScanner {
 public:
  explicit MemberScanner(std::string_view object);
  // False at the end, or where the text is not shaped like an object: ok() tells which.
  bool next(Member* member);
  bool ok() const { return state_ == State::kDone; }

 private:
  enum class State : uint8_t { kFirst, kNext, kDone, kFailed };

  void skip_space();
  bool skip_string();  // from an opening quote to behind the closing one
  bool skip_container();
  bool skip_scalar();
  bool fail();

  std::string_view text_;
  size_t at_ = 0;
  State state_ = State::kFirst;
};

}  // namespace mpinfer::io
