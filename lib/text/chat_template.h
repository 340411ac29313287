// ChatTemplate: the rendered prompt of a chat row, equal to transformers' apply_chat_template. The
// template comes from a file, chat_template.jinja, or tokenizer_config.json (one, or named ones).
// A model without a template, or with one that cannot be read, refuses chat rows, not the run.
#pragma once

#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/core/result.h"
#include "lib/text/jinja/template.h"

namespace mpinfer::text {

// JSON texts of a row's members; empty: the row has none.
struct ChatRow {
  std::string_view messages;
  std::string_view tools = {};
  std::string_view documents = {};
  std::string_view kwargs = {};  // chat_template_kwargs
  std::string_view system = {};  // put in front unless the row has a system message; plain text
  std::string_view reasoning_effort = {};  // plain text
  bool parse_arguments = false;  // of tool calls: JSON in a string becomes an object (OpenAI form)
};

class ChatTemplate {
 public:
  // directory: of the tokenizer. file: of --chat-template, or empty; a file that cannot be read is
  // refused with Error(kUsage), a model's files that lie with Error(kModelRefused).
  static ChatTemplate load(const std::string& directory, const std::string& file);

  // template_error; empty_prompt, invalid_param or unsupported for what is no chat. Thread-safe.
  Expected<std::string> render(const ChatRow& row) const;

  uint64_t fingerprint() const { return fingerprint_; }  // of the template's text
  // Of the sources; not part of the identity: a run's begin, which strftime_now speaks of.
  void set_now(std::time_t now) { now_ = now; }

 private:
  struct Named {
    std::string name;
    Expected<jinja::Template> parsed;
    bool content_parts = false;  // looks into lists of content
  };
  void add(const std::string& name, const std::string& source);
  void read_config(const std::string& directory, bool with_template);
  const Named* choose(bool tools) const;

  std::vector<Named> templates_;
  std::vector<std::pair<std::string, std::string>> special_tokens_;  // bos_token, …
  uint64_t fingerprint_ = 0;
  std::time_t now_ = 0;
};

// A template over the row's own members (--prompt-template). Throws Error(kUsage).
class PromptTemplate {
 public:
  static PromptTemplate load(const std::string& file);
  Expected<std::string> render(std::string_view row) const;  // row: a JSON object
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  PromptTemplate(jinja::Template parsed, uint64_t fingerprint)
      : template_(std::move(parsed)), fingerprint_(fingerprint) {}
  jinja::Template template_;
  uint64_t fingerprint_;
};

}  // namespace mpinfer::text
