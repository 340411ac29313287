#include "lib/text/pretokenize.h"

#include <fmt/core.h>

#include "lib/core/log.h"

namespace mpinfer::text {
namespace {

constexpr int kDeepest = 16;
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// \w+|[^\w\s]+ with \w as Rust's regex has it.
#define WORD                                                            \
  R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149})" \
  R"(\x{1f150}-\x{1f169}\x{1f170}-\x{1f189}\x{200c}\x{200d})"
constexpr const char* kWordPattern = "[" WORD "]+|[^" WORD R"(\s]+)";
#undef WORD

enum class Behavior : uint8_t {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous
};

Behavior behavior_of(const Field& field, const std::string& otherwise) {
  const std::string name = field.text("behavior", otherwise);
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  field.refuse(fmt::format("behavior {} is not known", printable(name)));
}

// Joins matches and the gaps between them into pieces, one run after the other, as Hugging Face's
// SplitDelimiterBehavior.
class Joiner {
 public:
  Joiner(std::vector<Span>& out, Behavior behavior, bool invert)
      : out_(out), first_(out.size()), behavior_(behavior), invert_(invert) {}

  void add(Span span, bool found) {
    const bool match = found != invert_;
    const bool any = out_.size() > first_;
    bool extend = false;
    switch (behavior_) {
      case Behavior::kRemoved:
        if (match) return;
        break;
      case Behavior::kIsolated:
        break;
      case Behavior::kContiguous:
        extend = any && match == previous_match_;
        break;
      case Behavior::kMergedWithPrevious:
        extend = match && any && !previous_match_;
        break;
      case Behavior::kMergedWithNext:  // unless the next is a match too
        extend = !match && any && previous_match_;
        break;
    }
    extend ? void(out_.back().end = span.end) : out_.push_back(span);
    previous_match_ = match;
  }

 private:
  std::vector<Span>& out_;
  size_t first_;
  Behavior behavior_;
  bool invert_;
  bool previous_match_ = false;
};

class Split : public PreTokenizer {
 public:
  Split(Regex pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  Expected<void> apply(Pieces& pieces) const override {
    pieces.next.clear();
    for (const Span& piece : pieces.spans) {
      const auto text = pieces.text.substr(piece.begin, piece.end - piece.begin);
      if (auto done = pattern_.find_all(pieces.found, text); !done) return done;
      Joiner joiner(pieces.next, behavior_, invert_);
      size_t at = 0;
      for (const Span& match : pieces.found) {
        if (match.begin > at) joiner.add({piece.begin + at, piece.begin + match.begin}, false);
        joiner.add({piece.begin + match.begin, piece.begin + match.end}, true);
        at = match.end;
      }
      if (at < text.size()) joiner.add({piece.begin + at, piece.end}, false);
    }
    std::swap(pieces.spans, pieces.next);
    return {};
  }

 private:
  Regex pattern_;
  Behavior behavior_;
  bool invert_;
};

// Rewrites every piece: append(out, piece, first) appends its new text.
template <class Append>
void rewrite(Pieces& pieces, Append append) {
  pieces.rewritten.clear();
  pieces.next.clear();
  for (const Span& span : pieces.spans) {
    const size_t begin = pieces.rewritten.size();
    append(pieces.rewritten, pieces.text.substr(span.begin, span.end - span.begin),
           pieces.at_start && span.begin == 0);
    pieces.next.push_back({begin, pieces.rewritten.size()});
  }
  pieces.at_start = pieces.at_start && !pieces.spans.empty() && pieces.spans[0].begin == 0;
  std::swap(pieces.changed, pieces.rewritten);
  pieces.text = pieces.changed;
  std::swap(pieces.spans, pieces.next);
}

class ByteLevel : public PreTokenizer {
 public:
  explicit ByteLevel(const Field& field)
      : add_prefix_space_(field.flag("add_prefix_space", true)),
        split_(field.flag("use_regex", true)
                   ? std::make_unique<Split>(Regex(kGpt2Pattern, field.where()),
                                             Behavior::kIsolated, false)
                   : nullptr) {}
  Expected<void> apply(Pieces& pieces) const override {
    if (add_prefix_space_) {
      rewrite(pieces, [](std::string& out, std::string_view piece, bool) {
        if (piece[0] != ' ') out += ' ';
        out += piece;
      });
    }
    return split_ != nullptr ? split_->apply(pieces) : Expected<void>();
  }
  bool byte_level() const override { return true; }

 private:
  bool add_prefix_space_;
  std::unique_ptr<Split> split_;
};

class Metaspace : public PreTokenizer {
 public:
  explicit Metaspace(const Field& field) : replacement_(field.text("replacement", "\xE2\x96\x81")) {
    if (replacement_.empty()) field.refuse("replacement must not be empty");
    scheme_ =
        field.text("prepend_scheme", field.flag("add_prefix_space", true) ? "always" : "never");
    if (scheme_ != "always" && scheme_ != "first" && scheme_ != "never") {
      field.refuse(fmt::format("prepend_scheme {} is not known", printable(scheme_)));
    }
    if (field.flag("split", true)) {
      split_ =
          std::make_unique<Split>(Regex::literal(replacement_), Behavior::kMergedWithNext, false);
    }
  }
  Expected<void> apply(Pieces& pieces) const override {
    rewrite(pieces, [this](std::string& out, std::string_view piece, bool at_start) {
      const bool prepend = scheme_ == "always" || (scheme_ == "first" && at_start);
      if (prepend && piece[0] != ' ' && !piece.starts_with(replacement_)) out += replacement_;
      for (const char c : piece) c == ' ' ? out += replacement_ : out += c;
    });
    return split_ != nullptr ? split_->apply(pieces) : Expected<void>();
  }

 private:
  std::string replacement_;
  std::string scheme_;
  std::unique_ptr<Split> split_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}
  Expected<void> apply(Pieces& pieces) const override {
    for (const auto& step : steps_) {
      if (auto done = step->apply(pieces); !done) return done;
    }
    return {};
  }
  bool byte_level() const override { return !steps_.empty() && steps_.back()->byte_level(); }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

std::unique_ptr<PreTokenizer> make(const Field& field, int depth);

std::unique_ptr<PreTokenizer> make_sequence(const Field& field, int depth) {
  const Field list = field.at("pretokenizers");
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  for (size_t i = 0; i < list.size(); ++i) {
    if (!steps.empty() && steps.back()->byte_level())
      list.refuse("ByteLevel must be the last step");
    steps.push_back(make(list.item(i), depth + 1));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

std::unique_ptr<PreTokenizer> make(const Field& field, int depth) {
  if (field.is_null())
    return std::make_unique<Sequence>(std::vector<std::unique_ptr<PreTokenizer>>());
  if (depth > kDeepest) field.refuse("nested too deep");
  const std::string type = field.at("type").text();
  const auto split = [&](const char* pattern, Behavior behavior, bool invert) {
    return std::make_unique<Split>(Regex(pattern, field.where()), behavior, invert);
  };
  if (type == "Sequence") return make_sequence(field, depth);
  if (type == "ByteLevel") return std::make_unique<ByteLevel>(field);
  if (type == "Metaspace") return std::make_unique<Metaspace>(field);
  if (type == "Split") {
    return std::make_unique<Split>(pattern_of(field.at("pattern")), behavior_of(field, "Isolated"),
                                   field.flag("invert", false));
  }
  if (type == "Digits") {
    return split(
        R"(\p{N})",
        field.flag("individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous,
        false);
  }
  if (type == "Punctuation")
    return split(R"([!-/:-@\[-`{-~\p{P}])", behavior_of(field, "Isolated"), false);
  if (type == "Whitespace") return split(kWordPattern, Behavior::kRemoved, true);
  if (type == "WhitespaceSplit") return split(R"(\s)", Behavior::kRemoved, false);
  field.refuse(fmt::format(
      "pre-tokenizer type {} is not known; known: Sequence, Split, ByteLevel, Digits, Metaspace, "
      "Punctuation, Whitespace, WhitespaceSplit",
      printable(type)));
}

}  // namespace

void Pieces::reset(std::string_view text_in, bool at_start_in) {
  text = text_in;
  at_start = at_start_in;
  spans.clear();
  if (!text.empty()) spans.push_back({0, text.size()});
}

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Field& field) {
  return make(field, 0);
}

}  // namespace mpinfer::text
