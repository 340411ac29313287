#include "lib/text/pretokenize.h"

#include <fmt/core.h>

#include "lib/text/regex.h"
#include "lib/text/utf8.h"

namespace mpinfer::text {
namespace {

constexpr int kDeepest = 16;
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

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
  field.refuse(fmt::format("behavior {} is not known", name));
}

struct Run {
  Span span;
  bool match = false;
};

// The text as matches and what lies between them.
std::vector<Run> runs_of(const std::vector<Span>& matches, size_t size, bool invert) {
  std::vector<Run> runs;
  size_t at = 0;
  for (const Span& match : matches) {
    if (match.begin > at) runs.push_back({{at, match.begin}, invert});
    runs.push_back({match, !invert});
    at = match.end;
  }
  if (at < size) runs.push_back({{at, size}, invert});
  return runs;
}

// Which runs become pieces, as Hugging Face's SplitDelimiterBehavior.
std::vector<Span> join(const std::vector<Run>& runs, Behavior behavior) {
  std::vector<Span> out;
  bool previous_match = false;
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[i];
    switch (behavior) {
      case Behavior::kRemoved:
        if (!run.match) out.push_back(run.span);
        break;
      case Behavior::kIsolated:
        out.push_back(run.span);
        break;
      case Behavior::kContiguous:
        if (!out.empty() && run.match == previous_match) {
          out.back().end = run.span.end;
        } else {
          out.push_back(run.span);
        }
        break;
      case Behavior::kMergedWithPrevious:
        if (run.match && !out.empty() && !previous_match) {
          out.back().end = run.span.end;
        } else {
          out.push_back(run.span);
        }
        break;
      case Behavior::kMergedWithNext:
        // A match takes in the run after it, unless that is a match too.
        if (!run.match && i > 0 && previous_match) {
          out.back().end = run.span.end;
        } else {
          out.push_back(run.span);
        }
        break;
    }
    previous_match = run.match;
  }
  return out;
}

void cut(std::vector<Piece>& out, const Piece& piece, const std::vector<Span>& spans) {
  for (const Span& span : spans) {
    if (span.end == span.begin) continue;
    out.push_back(
        {piece.text.substr(span.begin, span.end - span.begin), piece.at_start && span.begin == 0});
  }
}

class Split : public PreTokenizer {
 public:
  Split(Regex pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  Expected<void> apply(std::vector<Piece>& pieces) const override {
    std::vector<Piece> out;
    for (const Piece& piece : pieces) {
      const auto matches = pattern_.find_all(piece.text);
      if (!matches) return tl::make_unexpected(matches.error());
      cut(out, piece, join(runs_of(*matches, piece.text.size(), invert_), behavior_));
    }
    pieces = std::move(out);
    return {};
  }

 private:
  Regex pattern_;
  Behavior behavior_;
  bool invert_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(const Field& field)
      : add_prefix_space_(field.flag("add_prefix_space", true)),
        split_(field.flag("use_regex", true)
                   ? std::make_unique<Split>(Regex(kGpt2Pattern, field.where()),
                                             Behavior::kIsolated, false)
                   : nullptr) {}
  Expected<void> apply(std::vector<Piece>& pieces) const override {
    if (add_prefix_space_) {
      for (Piece& piece : pieces) {
        if (!piece.text.empty() && piece.text[0] != ' ') piece.text.insert(0, 1, ' ');
      }
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
    scheme_ =
        field.text("prepend_scheme", field.flag("add_prefix_space", true) ? "always" : "never");
    if (scheme_ != "always" && scheme_ != "first" && scheme_ != "never") {
      field.refuse(fmt::format("prepend_scheme {} is not known", scheme_));
    }
    if (field.flag("split", true)) {
      split_ = std::make_unique<Split>(Regex::literal(replacement_, field.where()),
                                       Behavior::kMergedWithNext, false);
    }
  }
  Expected<void> apply(std::vector<Piece>& pieces) const override {
    for (Piece& piece : pieces) {
      std::string out;
      for (const char c : piece.text) c == ' ' ? out += replacement_ : out += c;
      const bool prepend = scheme_ == "always" || (scheme_ == "first" && piece.at_start);
      if (prepend && out.rfind(replacement_, 0) != 0) out.insert(0, replacement_);
      piece.text = std::move(out);
    }
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
  Expected<void> apply(std::vector<Piece>& pieces) const override {
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
  if (type == "Whitespace") return split(R"(\w+|[^\w\s]+)", Behavior::kRemoved, true);
  if (type == "WhitespaceSplit") return split(R"(\s)", Behavior::kRemoved, false);
  field.refuse(fmt::format(
      "pre-tokenizer type {} is not known; known: Sequence, Split, ByteLevel, Digits, Metaspace, "
      "Punctuation, Whitespace, WhitespaceSplit",
      type));
}

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Field& field) {
  return make(field, 0);
}

}  // namespace mpinfer::text
