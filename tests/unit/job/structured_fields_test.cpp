// What rows say of their completion's form, in each of the fields and places that say it.
#include <string>

#include "lib/job/request_builder.h"
#include "tests/support/catch.h"
#include "tests/unit/job/byte_tokenizer.h"

using namespace mpinfer;
using namespace mpinfer::job;
using Kind = GrammarSpec::Kind;

namespace {

constexpr int64_t kVocab = 259;

struct Fixture {
  std::unique_ptr<text::Tokenizer> tokenizer = tests::byte_tokenizer();
  text::grammar::Grammars grammars{*tokenizer, kVocab, {2}};
  BuilderOptions options{.max_model_len = 64, .vocab_size = kVocab, .grammars = &grammars};

  Expected<Request> build(const std::string& line) const {
    return RequestBuilder(options, tokenizer.get()).build(7, line);
  }
};

std::string flat(const std::string& field) {
  return R"({"prompt": "x", )" + field + "}";
}
std::string nested(const std::string& field) {
  return R"({"prompt": "x", "sampling_params": {)" + field + "}}";
}
std::string openai(const std::string& field) {
  return R"({"custom_id":"a","url":"/v1/completions","body":{"prompt":"x",)" + field + "}}";
}

}  // namespace

TEST_CASE("structured fields: every spelling, at every place") {
  const Fixture f;
  const std::string schema = R"({"type": "object", "properties": {"a": {"type": "null"}}})";
  const std::string quoted = R"("{\"type\": \"null\"}")";
  struct Case {
    std::string field;
    Kind kind;
    std::string text;
  };
  const Case cases[] = {
      {R"("response_format":{"type":"json_object"})", Kind::kJsonObject, ""},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":)" +
           schema + "}}",
       Kind::kJsonSchema, schema},
      {R"("structured_outputs":{"json":)" + schema + "}", Kind::kJsonSchema, schema},
      {R"("structured_outputs":{"json":)" + quoted + "}", Kind::kJsonSchema, R"({"type": "null"})"},
      {R"("structured_outputs":{"regex":"a\\d","choice":null})", Kind::kRegex, "a\\d"},
      {R"("structured_outputs":{"choice":["a","b"]})", Kind::kChoice, R"(["a","b"])"},
      {R"("structured_outputs":{"json_object":true})", Kind::kJsonObject, ""},
      {R"("guided_json":)" + schema, Kind::kJsonSchema, schema},
      {R"("guided_regex":"é+")", Kind::kRegex, "é+"},
      {R"("guided_choice":["a","b"],"response_format":{"type":"text"})", Kind::kChoice,
       R"(["a","b"])"},
      {R"("response_format":{"type":"text"})", Kind::kNone, ""},
      {R"("guided_json":null,"response_format":null)", Kind::kNone, ""},
  };
  for (const Case& c : cases) {
    for (const std::string& line : {flat(c.field), nested(c.field), openai(c.field)}) {
      const auto request = f.build(line);
      INFO(line << (request ? "" : request.error().message));
      REQUIRE(request);
      CHECK(request->sampling.grammar == GrammarSpec{c.kind, c.text});
      CHECK(request->sampling.changes_logits() == (c.kind != Kind::kNone));
    }
  }
  CHECK(!f.build(flat(R"("guided_regex":"a","ignore_eos":true)"))->sampling.ignore_eos);
}

TEST_CASE("structured fields: what is refused, with the field's name") {
  const Fixture f;
  struct Case {
    const char* field;
    const char* code;
    const char* param;
  };
  const Case cases[] = {
      {R"("response_format":"json")", "invalid_param", "response_format"},
      {R"("response_format":{"type":"structural_tag"})", "unsupported", "response_format"},
      {R"("response_format":{})", "unsupported", "response_format"},
      {R"("response_format":{"type":"json_schema"})", "invalid_param", "response_format"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":[]}})", "invalid_param",
       "response_format"},
      {R"("response_format":{"type":"json_schema","json_schema":{"schema":{"not":{}}}})",
       "unsupported", "response_format"},
      {R"("structured_outputs":{})", "invalid_param", "structured_outputs"},
      {R"("structured_outputs":{"grammar":"root ::= x"})", "unsupported", "structured_outputs"},
      {R"("structured_outputs":{"regex":"a","choice":["b"]})", "invalid_param",
       "structured_outputs"},
      {R"("structured_outputs":{"regex":5})", "invalid_param", "structured_outputs"},
      {R"("guided_regex":"(a")", "invalid_param", "guided_regex"},
      {R"("guided_regex":"(a)\\1")", "unsupported", "guided_regex"},
      {R"("guided_choice":[])", "invalid_param", "guided_choice"},
      {R"("guided_choice":"a")", "invalid_param", "guided_choice"},
      {R"("guided_json":"{")", "invalid_param", "guided_json"},
      {R"("guided_json":{"type":"object"},"guided_regex":"a")", "invalid_param", "guided_regex"},
      {R"("guided_regex":"a","allowed_token_ids":[5])", "invalid_param", "allowed_token_ids"},
  };
  for (const Case& c : cases) {
    for (const std::string& line : {flat(c.field), nested(c.field), openai(c.field)}) {
      const auto request = f.build(line);
      INFO(line);
      REQUIRE(!request);
      CHECK(request.error().code == c.code);
      CHECK(request.error().param == c.param);
    }
  }
  const RequestBuilder without(f.options, nullptr);
  CHECK(without.build(0, R"({"prompt_token_ids":[5],"guided_regex":"a"})").error().code ==
        "unsupported");
}
