#include "lib/text/chat_template.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/text/jinja/json.h"

namespace mpinfer::text {
namespace {

namespace fs = std::filesystem;
using jinja::Dict;
using jinja::Value;
using jinja::Values;

constexpr size_t kMaxMessages = 10'000;
constexpr uintmax_t kMaxTemplateBytes = 1 << 20;
constexpr uintmax_t kMaxConfigBytes = 4 << 20;

tl::unexpected<RowError> refuse(const char* code, std::string message, const char* param) {
  return tl::unexpected(RowError{code, std::move(message), param});
}

std::string read_text(const std::string& path, uintmax_t limit, ExitCode code) {
  std::error_code failed;
  const uintmax_t size = fs::file_size(path, failed);
  if (failed) throw Error(code, fmt::format("{}: {}", printable(path), failed.message()));
  if (size > limit) {
    throw Error(code, fmt::format("{}: {} bytes; the limit is {}", printable(path), size, limit));
  }
  std::string text(static_cast<size_t>(size), '\0');
  std::ifstream file(path, std::ios::binary);
  if (size > 0 && !file.read(text.data(), static_cast<std::streamsize>(size)))
    throw Error(code, fmt::format("{}: cannot be read", printable(path)));
  return text;
}

// Whether a template goes through the parts of a message's content, rather than taking it as text.
bool looks_into_content(const std::string& source) {
  std::string text;
  std::copy_if(source.begin(), source.end(), std::back_inserter(text),
               [](char c) { return c != ' ' && c != '\n' && c != '"' && c != '\''; });
  for (const char* subject : {".content", "[content]", "content"}) {
    for (const char* test : {"isstring", "isiterable", "issequence", "isnotstring", "ismapping"}) {
      if (text.find(std::string(subject) + test) != std::string::npos) return true;
    }
  }
  for (const char* loop : {"inmessage.content", "inmessage[content]", "inm.content", "inm[content]",
                           "incontent%", "incontent-%"}) {
    if (text.find(loop) != std::string::npos) return true;
  }
  return false;
}

const Value* member(const Value& object, std::string_view name) {
  const Dict* dict = object.dict_or_null();
  const Value* found = dict == nullptr ? nullptr : dict->find(name);
  return found == nullptr || found->is_none() ? nullptr : found;
}

bool is_text(const Value* value, std::string_view text) {
  return value != nullptr && value->is_text() && *value->text_or_null() == text;
}

// transformers fills reasoning_content from its other names, and thinking from it.
Dict with_reasoning(const Dict& message) {
  const Value* reasoning = nullptr;
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    const Value* found = message.find(std::string_view(name));
    if (reasoning == nullptr && found != nullptr && !found->is_none()) reasoning = found;
  }
  if (reasoning == nullptr) return message;
  Dict out;
  out.set("thinking", *reasoning);
  for (const auto& [key, value] : message.items()) out.set(key, value);
  out.set("reasoning_content", *reasoning);
  return out;
}

// Text parts of a message; parts that cannot be shown are refused.
std::optional<RowError> check_parts(const Value& content, std::string* joined) {
  bool first = true;
  for (const Value& part : content.list_or_null()->items) {
    const Value* text = member(part, "text");
    const Value* type = member(part, "type");
    if (type != nullptr && !is_text(type, "text")) {
      return RowError{"unsupported",
                      "a message has a content part that is not text; the model reads text only",
                      "messages"};
    }
    if (text == nullptr || !text->is_text())
      return RowError{"invalid_param", "a content part of a message has no text", "messages"};
    if (!first) *joined += '\n';
    first = false;
    *joined += *text->text_or_null();
  }
  return std::nullopt;
}

Value parsed_arguments(const Value& calls) {
  const auto* list = calls.list_or_null();
  if (list == nullptr) return calls;
  Values out;
  for (const Value& call : list->items) {
    const Value* function = member(call, "function");
    const Value* arguments = function == nullptr ? nullptr : member(*function, "arguments");
    if (arguments == nullptr || !arguments->is_text()) {
      out.push_back(call);
      continue;
    }
    Dict inner = *function->dict_or_null();
    try {
      inner.set("arguments", jinja::parse_json(*arguments->text_or_null()));
    } catch (const jinja::TemplateError&) {
      out.push_back(call);
      continue;
    }
    Dict outer = *call.dict_or_null();
    outer.set("function", Value::dict(std::move(inner)));
    out.push_back(Value::dict(std::move(outer)));
  }
  return Value::list(std::move(out));
}

Expected<Value> prepared_messages(const ChatRow& row, bool content_parts) {
  const Value given = jinja::parse_json(row.messages);
  const auto* list = given.list_or_null();
  if (list == nullptr) return refuse("invalid_param", "messages must be a list", "messages");
  if (list->items.empty()) return refuse("empty_prompt", "messages is empty", "messages");
  if (list->items.size() > kMaxMessages) {
    return refuse("invalid_param",
                  fmt::format("{} messages; the limit is {}", list->items.size(), kMaxMessages),
                  "messages");
  }
  Values out;
  const bool has_system = is_text(member(list->items.front(), "role"), "system") ||
                          is_text(member(list->items.front(), "role"), "developer");
  if (!row.system.empty() && !has_system) {
    Dict system;
    system.set("role", Value::text("system"));
    system.set("content", Value::text(std::string(row.system)));
    out.push_back(Value::dict(std::move(system)));
  }
  for (const Value& message : list->items) {
    const Value* role = member(message, "role");
    if (role == nullptr || !role->is_text())
      return refuse("invalid_param", "a message is no object with a role", "messages");
    Dict prepared = with_reasoning(*message.dict_or_null());
    const Value* content = member(message, "content");
    if (content != nullptr && content->list_or_null() != nullptr) {
      std::string joined;
      if (auto error = check_parts(*content, &joined)) return tl::unexpected(std::move(*error));
      if (!content_parts) prepared.set("content", Value::text(std::move(joined)));
    }
    const Value* calls = member(message, "tool_calls");
    if (row.parse_arguments && calls != nullptr)
      prepared.set("tool_calls", parsed_arguments(*calls));
    out.push_back(Value::dict(std::move(prepared)));
  }
  return Value::list(std::move(out));
}

// A list of objects, or none.
Expected<Value> list_of_objects(std::string_view json, const char* name) {
  if (json.empty() || json == "null") return Value::none();
  Value value = jinja::parse_json(json);
  const auto* list = value.list_or_null();
  const auto is_object = [](const Value& item) { return item.dict_or_null() != nullptr; };
  if (list == nullptr || !std::all_of(list->items.begin(), list->items.end(), is_object))
    return refuse("invalid_param", fmt::format("{} must be a list of objects", name), name);
  return value;
}

}  // namespace

void ChatTemplate::add(const std::string& name, const std::string& source) {
  const auto named = [&](const Named& other) { return other.name == name; };
  if (std::any_of(templates_.begin(), templates_.end(), named)) return;
  templates_.push_back({name, jinja::Template::parse(source), looks_into_content(source)});
  fingerprint_ = XXH3_64bits_withSeed(source.data(), source.size(), fingerprint_ + 1);
}

void ChatTemplate::read_config(const std::string& directory, bool with_template) {
  const std::string path = directory + "/tokenizer_config.json";
  if (!fs::exists(path)) return;
  const auto bad = [&](const char* rule) {
    throw Error(ExitCode::kModelRefused, fmt::format("{}: {}", printable(path), rule));
  };
  const std::string text = read_text(path, kMaxConfigBytes, ExitCode::kModelRefused);
  const auto config = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) bad("is no JSON object");
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    if (!config.contains(name)) continue;
    const auto& token = config[name];
    const auto& content = token.is_object() && token.contains("content") ? token["content"] : token;
    if (content.is_string()) special_tokens_.emplace_back(name, content.get<std::string>());
  }
  if (!with_template || !config.contains("chat_template")) return;
  const auto& chat = config["chat_template"];
  if (chat.is_null()) return;
  if (chat.is_string()) return add("default", chat.get<std::string>());
  if (!chat.is_array()) bad("chat_template is neither text nor a list of named templates");
  for (const auto& each : chat) {
    const bool named = each.is_object() && each.contains("name") && each["name"].is_string() &&
                       each.contains("template") && each["template"].is_string();
    if (!named) bad("chat_template has an entry without name and template");
    add(each["name"].get<std::string>(), each["template"].get<std::string>());
  }
}

ChatTemplate ChatTemplate::load(const std::string& directory, const std::string& file) {
  ChatTemplate out;
  if (!file.empty()) {
    out.add("default", read_text(file, kMaxTemplateBytes, ExitCode::kUsage));
    const auto& parsed = out.templates_.front().parsed;
    if (!parsed) {
      throw Error(ExitCode::kUsage,
                  fmt::format("{}: {}", printable(file), printable(parsed.error().message)));
    }
  } else if (!directory.empty() && fs::exists(directory + "/chat_template.jinja")) {
    out.add("default", read_text(directory + "/chat_template.jinja", kMaxTemplateBytes,
                                 ExitCode::kModelRefused));
    const fs::path more = directory + "/additional_chat_templates";
    if (fs::is_directory(more)) {
      std::vector<fs::path> paths;
      for (const auto& entry : fs::directory_iterator(more)) paths.push_back(entry.path());
      std::sort(paths.begin(), paths.end());
      for (const fs::path& path : paths) {
        if (path.extension() != ".jinja") continue;
        out.add(path.stem().string(),
                read_text(path.string(), kMaxTemplateBytes, ExitCode::kModelRefused));
      }
    }
  }
  if (!directory.empty()) out.read_config(directory, out.templates_.empty());
  return out;
}

const ChatTemplate::Named* ChatTemplate::choose(bool tools) const {
  const Named* chosen = nullptr;
  for (const Named& named : templates_) {
    if (named.name == "default" && chosen == nullptr) chosen = &named;
    if (named.name == "tool_use" && tools) chosen = &named;
  }
  return chosen;
}

Expected<std::string> ChatTemplate::render(const ChatRow& row) const {
  try {
    const Expected<Value> tools = list_of_objects(row.tools, "tools");
    if (!tools) return tl::unexpected(tools.error());
    const Expected<Value> documents = list_of_objects(row.documents, "documents");
    if (!documents) return tl::unexpected(documents.error());
    const Named* chosen = choose(!tools->is_none());
    const Expected<Value> messages =
        prepared_messages(row, chosen != nullptr && chosen->content_parts);
    if (!messages) return tl::unexpected(messages.error());
    if (chosen == nullptr) {
      return refuse("template_error",
                    "the model has no chat template; give one with --chat-template", "messages");
    }
    if (!chosen->parsed) return tl::unexpected(chosen->parsed.error());
    Dict variables;
    for (const auto& [name, token] : special_tokens_) variables.set(name, Value::text(token));
    variables.set("messages", *messages);
    variables.set("tools", *tools);
    variables.set("documents", *documents);
    variables.set("add_generation_prompt", Value(true));
    if (!row.reasoning_effort.empty())
      variables.set("reasoning_effort", Value::text(std::string(row.reasoning_effort)));
    if (!row.kwargs.empty() && row.kwargs != "null") {
      const Value kwargs = jinja::parse_json(row.kwargs);
      if (kwargs.dict_or_null() == nullptr) {
        return refuse("invalid_param", "chat_template_kwargs must be an object",
                      "chat_template_kwargs");
      }
      for (const auto& [key, value] : kwargs.dict_or_null()->items()) variables.set(key, value);
    }
    return chosen->parsed->render(variables, now_);
  } catch (const jinja::TemplateError& error) {
    return refuse("template_error", error.what(), "messages");
  }
}

PromptTemplate PromptTemplate::load(const std::string& file) {
  const std::string source = read_text(file, kMaxTemplateBytes, ExitCode::kUsage);
  auto parsed = jinja::Template::parse(source);
  if (!parsed) {
    throw Error(ExitCode::kUsage,
                fmt::format("{}: {}", printable(file), printable(parsed.error().message)));
  }
  return {std::move(*parsed), XXH3_64bits(source.data(), source.size())};
}

Expected<std::string> PromptTemplate::render(std::string_view row) const {
  try {
    const Value members = jinja::parse_json(row);
    return template_.render(*members.dict_or_null(), 0);
  } catch (const jinja::TemplateError& error) {
    return refuse("template_error", error.what(), "");
  }
}

}  // namespace mpinfer::text
