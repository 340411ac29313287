// Mutated tokenizer.json files: each is read or refused with exit 5, and what is read encodes and
// decodes any text without a crash, the streamed text equal to the whole. Random bytes as text:
// ids that decode to the text, or invalid_utf8. MPINFER_FUZZ_ROUNDS asks for more rounds.
#include <cstdlib>
#include <random>

#include "lib/core/error.h"
#include "lib/text/utf8.h"
#include "tests/support/catch.h"
#include "tests/unit/text/tokenizer_folder.h"

namespace mpinfer::text::test {
namespace {

using Random = std::mt19937_64;

int rounds(int by_default) {
  const char* asked = std::getenv("MPINFER_FUZZ_ROUNDS");
  return asked == nullptr ? by_default : std::atoi(asked);
}

size_t below(size_t limit, Random& random) {
  return static_cast<size_t>(random() % limit);
}

const std::vector<std::string>& words() {
  static const std::vector<std::string> list = {"0",
                                                "-1",
                                                "1e999",
                                                "18446744073709551615",
                                                "2147483648",
                                                "null",
                                                "true",
                                                "false",
                                                "[]",
                                                "{}",
                                                "\"\"",
                                                "[[[[",
                                                "}}}}",
                                                "\xFF",
                                                "\"",
                                                ",",
                                                ":",
                                                "\"Sequence\"",
                                                "\"ByteLevel\"",
                                                "\"Split\"",
                                                "\"Metaspace\"",
                                                "\"Digits\"",
                                                "\"Replace\"",
                                                "\"Strip\"",
                                                "\"Fuse\"",
                                                "\"NFC\"",
                                                "\"Removed\"",
                                                "\"MergedWithNext\"",
                                                "\"first\"",
                                                "{\"Regex\":\"(a|b)*c\"}",
                                                "{\"Regex\":\"\\\\s*\"}",
                                                "{\"Regex\":\"(?=x)\"}",
                                                "{\"String\":\"\"}",
                                                "{\"String\":\"e\"}",
                                                "\"\\u0000\"",
                                                "\"\xE2\x96\x81\"",
                                                "\"<unk>\"",
                                                "\"byte_fallback\":true",
                                                "\"ignore_merges\":true",
                                                "\"unk_token\":\"a\"",
                                                "\"prepend_scheme\":\"always\"",
                                                "\"use_regex\":true",
                                                "\"add_prefix_space\":true"};
  return list;
}

void mutate(std::string& bytes, Random& random) {
  // Most of a file is vocabulary; half of the changes go to the parts around it.
  const size_t vocabulary = std::min(bytes.find("\"vocab\""), bytes.size());
  for (size_t n = 1 + below(4, random); n > 0; --n) {
    const size_t range = below(2, random) == 0 ? std::max<size_t>(vocabulary, 1) : bytes.size();
    const size_t at = below(std::min(range, bytes.size()) + 1, random);
    const size_t length = std::min(below(12, random), bytes.size() - at);
    switch (below(6, random)) {
      case 0:
        bytes.erase(at, length);
        break;
      case 1:
        bytes.insert(at, words()[below(words().size(), random)]);
        break;
      case 2: {  // one value for another
        const size_t begin = bytes.find(':', at);
        if (begin == std::string::npos) break;
        const size_t end = std::min(bytes.find_first_of(",}]", begin), bytes.size());
        bytes.replace(begin + 1, end - begin - 1, words()[below(words().size(), random)]);
        break;
      }
      case 3:
        if (at < bytes.size()) bytes[at] = static_cast<char>(random() & 0xFF);
        break;
      case 4:
        if (at < bytes.size() && bytes[at] >= '0' && bytes[at] <= '9')
          bytes[at] = static_cast<char>('0' + below(10, random));
        break;
      default:
        bytes.insert(at, bytes.substr(below(bytes.size() + 1, random), length));
    }
    if (bytes.empty()) bytes = "{";
  }
}

// Half valid characters of many scripts, spaces and tokens, half any bytes.
std::string random_text(Random& random) {
  static const std::vector<std::string> parts = {"<tok>", "<s>",  "<|end|>", "word", " ",
                                                 "\n",    "\r\n", "'ll",     "'RE",  "12345",
                                                 "Hello", "▁",    "\t"};
  const bool valid = below(2, random) == 0;
  std::string out;
  for (size_t n = below(40, random); n > 0; --n) {
    const size_t kind = below(valid ? 3 : 4, random);
    if (kind == 0) {
      out += parts[below(parts.size(), random)];
    } else if (kind == 3) {
      out += static_cast<char>(random() & 0xFF);
    } else {
      constexpr uint32_t kTops[] = {0x80, 0x800, 0x3000, 0xD800, 0x110000};
      const auto c = static_cast<uint32_t>(below(kTops[below(5, random)], random));
      if (c < 0xD800 || c > 0xDFFF) append_utf8(out, c);
    }
  }
  return out;
}

void check_streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const bool skip : {false, true}) {
    Detokenizer detokenizer(tokenizer, skip);
    std::string streamed;
    for (const int32_t id : ids) streamed += detokenizer.push(id);
    streamed += detokenizer.finish();
    CHECK(streamed == tokenizer.decode(ids, skip));
  }
}

std::vector<int32_t> random_ids(const Tokenizer& tokenizer, Random& random) {
  std::vector<int32_t> ids;
  for (size_t n = below(30, random); n > 0; --n)
    ids.push_back(
        static_cast<int32_t>(below(static_cast<size_t>(tokenizer.vocab_size()) + 3, random)) - 1);
  return ids;
}

}  // namespace

TEST_CASE("mutated tokenizer.json files are read or refused") {
  Random random(20261123);
  const auto names = small_tokenizers();
  const TokenizerFolder folder;
  int read = 0;
  for (int round = 0; round < rounds(1500); ++round) {
    std::string bytes =
        read_file(small_tokenizer_path(names[below(names.size(), random)]) + "/tokenizer.json");
    mutate(bytes, random);
    INFO("round " << round);
    std::unique_ptr<Tokenizer> tokenizer;
    try {
      tokenizer = folder.load(bytes);
    } catch (const Error& error) {
      CHECK(error.exit_code() == ExitCode::kModelRefused);
      CHECK(std::string(error.what()).find("tokenizer.json") != std::string::npos);
      continue;
    }
    ++read;
    for (int i = 0; i < 4; ++i) {
      const auto ids = tokenizer->encode(random_text(random), i % 2 == 0);
      if (ids) check_streamed(*tokenizer, *ids);
    }
    check_streamed(*tokenizer, random_ids(*tokenizer, random));
  }
  CHECK(read > rounds(1500) / 20);
}

TEST_CASE("random bytes as text and random ids") {
  Random random(7);
  for (const std::string& name : small_tokenizers()) {
    const auto tokenizer = Tokenizer::load(small_tokenizer_path(name));
    const bool lossless = name == "gpt2" || name == "smollm" || name == "llama3" ||
                          name == "o200k" || name == "deepseek";
    for (int round = 0; round < rounds(400); ++round) {
      const std::string text = random_text(random);
      INFO(name << " round " << round);
      const auto ids = tokenizer->encode(text, false);
      CHECK(ids.has_value() == (find_invalid_utf8(text) == std::string_view::npos));
      if (!ids) {
        CHECK(ids.error().code == "invalid_utf8");
        continue;
      }
      check_streamed(*tokenizer, *ids);
      if (lossless && text.find("<|end|>") == std::string::npos)
        CHECK(tokenizer->decode(*ids, false) == text);
      check_streamed(*tokenizer, random_ids(*tokenizer, random));
    }
  }
}

}  // namespace mpinfer::text::test
