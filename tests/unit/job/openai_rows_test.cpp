// Rows of the OpenAI batch form and chat rows: what is served, what is refused and by which name.
#include <fstream>
#include <string>

#include "lib/job/request_builder.h"
#include "tests/support/catch.h"
#include "tests/unit/job/byte_tokenizer.h"

using namespace mpinfer;
using namespace mpinfer::job;

namespace {

constexpr int64_t kVocab = 259;

std::string write_template(const std::string& text) {
  char path[] = "/tmp/mpinfer-template-XXXXXX";
  const int fd = ::mkstemp(path);
  REQUIRE(fd >= 0);
  std::ofstream(path) << text;
  ::close(fd);
  return path;
}

struct Fixture {
  std::unique_ptr<text::Tokenizer> tokenizer = tests::byte_tokenizer();
  text::ChatTemplate chat;
  BuilderOptions options{.max_model_len = 128, .vocab_size = kVocab};

  explicit Fixture(const std::string& source =
                       "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                       "{% if tools %}[{{ tools | length }} tools]{% endif %}"
                       "{% if add_generation_prompt %}<assistant>{% endif %}")
      : chat(load(source)) {
    options.chat_template = &chat;
  }
  static text::ChatTemplate load(const std::string& source) {
    const std::string path = write_template(source);
    auto loaded = text::ChatTemplate::load("", path);
    std::remove(path.c_str());
    return loaded;
  }
  Expected<Request> build(const std::string& line, std::string* rendered = nullptr) const {
    return RequestBuilder(options, tokenizer.get()).build(7, line, rendered);
  }
  std::string text(const std::string& line) const {
    std::string rendered;
    const auto request = build(line, &rendered);
    if (!request) return request.error().code + ": " + request.error().message;
    if (!rendered.empty()) CHECK(tests::ids_of(*tokenizer, rendered) == request->prompt_token_ids);
    return rendered;
  }
  std::string code(const std::string& line) const {
    const auto request = build(line);
    return request ? "" : request.error().code;
  }
  std::string param(const std::string& line) const {
    const auto request = build(line);
    return request ? "" : request.error().param;
  }
};

std::string chat_row(const std::string& more = "") {
  return R"({"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m",)"
         R"("messages":[{"role":"user","content":"hi"}])" +
         more + "}}";
}

std::string completion_row(const std::string& prompt, const std::string& more = "") {
  return R"({"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":)" + prompt +
         more + "}}";
}

}  // namespace

TEST_CASE("OpenAI rows: another url, method or body is refused by name") {
  const Fixture f;
  CHECK(f.param(R"({"custom_id":"a","url":"/v1/embeddings","body":{}})") == "url");
  CHECK(f.code(R"({"custom_id":"a","url":"/v1/embeddings","body":{}})") == "unsupported");
  CHECK(f.code(R"({"custom_id":"a","url":5,"body":{}})") == "unsupported");
  CHECK(f.param(
            R"({"custom_id":"a","method":"GET","url":"/v1/completions","body":{"prompt":"x"}})") ==
        "method");
  CHECK(f.code(R"({"custom_id":"a","url":"/v1/completions","body":[]})") == "invalid_param");
  CHECK(f.code(R"({"custom_id":"a","url":"/v1/completions"})") == "invalid_param");
  CHECK(f.param(R"({"custom_id":")" + std::string(600, 'i') +
                R"(","url":"/v1/completions","body":{"prompt":"x"}})") == "custom_id");
  CHECK(f.code(R"({"custom_id":"a","url":"/v1/chat/completions","body":{}})") == "invalid_param");
}

TEST_CASE("OpenAI rows: fields of the body that are not served are unsupported by name") {
  const Fixture f;
  for (const char* field : {R"("stream":true)", R"("surprise":1)", R"("tool_choice":"required")",
                            R"("tool_choice":{"type":"function"})", R"("modalities":["audio"])",
                            R"("suffix":"x")", R"("continue_final_message":true)"}) {
    INFO(field);
    const std::string line = chat_row(std::string(",") + field);
    CHECK(f.code(line) == "unsupported");
    CHECK(std::string(field).find("\"" + f.param(line) + "\"") == 0);
  }
  for (const char* field :
       {R"("echo":true)", R"("suffix":"x")", R"("best_of":3)", R"("messages":[])"}) {
    INFO(field);
    CHECK(f.code(completion_row("\"x\"", std::string(",") + field)) == "unsupported");
  }
  CHECK(f.code(chat_row(R"(,"stream":false,"user":"u","metadata":{},"store":false,"surprise":null,)"
                        R"("service_tier":"auto","parallel_tool_calls":true,"stream_options":{},)"
                        R"("tool_choice":"auto","modalities":["text"],)"
                        R"("response_format":{"type":"text"})")) == "");
  CHECK(f.code(completion_row("\"x\"", R"(,"echo":false,"best_of":1)")) == "");
}

TEST_CASE("OpenAI rows: sampling fields count in the body alone") {
  const Fixture f;
  const auto request = f.build(
      R"({"custom_id":"a","url":"/v1/completions","temperature":9,"body":{"prompt":"x","temperature":0.5,"max_completion_tokens":3,"top_k":4}})");
  REQUIRE(request.has_value());
  CHECK(request->sampling.temperature == 0.5F);
  CHECK(request->sampling.max_tokens == 3);
  CHECK(request->sampling.top_k == 4);
  CHECK(f.param(completion_row("\"x\"", R"(,"temperature":9)")) == "temperature");
}

TEST_CASE("OpenAI rows: the prompt is a text, ids, or a list of one") {
  const Fixture f;
  const auto ids = [&](const std::string& prompt) {
    return f.build(completion_row(prompt)).value().prompt_token_ids;
  };
  CHECK(ids("\"ab\"") == ids("[\"ab\"]"));
  CHECK(ids("[5, 6]") == std::vector<int32_t>{5, 6});
  CHECK(f.code(completion_row(R"(["a","b"])")) == "unsupported");
  CHECK(f.code(completion_row("[[1,2],[3]]")) == "unsupported");
  CHECK(f.code(completion_row("\"\"")) == "empty_prompt");
  CHECK(f.code(completion_row("[]")) == "empty_prompt");
  CHECK(f.code(completion_row("5")) == "invalid_param");
  CHECK(f.code(completion_row("[1,999]")) == "invalid_param");
}

TEST_CASE("OpenAI rows: body.model is looked at only when a name is served") {
  Fixture f;
  CHECK(f.code(chat_row()).empty());
  f.options.served_model_name = "other";
  CHECK(f.code(chat_row()) == "model_mismatch");
  f.options.served_model_name = "m";
  CHECK(f.code(chat_row()).empty());
  CHECK(f.code(completion_row("\"x\"")) == "model_mismatch");
}

TEST_CASE("chat rows are rendered, with and without system, tools and generation prompt") {
  Fixture f;
  const std::string messages = R"("messages":[{"role":"user","content":"hi"}])";
  CHECK(f.text("{" + messages + "}") == "<user>hi<assistant>");
  CHECK(f.text(chat_row()) == "<user>hi<assistant>");
  CHECK(f.text("{" + messages + R"(,"chat_template_kwargs":{"add_generation_prompt":false}})") ==
        "<user>hi");
  CHECK(f.text(chat_row(R"(,"add_generation_prompt":false)")) == "<user>hi");
  CHECK(f.text(chat_row(R"(,"add_generation_prompt":false,"chat_template_kwargs":{"a":1})")) ==
        "<user>hi");
  CHECK(f.text("{" + messages + R"(,"tools":[{"type":"function"}]})") ==
        "<user>hi[1 tools]<assistant>");
  CHECK(f.text(chat_row(R"(,"tools":[{"type":"function"}],"tool_choice":"none")")) ==
        "<user>hi<assistant>");
  f.options.system = "be brief";
  CHECK(f.text("{" + messages + "}") == "<system>be brief<user>hi<assistant>");
  CHECK(f.text(R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]})") ==
        "<system>s<user>u<assistant>");
}

TEST_CASE("prompts become chats, and templates see the row's own members") {
  Fixture f;
  CHECK(f.text(R"({"prompt":"a\"b"})").empty());
  f.options.apply_chat_template = true;
  CHECK(f.text(R"({"prompt":"a\"b"})") == "<user>a\"b<assistant>");
  CHECK(f.code(R"({"prompt":""})") == "empty_prompt");
  const std::string path = write_template("Q: {{ q }} A: {{ a.b }}");
  const auto prompt = text::PromptTemplate::load(path);
  std::remove(path.c_str());
  f.options.prompt_template = &prompt;
  CHECK(f.text(R"({"q":"x","a":{"b":2}})") == "<user>Q: x A: 2<assistant>");
  f.options.apply_chat_template = false;
  CHECK(f.text(R"({"q":"x","a":{"b":2}})") == "Q: x A: 2");
}

TEST_CASE("templates that raise, loop, recurse or divide by zero fail their row") {
  for (const char* source :
       {"{{ raise_exception('no') }}", "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"}) {
    INFO(source);
    const Fixture f(source);
    CHECK(f.code(R"({"messages":[{"role":"user","content":"x"}]})") == "template_error");
    CHECK(f.code(R"({"prompt":"x"})").empty());
  }
}

TEST_CASE("empty and misshapen messages") {
  const Fixture f;
  CHECK(f.code(R"({"messages":[]})") == "empty_prompt");
  CHECK(f.code(R"({"messages":"hi"})") == "invalid_param");
  CHECK(f.code(R"({"messages":[5]})") == "invalid_param");
  CHECK(f.code(R"({"messages":[{"content":"x"}]})") == "invalid_param");
  CHECK(f.code(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})") ==
        "unsupported");
  Fixture none;
  none.options.chat_template = nullptr;
  CHECK(none.code(R"({"messages":[{"role":"user","content":"x"}]})") == "template_error");
  CHECK(none.code(R"({"messages":[]})") == "empty_prompt");
  CHECK(none.code(R"({"messages":{}})") == "invalid_param");
}
