#include "lib/job/openai_format.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "lib/io/index.h"
#include "lib/job/json_text.h"
#include "lib/job/openai_body.h"
#include "lib/job/raw_members.h"

namespace mpinfer::job {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLowestLogprob = -9999.0;

std::string hex_id(const FormatOptions& options, int64_t index) {
  const uint64_t words[2] = {options.run_id, static_cast<uint64_t>(index)};
  return fmt::format("{:016x}", io::hash_of({reinterpret_cast<const char*>(words), sizeof(words)}));
}

std::string custom_id(std::string_view line, int64_t index) {
  std::string id = text_member(line, "custom_id");
  if (id.empty()) id = text_member(line, "id");
  return id.empty() ? fmt::format("row-{}", index) : id;
}

std::string with_valid_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

double finite(float logprob) {
  return logprob > kLowestLogprob ? static_cast<double>(logprob) : kLowestLogprob;
}

std::string text_of(const Answer& answer, int32_t token_id) {
  return answer.token_text ? answer.token_text(token_id) : fmt::format("token_id:{}", token_id);
}

Json bytes_of(const std::string& text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

Json chat_logprobs(const Answer& answer, const Completion& completion) {
  const auto entry = [&](int32_t id, float logprob) {
    const std::string text = text_of(answer, id);
    return Json{{"token", text}, {"logprob", finite(logprob)}, {"bytes", bytes_of(text)}};
  };
  Json content = Json::array();
  for (const TokenLogprob& token : completion.logprobs) {
    Json one = entry(token.token_id, token.logprob);
    one["top_logprobs"] = Json::array();
    for (const auto& [id, logprob] : token.top) one["top_logprobs"].push_back(entry(id, logprob));
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json completion_logprobs(const Answer& answer, const Completion& completion) {
  Json out = {{"text_offset", Json::array()},
              {"token_logprobs", Json::array()},
              {"tokens", Json::array()},
              {"top_logprobs", Json::array()}};
  size_t offset = 0;
  for (const TokenLogprob& token : completion.logprobs) {
    const std::string text = text_of(answer, token.token_id);
    Json top = Json::object();
    for (const auto& [id, logprob] : token.top) top[text_of(answer, id)] = finite(logprob);
    out["text_offset"].push_back(offset);
    out["token_logprobs"].push_back(finite(token.logprob));
    out["tokens"].push_back(text);
    out["top_logprobs"].push_back(std::move(top));
    offset += text.size();
  }
  return out;
}

// A list of objects by token id, the first null, as vLLM writes it.
Json prompt_logprobs(const Answer& answer) {
  Json out = Json::array({nullptr});
  for (const TokenLogprob& token : answer.samples.front().completion->prompt_logprobs) {
    Json at = Json::object();
    int32_t rank = 0;
    for (const auto& [id, logprob] : token.top) {
      at[std::to_string(id)] = {
          {"logprob", finite(logprob)}, {"rank", ++rank}, {"decoded_token", text_of(answer, id)}};
    }
    at[std::to_string(token.token_id)] = {{"logprob", finite(token.logprob)},
                                          {"rank", token.rank},
                                          {"decoded_token", text_of(answer, token.token_id)}};
    out.push_back(std::move(at));
  }
  return out;
}

Json stop_reason(const Completion& completion) {
  if (const auto* id = std::get_if<int32_t>(&completion.stop_reason)) return *id;
  if (const auto* text = std::get_if<std::string>(&completion.stop_reason)) return *text;
  return nullptr;
}

Json choice_of(const Answer& answer, const SampleAnswer& sample, bool chat,
               const FormatOptions& options) {
  const Completion& completion = *sample.completion;
  const std::string text = sample.text.value_or("");
  Json choice = {{"index", completion.sample}};
  if (chat) {
    choice["message"] = {{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = nullptr;
  if (answer.sampling->num_logprobs >= 0) {
    choice["logprobs"] =
        chat ? chat_logprobs(answer, completion) : completion_logprobs(answer, completion);
  }
  choice["finish_reason"] = completion.finish_reason == FinishReason::kStop ? "stop" : "length";
  choice["stop_reason"] = stop_reason(completion);
  if (options.token_ids || !sample.text) choice["token_ids"] = completion.token_ids;
  if (!chat && answer.sampling->num_prompt_logprobs >= 0)
    choice["prompt_logprobs"] = prompt_logprobs(answer);
  return choice;
}

}  // namespace

std::string format_openai_answer(std::string_view input_line, const Answer& answer,
                                 const FormatOptions& options) {
  const std::string_view body = raw_member(input_line, "body");
  const bool chat = text_member(input_line, "url") == kChatUrl ||
                    (body.empty() && !raw_member(input_line, "messages").empty());
  const std::string id = hex_id(options, answer.index);
  int64_t num_tokens = 0;
  Json choices = Json::array();
  for (const SampleAnswer& sample : answer.samples) {
    num_tokens += static_cast<int64_t>(sample.completion->token_ids.size());
    choices.push_back(choice_of(answer, sample, chat, options));
  }
  Json response = {{"id", (chat ? "chatcmpl-" : "cmpl-") + id},
                   {"object", chat ? "chat.completion" : "text_completion"},
                   {"created", options.created},
                   {"model", text_member(body, "model", options.model_name)},
                   {"choices", std::move(choices)},
                   {"usage",
                    {{"prompt_tokens", answer.num_prompt_tokens},
                     {"completion_tokens", num_tokens},
                     {"total_tokens", answer.num_prompt_tokens + num_tokens}}}};
  if (chat && answer.sampling->num_prompt_logprobs >= 0)
    response["prompt_logprobs"] = prompt_logprobs(answer);
  return with_valid_text(
      {{"id", "batch_req_" + id},
       {"index", answer.index},
       {"custom_id", custom_id(input_line, answer.index)},
       {"response",
        {{"status_code", 200}, {"request_id", "req_" + id}, {"body", std::move(response)}}},
       {"error", nullptr}});
}

std::string format_openai_refusal(std::string_view input_line, const Refusal& refusal,
                                  const FormatOptions& options) {
  std::string out = fmt::format("{{\"id\": \"batch_req_{}\", \"index\": {}, \"custom_id\": ",
                                hex_id(options, refusal.index), refusal.index);
  append_json_string(&out, custom_id(input_line, refusal.index));
  return out + ", \"response\": null, \"error\": " + error_object(refusal) + "}";
}

}  // namespace mpinfer::job
