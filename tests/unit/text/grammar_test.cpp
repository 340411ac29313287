// Automata of patterns and JSON against other readers of the same language (std::regex,
// nlohmann::json), over every short text; what is beyond the subset is refused by name.
#include <nlohmann/json.hpp>
#include <regex>

#include "lib/text/grammar/grammars.h"
#include "lib/text/grammar/json_grammar.h"
#include "lib/text/grammar/pattern.h"
#include "lib/text/utf8.h"
#include "tests/support/catch.h"
#include "tests/unit/text/every_text.h"

namespace mpinfer::text::grammar::test {
namespace {

using Kind = GrammarSpec::Kind;

Automaton automaton(Kind kind, const std::string& text) {
  auto made = compile({kind, text}, "f");
  INFO(text << ": " << (made ? "" : made.error().message));
  REQUIRE(made);
  return std::move(*made);
}

RowError error_of(Kind kind, const std::string& text) {
  const auto made = compile({kind, text}, "f");
  INFO(text);
  REQUIRE(!made);
  CHECK(made.error().param == "f");
  return made.error();
}

TEST_CASE("patterns: every short text matches as std::regex says") {
  const std::string pattern = GENERATE(
      as<std::string>(), "a", "", "ab|c", "(a|b)*c", "a+b?c*", "a{2}", "a{1,3}b{0}", "(ab){1,}c?",
      "[ab]+", "[^a]*", "[a-b]?[b-c]", ".b.", "(?:a|)b", "a*?b+?", "^ab$", "(a*)*b", "(a|ab)(c|bc)",
      "\\d\\w|\\s", "[\\d-]+", "\\W\\D", "a\\.b|\\-", "[]a]|[^]a]b", "((a|b){2}){2}",
      "\\x61\\u0062", "[a\\-c]", "a|b|c|", "(|a){3}", "b{2,4}?c");
  const Automaton made = automaton(Kind::kRegex, pattern);
  // ECMAScript reads [] as the empty class.
  std::string theirs = pattern;
  if (pattern == "[]a]|[^]a]b") theirs = "[\\]a]|[^\\]a]b";
  const std::regex oracle(theirs);
  int wrong = 0;
  for_every_text("abc1- .]", 4, [&](const std::string& text) {
    wrong += made.matches(text) != std::regex_match(text, oracle) ? 1 : 0;
  });
  CHECK(wrong == 0);
}

TEST_CASE("patterns: random ones match as std::regex says") {
  uint32_t state = 12345;
  const auto below = [&](uint32_t n) {
    state = state * 1664525U + 1013904223U;
    return (state >> 16) % n;
  };
  const std::function<std::string(int)> make = [&](int depth) -> std::string {
    const uint32_t kind = below(depth > 0 ? 9 : 3);
    if (kind < 2) return std::string(1, "ab"[kind]);
    if (kind == 2) return below(2) != 0 ? "[^a]" : ".";
    if (kind < 5) return make(depth - 1) + make(depth - 1);
    if (kind == 5) return "(" + make(depth - 1) + "|" + make(depth - 1) + ")";
    const char* quantifier[] = {"*", "+", "?", "{2}", "{1,2}", "{0,3}", "{2,}"};
    return "(" + make(depth - 1) + ")" + quantifier[below(7)];
  };
  for (int i = 0; i < 120; ++i) {
    const std::string pattern = make(3);
    const Automaton made = automaton(Kind::kRegex, pattern);
    const std::regex oracle(pattern);
    for_every_text("abx", 5, [&](const std::string& text) {
      if (made.matches(text) != std::regex_match(text, oracle))
        FAIL("pattern " << pattern << ", text " << text);
    });
  }
}

TEST_CASE("patterns: a class reads whole characters, every one of them and nothing else") {
  const Automaton any = automaton(Kind::kRegex, ".");
  const Automaton some = automaton(Kind::kRegex, "[é-ж€-\U0001F600]");
  const Automaton others = automaton(Kind::kRegex, "[^é-ж€-\U0001F600]");
  int wrong = 0;
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(text, c);
    const bool inside = (c >= 0xE9 && c <= 0x436) || (c >= 0x20AC && c <= 0x1F600);
    wrong += any.matches(text) != (c != '\n') ? 1 : 0;
    wrong += some.matches(text) != inside ? 1 : 0;
    wrong += others.matches(text) == inside ? 1 : 0;
  }
  CHECK(wrong == 0);
  for (uint32_t bytes = 0; bytes < 1U << 24; bytes += 7) {
    const std::string text = {static_cast<char>(bytes >> 16), static_cast<char>(bytes >> 8),
                              static_cast<char>(bytes)};
    const bool one = find_invalid_utf8(text) == std::string_view::npos && utf8_length(text[0]) == 3;
    wrong += any.matches(text) != one ? 1 : 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("patterns: what is not read is refused by name, what is broken as invalid") {
  for (const char* pattern : {"(a)\\1", "(?=a)", "(?<n>a)", "(?i)a", "\\bx", "\\pL", "a^b", "a$b",
                              "a++", "a{5000}", "[[:alpha:]]"}) {
    CHECK(error_of(Kind::kRegex, pattern).code == "unsupported");
  }
  for (const char* pattern : {"(a", "a)", "[a", "*a", "a**", "a{2", "a{x}", "a{3,2}", "[b-a]", "\\",
                              "\\x4", "\xFF", "[^\\d\\D]"}) {
    CHECK(error_of(Kind::kRegex, pattern).code == "invalid_param");
  }
  CHECK(error_of(Kind::kRegex, "(a").message.find("at byte") != std::string::npos);
  // Too large, by nodes and by states.
  CHECK(error_of(Kind::kRegex, "((a{1000}){1000}){1000}").code == "unsupported");
  CHECK(error_of(Kind::kRegex, "(a|b)*a(a|b){20}").code == "unsupported");
  CHECK(error_of(Kind::kRegex, std::string(1000, '(') + "a" + std::string(1000, ')')).code ==
        "unsupported");
  CHECK(error_of(Kind::kRegex, std::string(kMaxPatternBytes + 1, 'a')).code == "unsupported");
}

TEST_CASE("JSON values: every short text is accepted as nlohmann::json says") {
  const auto made = Automaton::compile(*json_value(kFreeDepth), "f");
  REQUIRE(made);
  int accepted = 0;
  const std::regex long_exponent(".*e-?[0-9]{3,}.*");
  for_every_text("{}[]\",:1-.0e\\", 5, [&](const std::string& text) {
    const bool ours = made->matches(text);
    accepted += ours ? 1 : 0;
    const bool theirs = nlohmann::json::accept(text) && !std::regex_match(text, long_exponent);
    if (ours != theirs) FAIL(text);
  });
  CHECK(accepted > 500);
  for (const char* text : {"true", "false", "null", R"({"a": [1, {"b":null}], "c":"\u00e9\n"})",
                           R"(["é", 1e-5, -0.5])", "[[[[]]]]"}) {
    CHECK(made->matches(text));
  }
  for (const char* text : {"{\"a\" :1}", "[ ]", " 1", "[1,  2]", "\"\\ud800\"", "[[[[[]]]]]",
                           "[1,]", "\"\n\"", "\"\xFF\"", "01", "tru"}) {
    CHECK(!made->matches(text));
  }
  const Automaton object = automaton(Kind::kJsonObject, "");
  CHECK(object.matches(R"({"a":{"b":{"c":{"d":{"e":{}}}}}})"));
  CHECK(!object.matches(R"({"a":{"b":{"c":{"d":{"e":{"f":{}}}}}}})"));
  CHECK(!object.matches("[]"));
}

struct SchemaCase {
  const char* schema;
  std::vector<std::string> good;
  std::vector<std::string> bad;
};

TEST_CASE("schemas: texts that fit and texts that do not") {
  const std::vector<SchemaCase> cases = {
      {R"({"type":"object","properties":{"z":{"type":"integer"},"a":{"type":"string"}},
           "required":["z","a"],"additionalProperties":false})",
       {R"({"z":1,"a":"x"})", R"({"z": -12, "a": ""})"},
       {"{}", R"({"a":"x","z":1})", R"({"z":1})", R"({"z":1.5,"a":"x"})",
        R"({"z":1,"a":"x","b":1})"}},
      {R"({"properties":{"a":{"const":1},"b":{"const":2},"c":{"const":3}},"required":["b"]})",
       {R"({"b":2})", R"({"a":1,"b":2})", R"({"b":2,"c":3})", R"({"a":1, "b":2, "c":3})"},
       {"{}", R"({"a":1})", R"({,"b":2})", R"({"b":2,})", R"({"a":1"b":2})"}},
      {R"({"type":"object","properties":{"a":{"const":1},"b":{"const":2}}})",
       {"{}", R"({"a":1})", R"({"b":2})", R"({"a":1,"b":2})"},
       {R"({"b":2,"a":1})"}},
      {R"({"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":3})",
       {"[true]", "[true,false]", "[true, true, true]"},
       {"[]", "[true,true,true,true]", "[1]"}},
      {R"({"type":"array","items":{"type":"null"},"maxItems":0})", {"[]"}, {"[null]"}},
      {R"({"enum":["a\"b",1,null,[1,{"x":2}]]})",
       {R"("a\"b")", "1", "null", R"([1,{"x":2}])"},
       {"\"a\"", "2"}},
      {R"({"type":"string","enum":["a",1]})", {"\"a\""}, {"1"}},
      {R"({"type":["string","null"],"maxLength":2})",
       {"\"\"", "\"éé\"", "null", "\"\\n\\u00e9\""},
       {"\"abc\"", "1"}},
      {R"({"anyOf":[{"type":"integer"},{"type":"string","minLength":1,"maxLength":1}]})",
       {"0", "-7", "123456789012345678", "\"x\""},
       {"01", "1234567890123456789", "\"\"", "-"}},
      {R"({"type":"number"})", {"0", "-1.25", "1e5", "1.5E-10"}, {"1.", ".5", "1e", "1e100", "+1"}},
      {R"({"type":"string","pattern":"^[a-z\"]{2}\\d$"})",
       {R"("ab1")", R"("a\"7")"},
       {R"("ab")", R"("a"7")", R"("xab1")"}},
      {R"({"type":"string","pattern":"a.\\tb"})", {R"("ax\tb")", R"("a\\\tb")"}, {"\"ax\tb\""}},
      {R"({"$ref":"#/$defs/p","$defs":{"p":{"type":"object","properties":{"q":{"$ref":"#/$defs/q"},
           "r":{"$ref":"#/$defs/q"}},"required":["q","r"]},"q":{"enum":["u","v"]}}})",
       {R"({"q":"u","r":"v"})"},
       {R"({"q":"w","r":"v"})"}},
      {R"({"type":"integer","minimum":1,"maximum":12})",
       {"1", "9", "10", "12"},
       {"0", "13", "-1", "01", "1.0", "112"}},
      {R"({"type":"integer","exclusiveMinimum":-3,"maximum":0.5})", {"-2", "0"}, {"-3", "1", "-0"}},
      {R"({"type":"number","minimum":0,"maximum":1})",
       {"0", "1", "0.25", "1.00", "0.0"},
       {"-0.1", "1.01", "2", ".5", "-0"}},
      {R"({"minimum":2,"exclusiveMinimum":2,"exclusiveMaximum":5,"maximum":7})",
       {"2.5", "4.99", "3"},
       {"2", "2.0", "5"}},
      {R"({"type":["integer","null"],"minimum":5,"maximum":5})", {"5", "null"}, {"4", "6"}},
      {R"({"oneOf":[{"type":"null"},{"const":"x"}],"discriminator":{"propertyName":"k"}})",
       {"null", "\"x\""},
       {"\"y\""}},
      {R"({"allOf":[{"$ref":"#/$defs/a"}],"description":"d","$defs":{"a":{"enum":["q"]}}})",
       {"\"q\""},
       {"\"d\""}},
      {R"({"type":"object","additionalProperties":{"type":"integer","minimum":0}})",
       {"{}", R"({"a":1})", R"({"b": 2, "a":0})"},
       {R"({"a":-1})", R"({"a":"x"})", R"({"a":1,})"}},
      {R"({"type":"string","format":"date"})",
       {"\"2024-02-28\"", "\"1999-12-31\""},
       {"\"2024-02-30\"", "\"2024-13-01\"", "\"2024-04-31\"", "\"2024-1-1\""}},
      {R"({"type":"string","format":"date-time"})",
       {"\"2024-02-28T23:59:59Z\"", "\"2024-02-28T00:00:00.5+01:30\""},
       {"\"2024-02-28\"", "\"2024-02-28T24:00:00Z\"", "\"2024-02-28T23:59:59\""}},
      {R"({"type":"string","format":"time"})", {"\"08:09:10Z\""}, {"\"8:09:10Z\""}},
      {R"({"type":"string","format":"uuid"})",
       {"\"123e4567-e89b-12d3-a456-426614174000\""},
       {"\"123e4567e89b12d3a456426614174000\""}},
      {R"({"type":["string","null"],"format":"email"})",
       {"\"a.b+c@mail.example.org\"", "null"},
       {"\"a@b\"", "\"a b@c.de\"", "\".a@c.de\"", "\"a@-c.de\""}},
      {R"({"format":"ipv4"})",
       {"\"127.0.0.1\"", "\"255.249.10.0\""},
       {"\"256.0.0.1\"", "\"1.2.3\""}},
      {R"({"format":"hostname"})", {"\"a-b.example\""}, {"\"-a\"", "\"a..b\""}},
      {R"({"format":"uri"})",
       {"\"https://example.org/a/b?c=d\"", "\"http://h:8080\""},
       {"\"example.org\"", "\"http://\"", "\"http://a b\""}},
      {R"({"type":"object"})", {"{}", R"({"x":[1,"y"]})"}, {"[]"}},
      {R"({"type":"object","additionalProperties":false})", {"{}"}, {R"({"x":1})"}},
      {R"({"title":"t","description":"d","type":"null","default":null})", {"null"}, {"1"}},
      {"{}", {"1", "[[1]]", "\"x\"", "{}"}, {""}},
      {"true", {"1"}, {"x"}},
  };
  for (const SchemaCase& c : cases) {
    const Automaton made = automaton(Kind::kJsonSchema, c.schema);
    INFO(c.schema);
    for (const std::string& text : c.good) {
      INFO(text);
      CHECK(made.matches(text));
      CHECK(nlohmann::json::accept(text));
    }
    for (const std::string& text : c.bad) {
      INFO(text);
      CHECK(!made.matches(text));
    }
  }
}

TEST_CASE("schemas: another keyword is unsupported, with its name and path") {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"({"type":"integer","multipleOf":2})", "#/multipleOf"},
      {R"({"type":"string","minimum":1})", "#/minimum"},
      {R"({"type":"number","minimum":0.5})", "#/minimum"},
      {R"({"type":"integer","maximum":1e16})", "#/maximum"},
      {R"({"type":"object","properties":{"a":{"type":"string","format":"iri"}}})",
       "#/properties/a/format is iri; known are date,"},
      {R"({"type":"string","format":"date","maxLength":3})", "#/format"},
      {R"({"type":"string","format":"date","pattern":"a"})", "#/pattern"},
      {R"({"type":"integer","format":"int32"})", "#/format"},
      {R"({"oneOf":[{"not":{}}]})", "#/oneOf/0/not"},
      {R"({"oneOf":[{}],"type":"null"})", "#/type"},
      {R"({"allOf":[{},{}]})", "#/allOf"},
      {R"({"allOf":[{"if":{}}]})", "#/allOf/0/if"},
      {R"({"properties":{"a":{}},"additionalProperties":{"type":"null"}})",
       "#/additionalProperties"},
      {R"({"not":{}})", "#/not"},
      {R"({"type":"array","items":{"uniqueItems":true}})", "#/items/uniqueItems"},
      {R"({"type":"array","uniqueItems":true})", "#/uniqueItems"},
      {R"({"type":"array","prefixItems":[]})", "#/prefixItems"},
      {R"({"type":"object","patternProperties":{}})", "#/patternProperties"},
      {R"({"type":"object","properties":{},"required":["x"]})", "#/required"},
      {R"({"$ref":"#/$defs/a","$defs":{"a":{"type":"array","items":{"$ref":"#/$defs/a"}}}})",
       "#/$defs/a/items/$ref"},
      {R"({"$ref":"https://example.org/x"})", "#/$ref"},
      {R"({"anyOf":[{"type":"null"},{"if":{}}]})", "#/anyOf/1/if"},
      {R"({"anyOf":[{}],"type":"null"})", "#/type"},
      {R"({"type":"array","maxItems":100000})", "#/maxItems"},
      {R"({"type":"string","maxLength":2,"pattern":"a"})", "#/pattern"},
      {R"J({"type":"string","pattern":"(?=a)"})J", "#/pattern"},
  };
  for (const auto& [schema, path] : cases) {
    const RowError error = error_of(Kind::kJsonSchema, schema);
    INFO(error.message);
    CHECK(error.code == "unsupported");
    CHECK(error.message.find(path) != std::string::npos);
  }
  for (const char* schema : {"[]",
                             "3",
                             "{",
                             R"({"type":"strings"})",
                             R"({"type":3})",
                             R"({"enum":[]})",
                             R"({"enum":[1],"type":"string"})",
                             R"({"anyOf":[]})",
                             R"({"oneOf":[]})",
                             R"({"allOf":{}})",
                             R"({"type":"integer","minimum":"1"})",
                             R"({"type":"integer","minimum":3,"maximum":2})",
                             R"({"type":"number","exclusiveMinimum":3,"maximum":3})",
                             R"({"format":5})",
                             R"({"type":"array","minItems":-1})",
                             R"({"type":"array","minItems":3,"maxItems":2})",
                             R"({"properties":[]})",
                             R"({"$ref":"#/$defs/none"})",
                             R"({"type":"string","pattern":"("})",
                             R"({"required":"x"})",
                             "false"}) {
    CHECK(error_of(Kind::kJsonSchema, schema).code == "invalid_param");
  }
}

TEST_CASE("choices: the strings and nothing else") {
  const Automaton made = automaton(Kind::kChoice, R"(["yes","no","yes, but"])");
  for (const char* text : {"yes", "no", "yes, but"}) CHECK(made.matches(text));
  for (const char* text : {"", "ye", "yes,", "nope"}) CHECK(!made.matches(text));
  for (const char* list : {"[]", "{}", "[1]", "[\"\"]", "x", ""})
    CHECK(error_of(Kind::kChoice, list).code == "invalid_param");
}

}  // namespace
}  // namespace mpinfer::text::grammar::test
