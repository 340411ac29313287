#include "lib/text/added_tokens.h"

#include <algorithm>

#include "lib/core/error.h"
#include "lib/text/utf8.h"

namespace mpinfer::text {

AddedTokens::AddedTokens(const Field& field, const Normalizer& normalizer) {
  constexpr size_t kMost = 1 << 20;
  if (field.size() > kMost) field.refuse(fmt::format("more than {} added tokens", kMost));
  for (size_t i = 0; i < field.size(); ++i) {
    const Field entry = field.item(i);
    AddedToken token;
    token.id = static_cast<int32_t>(entry.at("id").integer(0, INT32_MAX - 1));
    token.content = entry.at("content").text();
    token.special = entry.flag("special", false);
    token.lstrip = entry.flag("lstrip", false);
    token.rstrip = entry.flag("rstrip", false);
    token.single_word = entry.flag("single_word", false);
    token.normalized = entry.flag("normalized", !token.special);
    if (token.content.empty()) continue;
    const auto index = static_cast<int32_t>(tokens_.size());
    token.name = token.content;
    if (token.normalized) {
      if (!normalizer.apply(token.name)) entry.refuse("content cannot be normalised");
      normalized_.insert(token.name, index);
    } else {
      raw_.insert(token.content, index);
    }
    tokens_.push_back(std::move(token));
  }
}

void AddedTokens::Trie::insert(std::string_view text, int32_t token) {
  if (text.empty()) return;
  starts[static_cast<unsigned char>(text[0])] = true;
  size_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    auto& next = nodes[node].next;
    const auto found = std::find_if(next.begin(), next.end(),
                                    [byte](const auto& edge) { return edge.first == byte; });
    if (found != next.end()) {
      node = static_cast<size_t>(found->second);
    } else {
      next.emplace_back(byte, static_cast<int32_t>(nodes.size()));
      node = nodes.size();
      nodes.emplace_back();
    }
  }
  nodes[node].token = token;
}

int32_t AddedTokens::Trie::longest(std::string_view text, size_t at, size_t* end) const {
  int32_t best = -1;
  size_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto& next = nodes[node].next;
    const auto found = std::find_if(next.begin(), next.end(),
                                    [byte](const auto& edge) { return edge.first == byte; });
    if (found == next.end()) break;
    node = static_cast<size_t>(found->second);
    if (nodes[node].token >= 0) {
      best = nodes[node].token;
      *end = i + 1;
    }
  }
  return best;
}

std::vector<Section> AddedTokens::split(std::string_view text, const Trie& trie) const {
  if (trie.nodes.size() == 1) {
    if (text.empty()) return {};
    return {{-1, {0, text.size()}}};
  }
  std::vector<Section> sections;
  size_t taken = 0;  // everything before is in sections
  for (size_t at = 0; at < text.size();) {
    size_t end = 0;
    const int32_t index =
        trie.starts[static_cast<unsigned char>(text[at])] ? trie.longest(text, at, &end) : -1;
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    const size_t next = end;
    size_t begin = at;
    at = next;
    if (begin < taken) continue;
    if (token.single_word) {
      const bool word_before =
          begin > 0 && is_word(code_point_at(text, last_code_point(text.substr(0, begin))));
      const bool word_after = end < text.size() && is_word(code_point_at(text, end));
      if (word_before || word_after) continue;
    }
    while (token.lstrip && begin > taken) {
      const size_t last = last_code_point(text.substr(0, begin));
      if (!is_white_space(code_point_at(text, last))) break;
      begin = std::max(last, taken);
    }
    while (token.rstrip && end < text.size() && is_white_space(code_point_at(text, end)))
      end += utf8_length(text[end]);
    if (begin > taken) sections.push_back({-1, {taken, begin}});
    sections.push_back({token.id, {begin, end}});
    taken = end;
  }
  if (taken < text.size()) sections.push_back({-1, {taken, text.size()}});
  return sections;
}

}  // namespace mpinfer::text
