// Templates against what transformers rendered (templates/goldens.json, by make_templates.py), the
// limits of a rendering, and where a model's template comes from.
#include <filesystem>
#include <fstream>
#include <sstream>

#include "lib/core/error.h"
#include "lib/text/chat_template.h"
#include "lib/text/jinja/json.h"
#include "lib/text/jinja/template.h"
#include "tests/support/catch.h"

namespace mpinfer::text::jinja::test {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

std::string folder() {
  return MPINFER_TEMPLATES;
}

Expected<std::string> rendered(const std::string& source, const Value& variables) {
  const auto parsed = Template::parse(source);
  if (!parsed) return tl::unexpected(parsed.error());
  return parsed->render(*variables.dict_or_null(), 0);
}

void check(const std::string& source, const Value& variables, const Value& expected) {
  const auto text = rendered(source, variables);
  if (expected.is_none()) {
    CHECK_FALSE(text);
    if (!text) CHECK(text.error().code == "template_error");
  } else {
    REQUIRE(text);
    CHECK(*text == *expected.text_or_null());
  }
}

std::string error_of(const std::string& source) {
  const auto text = rendered(source, parse_json(R"({"l": [1, 2, 3]})"));
  return text ? "no error: " + text->substr(0, 100) : text.error().message;
}

}  // namespace

TEST_CASE("templates render as transformers renders them") {
  const Value goldens = parse_json(read_file(folder() + "/goldens.json"));
  const Dict& members = *goldens.dict_or_null();
  for (const Value& snippet : members.find("snippets")->list_or_null()->items) {
    const Values& pair = snippet.list_or_null()->items;
    CAPTURE(*pair[0].text_or_null());
    check(*pair[0].text_or_null(), *members.find("variables"), pair[1]);
  }
  const Values& contexts = members.find("contexts")->list_or_null()->items;
  for (const Value& chat : members.find("chats")->list_or_null()->items) {
    const Values& parts = chat.list_or_null()->items;
    int64_t number = 0;
    REQUIRE(parts[1].integer(&number));
    CAPTURE(*parts[0].text_or_null(), number);
    check(read_file(folder() + "/" + *parts[0].text_or_null()),
          contexts[static_cast<size_t>(number)], parts[2]);
  }
}

TEST_CASE("a rendering ends at its limits, whatever the template does") {
  const std::string forever = "{% for a in range(100000) %}{% for b in range(100000) %}";
  CHECK(error_of(forever + "x{% endfor %}{% endfor %}").find("steps") != std::string::npos);
  CHECK(error_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").find("nested") !=
        std::string::npos);
  CHECK(error_of("{% for x in l recursive %}{{ loop(l) }}{% endfor %}").find("nested") !=
        std::string::npos);
  CHECK(error_of("{{ 'a' * 1000000000000 }}").find("MiB") != std::string::npos);
  CHECK(error_of("{{ [1] * 1000000000000 }}").find("MiB") != std::string::npos);
  CHECK(error_of("{% set n = namespace(x='ab') %}{% for i in range(100) %}"
                 "{% set n.x = n.x + n.x %}{% endfor %}")
            .find("MiB") != std::string::npos);
  CHECK(error_of("{% set n = namespace(x=[1]) %}{% for i in range(500) %}"
                 "{% set n.x = [n.x] %}{% endfor %}")
            .find("nested") != std::string::npos);
  CHECK(error_of("{% set n = namespace(x=[1, 2]) %}{% for i in range(150) %}"
                 "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == n.x }}")
            .find("steps") != std::string::npos);
  CHECK(error_of("{% set n = namespace() %}{% set n.n = n %}").find("namespace") !=
        std::string::npos);
  CHECK(error_of("{% set n = namespace() %}{% set n.n = [n] %}").find("namespace") !=
        std::string::npos);
  CHECK(error_of("{{ range(1000000) }}").find("range") != std::string::npos);
  CHECK(error_of("{{ 'x' | center(100000000000) }}").find("MiB") != std::string::npos);
  CHECK(error_of("{{ ('ab' * 100000).replace('a', 'b' * 100000) }}").find("MiB") !=
        std::string::npos);
  CHECK(error_of("{{ 9223372036854775807 + 1 }}").find("64 bits") != std::string::npos);
  CHECK(error_of("{{ 10 ** 100 }}").find("64 bits") != std::string::npos);
  CHECK(error_of("{% for x in range(10) %}{{ 'a' * 2000000 }}{% endfor %}").find("MiB") !=
        std::string::npos);
  CHECK(error_of("x\n\n{{ 1 // 0 }}").find("line 3") != std::string::npos);
}

TEST_CASE("a template that is nested, large or not text is refused when it is read") {
  const auto repeat = [](const std::string& text, int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += text;
    return out;
  };
  CHECK_FALSE(Template::parse("{{ " + repeat("(", 100'000)));
  CHECK_FALSE(Template::parse("{{ " + repeat("-", 100'000) + "1 }}"));
  CHECK_FALSE(Template::parse("{{ " + repeat("not ", 100'000) + "1 }}"));
  CHECK_FALSE(Template::parse("{{ " + repeat("[", 100'000)));
  CHECK_FALSE(Template::parse(repeat("{% if x %}", 100'000)));
  CHECK_FALSE(Template::parse("{{ x" + repeat(".x", 100'000) + " }}"));
  CHECK_FALSE(Template::parse("{{ x" + repeat("|trim", 100'000) + " }}"));
  CHECK_FALSE(Template::parse("{{ x" + repeat(" if x", 100'000) + " }}"));
  CHECK_FALSE(Template::parse("{{ x" + repeat(" if x else x", 100'000) + " }}"));
  CHECK_FALSE(Template::parse(repeat("x", (1 << 20) + 1)));
  CHECK_FALSE(Template::parse("\xff"));
  CHECK(Template::parse("{{ x" + repeat(" + 1", 50'000) + " }}"));
}

TEST_CASE("the values of a row are bounded") {
  CHECK_THROWS_AS(parse_json(std::string(1000, '[')), TemplateError);
  CHECK_THROWS_AS(parse_json("{\"a\": "), TemplateError);
  std::string many = "[0";
  for (int i = 0; i < 1'000'001; ++i) many += ",0";
  CHECK_THROWS_AS(parse_json(many + "]"), TemplateError);
}

}  // namespace mpinfer::text::jinja::test

namespace mpinfer::text::test {
namespace {

class Folder {
 public:
  Folder() : path_(std::filesystem::temp_directory_path() / "mpinfer-template-XXXXXX") {
    std::string name = path_.string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name) << text;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

constexpr const char* kHello = R"([{"role": "user", "content": "hi"}])";

std::string text_of(const ChatTemplate& chat, const ChatRow& row) {
  const auto text = chat.render(row);
  return text ? *text : text.error().code + ": " + text.error().message;
}

}  // namespace

TEST_CASE("a model's template is found where models keep it") {
  const Folder model;
  CHECK(text_of(ChatTemplate::load(model.path(), ""), {.messages = kHello})
            .find("template_error: the model has no chat template") == 0);
  CHECK(text_of(ChatTemplate::load(model.path(), ""), {.messages = "[]"}).find("empty_prompt") ==
        0);
  model.write("tokenizer_config.json",
              R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": null,
                  "chat_template": "{{ bos_token }}{{ unk_token }}{{ messages[0].content }}"})");
  CHECK(text_of(ChatTemplate::load(model.path(), ""), {.messages = kHello}) == "<s>hi");
  model.write("chat_template.jinja", "file {{ eos_token }}");
  CHECK(text_of(ChatTemplate::load(model.path(), ""), {.messages = kHello}) == "file </s>");
  model.write("other.jinja", "flag {{ add_generation_prompt }}");
  const auto flag = ChatTemplate::load(model.path(), model.path() + "/other.jinja");
  CHECK(text_of(flag, {.messages = kHello}) == "flag True");
  CHECK(text_of(flag, {.messages = kHello, .kwargs = R"({"add_generation_prompt": false})"}) ==
        "flag False");
  CHECK(flag.fingerprint() != ChatTemplate::load(model.path(), "").fingerprint());
  CHECK_THROWS_AS(ChatTemplate::load(model.path(), model.path() + "/none.jinja"), Error);
  model.write("broken.jinja", "{% if %}");
  CHECK_THROWS_AS(ChatTemplate::load(model.path(), model.path() + "/broken.jinja"), Error);
  model.write("chat_template.jinja", "{% if %}");
  CHECK(
      text_of(ChatTemplate::load(model.path(), ""), {.messages = kHello}).find("template_error") ==
      0);
}

TEST_CASE("named templates: tool_use for rows with tools") {
  const Folder model;
  model.write("tokenizer_config.json",
              R"({"chat_template": [{"name": "default", "template": "plain"},
                                    {"name": "tool_use", "template": "tools {{ tools | length }}"}]})");
  const auto chat = ChatTemplate::load(model.path(), "");
  CHECK(text_of(chat, {.messages = kHello}) == "plain");
  CHECK(text_of(chat, {.messages = kHello, .tools = R"([{"type": "function"}])"}) == "tools 1");
  model.write("tokenizer_config.json", R"({"chat_template": 5})");
  CHECK_THROWS_AS(ChatTemplate::load(model.path(), ""), Error);
}

TEST_CASE("rows of a chat: what is wrong with them is said") {
  const Folder model;
  model.write("chat_template.jinja",
              "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}");
  const auto chat = ChatTemplate::load(model.path(), "");
  CHECK(text_of(chat, {.messages = "[]"}).find("empty_prompt") == 0);
  CHECK(text_of(chat, {.messages = "{}"}).find("invalid_param") == 0);
  CHECK(text_of(chat, {.messages = "[1]"}).find("invalid_param") == 0);
  CHECK(text_of(chat, {.messages = R"([{"content": "x"}])"}).find("invalid_param") == 0);
  CHECK(text_of(chat, {.messages = kHello, .tools = "{}"}).find("invalid_param") == 0);
  CHECK(text_of(chat, {.messages = kHello, .documents = "[1]"}).find("invalid_param") == 0);
  CHECK(text_of(chat, {.messages = kHello, .kwargs = "[]"}).find("invalid_param") == 0);
  std::string many = "[{\"role\": \"user\"}";
  for (int i = 0; i < 10'000; ++i) many += ",{\"role\": \"user\"}";
  CHECK(text_of(chat, {.messages = many + "]"}).find("invalid_param") == 0);
  // Text parts are joined for a template that takes strings; other parts cannot be shown.
  const char* parts =
      R"([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])";
  CHECK(text_of(chat, {.messages = parts}) == "user:a\nb;");
  CHECK(text_of(chat, {.messages = R"([{"role": "user", "content": [{"type": "image_url"}]}])"})
            .find("unsupported") == 0);
  CHECK(text_of(chat, {.messages = kHello, .system = "s"}) == "system:s;user:hi;");
  CHECK(text_of(chat, {.messages = R"([{"role": "system", "content": "own"}])", .system = "s"}) ==
        "system:own;");
}

}  // namespace mpinfer::text::test
