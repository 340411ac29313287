// Texts for tests that try all of them.
#pragma once

#include <cstddef>
#include <string>

namespace mpinfer::text::grammar::test {

// Every text of at most `longest` of these characters that begins with `text`.
template <class Visit>
void for_every_text(const std::string& alphabet, size_t longest, const Visit& visit,
                    const std::string& text = "") {
  visit(text);
  if (text.size() == longest) return;
  for (const char c : alphabet) for_every_text(alphabet, longest, visit, text + c);
}

}  // namespace mpinfer::text::grammar::test
