#include "lib/text/grammar/grammars.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/text/grammar/json_grammar.h"
#include "lib/text/grammar/pattern.h"

namespace mpinfer::text::grammar {
namespace {

constexpr int64_t kGrammarBytes = 64 << 20;  // of automata that are kept for the next row
constexpr int64_t kMaskBytes = 128 << 20;
constexpr size_t kMaxChoices = 1024;
constexpr size_t kMaxChoiceBytes = 64 << 10;

Expected<ExprPtr> read_choices(const std::string& list, const std::string& param) {
  const auto refuse = [&](const std::string& what) {
    return tl::unexpected(RowError{"invalid_param", fmt::format("{} {}", param, what), param});
  };
  if (list.size() > kMaxChoiceBytes)
    return refuse(fmt::format("has {} bytes; the limit is {}", list.size(), kMaxChoiceBytes));
  const auto json = nlohmann::json::parse(list, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array() || json.empty() || json.size() > kMaxChoices)
    return refuse(fmt::format("must be a list of 1 to {} strings", kMaxChoices));
  std::vector<ExprPtr> parts;
  for (const auto& choice : json) {
    if (!choice.is_string() || choice.get_ref<const std::string&>().empty())
      return refuse("must hold strings that are not empty");
    parts.push_back(grammar::text(choice.get_ref<const std::string&>()));
  }
  return choice(std::move(parts));
}

Expected<ExprPtr> read(const GrammarSpec& spec, const std::string& param) {
  switch (spec.kind) {
    case GrammarSpec::Kind::kJsonObject:
      return json_object(kObjectDepth);
    case GrammarSpec::Kind::kJsonSchema:
      return read_schema(spec.text, param);
    case GrammarSpec::Kind::kRegex:
      return read_pattern(spec.text, param);
    case GrammarSpec::Kind::kChoice:
      return read_choices(spec.text, param);
    case GrammarSpec::Kind::kNone:
      break;
  }
  MPINFER_CHECK(false, "a row without a grammar");
  return json_object(0);
}

template <class Recent, class Key>
auto* find(Recent& recent, const Key& key) {
  const auto found = recent.by_key.find(key);
  if (found == recent.by_key.end()) return static_cast<decltype(&found->second->second)>(nullptr);
  recent.entries.splice(recent.entries.begin(), recent.entries, found->second);
  return &found->second->second;
}

template <class Recent, class Key, class Value, class BytesOf>
void keep(Recent& recent, const Key& key, const Value& value, int64_t limit,
          const BytesOf& bytes_of) {
  recent.entries.emplace_front(key, value);
  recent.by_key[key] = recent.entries.begin();
  recent.bytes += bytes_of(value);
  while (recent.bytes > limit && recent.entries.size() > 1) {
    recent.bytes -= bytes_of(recent.entries.back().second);
    recent.by_key.erase(recent.entries.back().first);
    recent.entries.pop_back();
  }
}

}  // namespace

Expected<Automaton> compile(const GrammarSpec& spec, const std::string& param) {
  const Expected<ExprPtr> expr = read(spec, param);
  if (!expr) return tl::unexpected(expr.error());
  return Automaton::compile(**expr, param);
}

class Grammars::Matcher : public TokenMatcher {
 public:
  Matcher(Grammars& owner, CompiledPtr grammar)
      : owner_(owner), grammar_(std::move(grammar)), state_(grammar_->automaton.start()) {}

  void advance(int32_t token_id) override {
    if (ended()) return;
    const Vocabulary& vocabulary =
        first_ && owner_.first_ != nullptr ? *owner_.first_ : *owner_.behind_;
    first_ = false;
    const bool has_text =
        token_id >= 0 && token_id < vocabulary.size() && !vocabulary.bytes_of(token_id).empty();
    if (!has_text) state_ = Automaton::kDead;
    for (size_t i = 0; !ended() && i < vocabulary.bytes_of(token_id).size(); ++i) {
      const auto byte = static_cast<uint8_t>(vocabulary.bytes_of(token_id)[i]);
      state_ = grammar_->automaton.step(state_, byte);
    }
  }

  Mask allowed() override {
    return ended() ? owner_.end_only_ : owner_.mask(*grammar_, state_, first_);
  }

 private:
  bool ended() const { return state_ == Automaton::kDead; }

  Grammars& owner_;
  CompiledPtr grammar_;
  Automaton::State state_;
  bool first_ = true;
};

Grammars::Grammars(const Tokenizer& tokenizer, int64_t vocab_size,
                   std::vector<int32_t> eos_token_ids)
    : tokenizer_(tokenizer),
      vocab_size_(vocab_size),
      eos_token_ids_(std::move(eos_token_ids)),
      end_only_(make_mask(nullptr, Automaton::kDead, false)) {}

Expected<void> Grammars::check(const GrammarSpec& spec, const std::string& param) {
  if (eos_token_ids_.empty()) {
    return tl::unexpected(RowError{
        "unsupported",
        fmt::format("{}: the model names no eos_token_id, so no value could end", param), param});
  }
  const auto found = compiled(spec, param);
  if (!found) return tl::unexpected(found.error());
  return {};
}

Expected<Grammars::CompiledPtr> Grammars::compiled(const GrammarSpec& spec,
                                                   const std::string& param) {
  const std::string key = fmt::format("{} {}", static_cast<int>(spec.kind), spec.text);
  {
    const std::lock_guard guard(lock_);
    if (const CompiledPtr* found = find(grammars_, key)) return *found;
  }
  auto automaton = compile(spec, param);
  if (!automaton) return tl::unexpected(std::move(automaton.error()));
  const std::lock_guard guard(lock_);
  if (const CompiledPtr* found = find(grammars_, key)) return *found;
  const auto fresh =
      std::make_shared<const Compiled>(Compiled{++num_compiled_, std::move(*automaton)});
  keep(grammars_, key, fresh, kGrammarBytes, [](const CompiledPtr& kept) {
    return kept->automaton.bytes() + 4096;  // and what its key and list cost, about
  });
  return fresh;
}

void Grammars::read_vocabulary() {
  std::call_once(vocabulary_read_, [this] {
    const auto count = static_cast<size_t>(std::min<int64_t>(tokenizer_.vocab_size(), vocab_size_));
    std::vector<std::string> behind(count);
    std::vector<std::string> first(count);
    for (size_t id = 0; id < count; ++id) {
      const auto token = static_cast<int32_t>(id);
      const bool ends =
          std::find(eos_token_ids_.begin(), eos_token_ids_.end(), token) != eos_token_ids_.end();
      if (ends || tokenizer_.is_special(token)) continue;
      behind[id] = tokenizer_.bytes_of(token, /*first=*/false);
      first[id] = tokenizer_.bytes_of(token, /*first=*/true);
    }
    if (first != behind) first_ = std::make_unique<Vocabulary>(std::move(first));
    behind_ = std::make_unique<Vocabulary>(std::move(behind));
  });
}

std::unique_ptr<TokenMatcher> Grammars::start(const GrammarSpec& spec) {
  read_vocabulary();
  auto grammar = compiled(spec, "grammar");
  MPINFER_CHECK(grammar.has_value(), "a grammar that was checked does not compile: {}",
                grammar.error().message);
  return std::make_unique<Matcher>(*this, std::move(*grammar));
}

Grammars::Mask Grammars::mask(const Compiled& grammar, Automaton::State state, bool first) {
  const uint64_t key = grammar.number << 17 | uint64_t{state} << 1 | (first ? 1U : 0U);
  {
    const std::lock_guard guard(lock_);
    if (const Mask* found = find(masks_, key)) return *found;
  }
  const Mask made = make_mask(&grammar.automaton, state, first);
  const std::lock_guard guard(lock_);
  if (const Mask* found = find(masks_, key)) return *found;
  keep(masks_, key, made, kMaskBytes, [](const Mask& kept) {
    return static_cast<int64_t>(kept->size() * sizeof(uint32_t)) + 128;
  });
  return made;
}

Grammars::Mask Grammars::make_mask(const Automaton* automaton, Automaton::State state,
                                   bool first) const {
  std::vector<uint32_t> bits(static_cast<size_t>((vocab_size_ + 31) / 32), 0);
  if (automaton != nullptr)
    (first && first_ != nullptr ? *first_ : *behind_).allow(bits, *automaton, state);
  const bool nothing =
      std::all_of(bits.begin(), bits.end(), [](uint32_t word) { return word == 0; });
  if (nothing || automaton->may_end(state)) {
    for (const int32_t id : eos_token_ids_) {
      if (id >= 0 && id < vocab_size_) bits[static_cast<size_t>(id / 32)] |= 1U << (id % 32);
    }
  }
  return std::make_shared<const std::vector<uint32_t>>(std::move(bits));
}

}  // namespace mpinfer::text::grammar
