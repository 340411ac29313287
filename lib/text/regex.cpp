#include "lib/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::text {
namespace {

constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr size_t kJitStackStart = 32 * 1024;
constexpr size_t kJitStackMost = 8 * 1024 * 1024;

// \s and \S by the White_Space property, inside and outside of character classes.
std::string with_white_space(const std::string& pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's') {
        out += in_class ? "\\t-\\r\\x{85}\\p{Z}" : "[\\t-\\r\\x{85}\\p{Z}]";
      } else if (next == 'S' && !in_class) {
        out += "[^\\t-\\r\\x{85}\\p{Z}]";
      } else {
        out += c;
        out += next;
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      // A bracket right after the opening is a member.
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
      continue;
    }
    if (c == ']' && in_class) in_class = false;
    out += c;
  }
  return out;
}

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* p) const {
    Free(p);
  }
};

}  // namespace

struct Regex::State {
  std::unique_ptr<pcre2_code, Freed<pcre2_code_free>> code;
};

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

Regex::Regex(const std::string& pattern, const std::string& where)
    : state_(std::make_unique<State>()) {
  constexpr size_t kLongest = 64 * 1024;
  const std::string rewritten = with_white_space(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  if (pattern.size() <= kLongest) {
    state_->code.reset(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
  }
  if (state_->code == nullptr) {
    PCRE2_UCHAR text[256] = "longer than 64 KiB";
    if (error != 0) pcre2_get_error_message(error, text, sizeof(text));
    throw Error(ExitCode::kModelRefused,
                fmt::format("{}: pattern {} does not compile: {}", where, printable(pattern),
                            reinterpret_cast<const char*>(text)));
  }
  pcre2_jit_compile(state_->code.get(), PCRE2_JIT_COMPLETE);
}

Regex Regex::literal(const std::string& text, const std::string& where) {
  std::string pattern;
  for (const char c : text) {
    // Every ASCII sign may be escaped; letters, digits and bytes of longer characters stand for
    // themselves.
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = byte >= 0x80 || byte < 0x21 || std::isalnum(byte) != 0;
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return Regex(pattern, where);
}

Expected<std::vector<Span>> Regex::find_all(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>> data(
      pcre2_match_data_create_from_pattern(state_->code.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>> context(
      pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_jit_stack, Freed<pcre2_jit_stack_free>> stack(
      pcre2_jit_stack_create(kJitStackStart, kJitStackMost, nullptr));
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_depth_limit(context.get(), kDepthLimit);
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());

  std::vector<Span> spans;
  for (size_t at = 0; at <= text.size();) {
    const int status = pcre2_match(state_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                   text.size(), at, PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (status == PCRE2_ERROR_NOMATCH) break;
    if (status < 0) {
      PCRE2_UCHAR message[128];
      pcre2_get_error_message(status, message, sizeof(message));
      return tl::make_unexpected(
          RowError{"tokenizer_error",
                   fmt::format("the tokenizer's pattern gave up at byte {}: {}", at,
                               reinterpret_cast<const char*>(message)),
                   ""});
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    if (ends[1] > ends[0]) {
      spans.push_back({ends[0], ends[1]});
      at = ends[1];
    } else {
      at = ends[1] + 1;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
    }
  }
  return spans;
}

Regex pattern_of(const Field& field) {
  if (field.has("Regex")) return Regex(field.at("Regex").text(), field.where());
  if (field.has("String")) return Regex::literal(field.at("String").text(), field.where());
  field.refuse("must be {\"Regex\": …} or {\"String\": …}");
}

}  // namespace mpinfer::text
