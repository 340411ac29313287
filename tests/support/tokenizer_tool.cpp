// tokenizer_tool DIR: JSON strings in, one a line; for each a line {"ids": [...], "special": [...],
// "text": ..., "shown": ..., "streamed": bool} out: ids without and with special tokens, text
// decoded with and without special tokens, and whether the streaming detokenizer gave the same.
// tokenizer_tool --time DIR FILE: MB/s of encoding FILE's lines in one thread.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "lib/text/tokenizer.h"

namespace {

using mpinfer::text::Detokenizer;
using mpinfer::text::Tokenizer;

std::string streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                     bool skip_special_tokens) {
  Detokenizer detokenizer(tokenizer, skip_special_tokens);
  std::string out;
  for (const int32_t id : ids) out += detokenizer.push(id);
  return out + detokenizer.finish();
}

int time_file(const char* directory, const char* path) {
  const auto tokenizer = Tokenizer::load(directory);
  std::ifstream file(path);
  std::vector<std::string> lines;
  size_t bytes = 0;
  for (std::string line; std::getline(file, line);) {
    bytes += line.size();
    lines.push_back(std::move(line));
  }
  size_t tokens = 0;
  const auto start = std::chrono::steady_clock::now();
  for (const auto& line : lines) tokens += tokenizer->encode(line, false).value().size();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%.1f MB/s (%zu bytes, %zu tokens, %.3f s)\n",
              static_cast<double>(bytes) / 1e6 / seconds, bytes, tokens, seconds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4) return time_file(argv[2], argv[3]);
  if (argc != 2) return 2;
  const auto tokenizer = Tokenizer::load(argv[1]);
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = nlohmann::json::parse(line).get<std::string>();
    const auto ids = tokenizer->encode(text, false);
    const auto special = tokenizer->encode(text, true);
    nlohmann::json out;
    if (!ids || !special) {
      out["error"] = (ids ? special.error() : ids.error()).message;
    } else {
      out["ids"] = *ids;
      out["special"] = *special;
      out["text"] = tokenizer->decode(*special, false);
      out["shown"] = tokenizer->decode(*special, true);
      out["streamed"] = streamed(*tokenizer, *special, false) == out["text"] &&
                        streamed(*tokenizer, *special, true) == out["shown"];
    }
    std::cout << out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  }
  return 0;
}
