// bench_grammar DIR [SCHEMA]: what structured rows cost the host, one thread. DIR holds a
// tokenizer.json; SCHEMA is a file, a made-up order without one. Values are drawn at random through
// the masks: first with none kept (every state seen for the first time), then again over kept ones.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>

#include "lib/text/grammar/grammars.h"

namespace {

using namespace mpinfer;
using Clock = std::chrono::steady_clock;

constexpr const char* kOrder = R"({"type": "object", "additionalProperties": false,
  "required": ["id", "customer", "lines", "note"], "properties": {
    "id": {"type": "string", "format": "uuid"},
    "customer": {"type": "object", "required": ["name", "born"], "properties": {
      "name": {"type": "string", "minLength": 1, "maxLength": 80},
      "born": {"type": "string", "format": "date"}, "vip": {"type": "boolean"}}},
    "lines": {"type": "array", "minItems": 1, "maxItems": 8, "items": {"type": "object",
      "required": ["article", "count", "price"], "properties": {
        "article": {"enum": ["tea", "coffee", "cocoa", "sugar"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 500},
        "price": {"type": "number", "minimum": 0}}}},
    "rating": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "maximum": 5}]},
    "note": {"type": "string", "maxLength": 300}}})";
constexpr int kValues = 64;
constexpr int kMostTokens = 400;

double microseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::micro>(Clock::now() - since).count();
}

void print(const char* what, std::vector<double> times) {
  std::sort(times.begin(), times.end());
  double sum = 0.0;
  for (const double time : times) sum += time;
  const auto at = [&](double share) {
    return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
  };
  fmt::print("{:28} {:8} steps: mean {:8.2f} us, median {:8.2f}, 99 % {:8.2f}, most {:8.2f}\n",
             what, times.size(), sum / static_cast<double>(times.size()), at(0.5), at(0.99),
             times.back());
}

// The times of every step's mask, and of its advance.
void draw(text::grammar::Grammars& grammars, const GrammarSpec& spec, std::vector<double>& masks,
          std::vector<double>& advances) {
  uint32_t seed = 1;
  for (int value = 0; value < kValues; ++value) {
    const auto matcher = grammars.start(spec);
    for (int step = 0; step < kMostTokens; ++step) {
      auto start = Clock::now();
      const auto bits = matcher->allowed();
      masks.push_back(microseconds(start));
      std::vector<int32_t> open;
      for (size_t word = 0; word < bits->size(); ++word) {
        for (uint32_t left = (*bits)[word]; left != 0; left &= left - 1)
          open.push_back(static_cast<int32_t>(word * 32) + __builtin_ctz(left));
      }
      seed = seed * 1664525U + 1013904223U;
      start = Clock::now();
      matcher->advance(open[(seed >> 4) % open.size()]);
      advances.push_back(microseconds(start));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) return 2;
  std::string schema = kOrder;
  if (argc == 3) {
    std::ostringstream text;
    text << std::ifstream(argv[2]).rdbuf();
    schema = text.str();
  }
  const auto tokenizer = text::Tokenizer::load(argv[1]);
  const int32_t eos = tokenizer->vocab_size();
  text::grammar::Grammars grammars(*tokenizer, eos + 1, {eos});
  const GrammarSpec spec{GrammarSpec::Kind::kJsonSchema, schema};
  auto start = Clock::now();
  const auto automaton = text::grammar::compile(spec, "schema");
  if (!automaton) {
    fmt::print("{}\n", automaton.error().message);
    return 1;
  }
  fmt::print("schema of {} bytes: {} states, compiled in {:.2f} ms\n", schema.size(),
             automaton->num_states(), microseconds(start) / 1e3);
  start = Clock::now();
  const auto first = grammars.start(spec);
  fmt::print("vocabulary of {}: {:.1f} ms, once a process\n", eos, microseconds(start) / 1e3);
  start = Clock::now();
  first->allowed();
  fmt::print("first mask {:.2f} ms\n", microseconds(start) / 1e3);
  for (const char* what : {"mask, states met first", "mask, states met before"}) {
    std::vector<double> masks;
    std::vector<double> advances;
    draw(grammars, spec, masks, advances);
    print(what, masks);
    if (what[19] == 'b') print("advance", advances);
  }
  return 0;
}
