#include "lib/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <mutex>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/text/unicode_classes.h"

namespace mpinfer::text {
namespace {

constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr size_t kJitStackStart = 32 * 1024;
constexpr size_t kJitStackMost = 8 * 1024 * 1024;

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* p) const {
    Free(p);
  }
};

// What one thread needs to match.
struct Machine {
  std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>> data;
  std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>> context;
  std::unique_ptr<pcre2_jit_stack, Freed<pcre2_jit_stack_free>> stack;

  explicit Machine(const pcre2_code* code)
      : data(pcre2_match_data_create_from_pattern(code, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(kJitStackStart, kJitStackMost, nullptr)) {
    if (data == nullptr || context == nullptr || stack == nullptr)
      throw Error(ExitCode::kOutOfResource, "no memory for a regular expression");
    pcre2_set_match_limit(context.get(), kMatchLimit);
    pcre2_set_depth_limit(context.get(), kDepthLimit);
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }
};

RowError gave_up(int status, size_t at) {
  PCRE2_UCHAR message[128];
  pcre2_get_error_message(status, message, sizeof(message));
  return {"tokenizer_error",
          fmt::format("the tokenizer's pattern gave up at byte {}: {}", at,
                      reinterpret_cast<const char*>(message)),
          ""};
}

}  // namespace

struct Regex::State {
  std::unique_ptr<pcre2_code, Freed<pcre2_code_free>> code;
  std::mutex lock;
  std::vector<std::unique_ptr<Machine>> idle;

  std::unique_ptr<Machine> take() {
    const std::lock_guard guard(lock);
    if (idle.empty()) return std::make_unique<Machine>(code.get());
    auto machine = std::move(idle.back());
    idle.pop_back();
    return machine;
  }
  void give_back(std::unique_ptr<Machine> machine) {
    const std::lock_guard guard(lock);
    idle.push_back(std::move(machine));
  }
};

Regex::Regex() = default;
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

Regex::Regex(const std::string& pattern, const std::string& where, bool use_matchers)
    : matcher_(use_matchers ? matcher_of(pattern) : nullptr) {
  if (matcher_ != nullptr) return;
  state_ = std::make_unique<State>();
  constexpr size_t kLongest = 64 * 1024;
  int error = 0;
  PCRE2_SIZE offset = 0;
  if (pattern.size() <= kLongest) {
    const std::string rewritten = pattern_for_pcre2(pattern);
    state_->code.reset(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr));
  }
  if (state_->code == nullptr) {
    PCRE2_UCHAR text[256] = "longer than 64 KiB";
    if (error != 0) pcre2_get_error_message(error, text, sizeof(text));
    throw Error(ExitCode::kModelRefused, fmt::format("{}: pattern {} does not compile: {}", where,
                                                     printable(pattern.substr(0, 200)),
                                                     reinterpret_cast<const char*>(text)));
  }
  pcre2_jit_compile(state_->code.get(), PCRE2_JIT_COMPLETE);
}

Regex Regex::literal(const std::string& text) {
  Regex regex;
  regex.is_literal_ = true;
  regex.literal_ = text;
  return regex;
}

Expected<void> Regex::find_all(std::vector<Span>& spans, std::string_view text) const {
  spans.clear();
  if (is_literal_) {
    find_literals(spans, text);
    return {};
  }
  if (matcher_ == nullptr) return find_by_pcre2(spans, text);
  for (size_t at = 0; at < text.size();) {
    const size_t end = matcher_(text, at);
    if (end == 0) {
      at += utf8_length(text[at]);
    } else {
      spans.push_back({at, end});
      at = end;
    }
  }
  return {};
}

void Regex::find_literals(std::vector<Span>& spans, std::string_view text) const {
  if (literal_.empty()) return;
  for (size_t at = text.find(literal_); at != std::string_view::npos;
       at = text.find(literal_, at + literal_.size())) {
    spans.push_back({at, at + literal_.size()});
  }
}

Expected<void> Regex::find_by_pcre2(std::vector<Span>& spans, std::string_view text) const {
  auto machine = state_->take();
  int status = 0;
  size_t at = 0;
  while (at <= text.size()) {
    status = pcre2_match(state_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                         at, PCRE2_NO_UTF_CHECK, machine->data.get(), machine->context.get());
    if (status < 0) break;
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(machine->data.get());
    if (ends[1] > ends[0] && ends[1] > at) {
      spans.push_back({ends[0], ends[1]});
      at = ends[1];
    } else {
      at = std::max<size_t>(at, ends[1]) + 1;
      while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
    }
  }
  state_->give_back(std::move(machine));
  if (status < 0 && status != PCRE2_ERROR_NOMATCH) return tl::make_unexpected(gave_up(status, at));
  return {};
}

Regex pattern_of(const Field& field) {
  if (field.has("Regex")) return Regex(field.at("Regex").text(), field.where());
  if (field.has("String")) return Regex::literal(field.at("String").text());
  field.refuse("must be {\"Regex\": …} or {\"String\": …}");
}

}  // namespace mpinfer::text
