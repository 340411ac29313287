#include "tests/fuzz/model/mutate.h"

#include <array>
#include <string_view>
#include <utility>

namespace mpinfer::model::test {
namespace {

constexpr std::array<std::string_view, 32> kWords = {"0",
                                                     "-1",
                                                     "1e999",
                                                     "18446744073709551615",
                                                     "9223372036854775807",
                                                     "4294967296",
                                                     "2147483648",
                                                     "0.5",
                                                     "null",
                                                     "true",
                                                     "[]",
                                                     "{}",
                                                     "\"\"",
                                                     "[[[[",
                                                     "}}}}",
                                                     "\"../x\"",
                                                     "\"/etc/passwd\"",
                                                     "\"F64\"",
                                                     "\xff",
                                                     "\"",
                                                     ",",
                                                     ":",
                                                     "1e-300",
                                                     "NaN",
                                                     "64",
                                                     "1",
                                                     "\\u0000",
                                                     "\"yarn\"",
                                                     "\"llama3\"",
                                                     "{\"type\":\"linear\"}",
                                                     "999999999999999999999999",
                                                     "-0"};

size_t below(size_t limit, std::mt19937_64& random) {
  return static_cast<size_t>(random() % (limit + 1));
}

// [begin, end) of a run of value characters around at: a number or a word.
std::pair<size_t, size_t> token_around(const std::string& text, size_t at) {
  constexpr std::string_view kStops = ",:[]{} \n\t";
  size_t begin = at;
  size_t end = at;
  while (begin > 0 && kStops.find(text[begin - 1]) == std::string_view::npos) --begin;
  while (end < text.size() && kStops.find(text[end]) == std::string_view::npos) ++end;
  return {begin, end};
}

void mutate_once(std::string& text, std::mt19937_64& random) {
  const size_t at = below(text.size(), random);
  const size_t length = below(std::min<size_t>(64, text.size() - at), random);
  const std::string word(kWords[random() % kWords.size()]);
  switch (random() % 7) {
    case 0:
      if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << random() % 8));
      break;
    case 1:
      text.erase(at, length);
      break;
    case 2:
      text.insert(at, text.substr(at, length));
      break;
    case 3:
      text.insert(at, word);
      break;
    case 4: {  // another value
      const auto [begin, end] = token_around(text, at);
      text.replace(begin, end - begin, word);
      break;
    }
    case 5: {  // a value from elsewhere
      const auto [begin, end] = token_around(text, at);
      const auto [from, to] = token_around(text, below(text.size(), random));
      text.replace(begin, end - begin, text.substr(from, to - from));
      break;
    }
    default:
      text.insert(at, std::string(1 + random() % 300, word.empty() ? '[' : word.front()));
  }
}

}  // namespace

std::string mutate(const std::string& seed, std::mt19937_64& random) {
  std::string text = seed;
  for (uint64_t left = 1 + random() % 4; left > 0; --left) mutate_once(text, random);
  return text;
}

}  // namespace mpinfer::model::test
