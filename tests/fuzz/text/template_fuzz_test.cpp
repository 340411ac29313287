// Mutated templates over a row's values: each is rendered or refused with template_error, in
// bounded time and without a crash. MPINFER_FUZZ_ROUNDS asks for more rounds.
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "lib/text/jinja/json.h"
#include "lib/text/jinja/template.h"
#include "tests/support/catch.h"

namespace mpinfer::text::jinja::test {
namespace {

using Random = std::mt19937_64;

const std::vector<std::string>& pieces() {
  static const std::vector<std::string> list = {"{{",
                                                "}}",
                                                "{%",
                                                "%}",
                                                "{#",
                                                "#}",
                                                "-%}",
                                                "{%-",
                                                "{%+",
                                                "{% if x %}",
                                                "{% endif %}",
                                                "{% for x in l %}",
                                                "{% endfor %}",
                                                "{% else %}",
                                                "{% set x = 1 %}",
                                                "{% macro f(a) %}",
                                                "{% endmacro %}",
                                                "{% raw %}",
                                                "{% endraw %}",
                                                "{% call f(1) %}",
                                                "{% endcall %}",
                                                "namespace()",
                                                "range(9)",
                                                "loop",
                                                "loop.index",
                                                "messages",
                                                "[0]",
                                                "[::-1]",
                                                "[-1:]",
                                                ".content",
                                                ".items()",
                                                "|tojson",
                                                "|sort",
                                                "|map('upper')",
                                                "|list",
                                                "|join",
                                                "|first",
                                                "|groupby('role')",
                                                " is string",
                                                " is not none",
                                                " in ",
                                                " not ",
                                                " and ",
                                                " or ",
                                                " if x else ",
                                                "(",
                                                ")",
                                                "[",
                                                "]",
                                                "{",
                                                "}",
                                                "'",
                                                "\"",
                                                "\\",
                                                "~",
                                                "+",
                                                "-",
                                                "*",
                                                "**",
                                                "//",
                                                "%",
                                                "1",
                                                "-1",
                                                "9223372036854775807",
                                                "1e308",
                                                "0",
                                                "'a'",
                                                "''",
                                                "none",
                                                "true",
                                                ",",
                                                ":",
                                                ".",
                                                "=",
                                                "==",
                                                "<",
                                                "\n",
                                                "\xc3\xa9",
                                                "\xff",
                                                " "};
  return list;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

void mutate(std::string* text, const std::vector<std::string>& sources, Random& random) {
  const auto below = [&](size_t limit) { return static_cast<size_t>(random() % limit); };
  for (size_t n = 1 + below(5); n > 0; --n) {
    const size_t at = below(text->size() + 1);
    const size_t length = std::min(below(20), text->size() - at);
    switch (below(4)) {
      case 0:
        text->replace(at, length, pieces()[below(pieces().size())]);
        break;
      case 1:
        text->insert(at, pieces()[below(pieces().size())]);
        break;
      case 2:
        text->erase(at, length);
        break;
      default: {
        const std::string& other = sources[below(sources.size())];
        const size_t from = below(other.size() + 1);
        text->insert(at, other.substr(from, below(40)));
      }
    }
  }
}

}  // namespace

TEST_CASE("mutated templates are rendered or refused") {
  const char* asked = std::getenv("MPINFER_FUZZ_ROUNDS");
  const int rounds = asked == nullptr ? 4000 : std::atoi(asked);
  const Value goldens = parse_json(read_file(std::string(MPINFER_TEMPLATES) + "/goldens.json"));
  const Dict& members = *goldens.dict_or_null();
  std::vector<std::string> sources;
  for (const Value& snippet : members.find("snippets")->list_or_null()->items)
    sources.push_back(*snippet.list_or_null()->items[0].text_or_null());
  for (const char* name : {"qwen", "header", "inst", "typescript", "rag"})
    sources.push_back(read_file(std::string(MPINFER_TEMPLATES) + "/" + name + "_style.jinja"));
  const Values& contexts = members.find("contexts")->list_or_null()->items;
  Random random(7);
  int num_rendered = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string text = sources[random() % sources.size()];
    mutate(&text, sources, random);
    const auto parsed = Template::parse(text);
    if (!parsed) {
      CHECK(parsed.error().code == "template_error");
      continue;
    }
    const Value& variables =
        random() % 2 == 0 ? *members.find("variables") : contexts[random() % contexts.size()];
    const auto out = parsed->render(*variables.dict_or_null(), 0);
    if (out) ++num_rendered;
    if (!out) CHECK(out.error().code == "template_error");
  }
  CHECK(num_rendered > rounds / 20);
}

}  // namespace mpinfer::text::jinja::test
