#include "lib/model/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/model/architectures.h"
#include "lib/model/config_reader.h"
#include "lib/model/model_file.h"
#include "lib/model/safetensors.h"

namespace mpinfer::model {
namespace {

constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;

// The range table: a number outside is a lie or a model of another kind.
constexpr Range kHidden = {1, 1 << 18};
constexpr Range kIntermediate = {1, 1 << 20};
constexpr Range kLayers = {1, 1024};
constexpr Range kHeads = {1, 4096};
constexpr Range kHeadDim = {2, 1024};
constexpr Range kVocab = {1, 1 << 24};
constexpr Range kPositions = {1, 134'217'728};
constexpr Range kEps = {1e-12, 1.0};

void read_sizes(const ConfigReader& reader, ModelConfig& config) {
  config.hidden_size = reader.integer("hidden_size", kHidden);
  config.intermediate_size = reader.integer("intermediate_size", kIntermediate);
  config.layers.resize(static_cast<size_t>(reader.integer("num_hidden_layers", kLayers)));
  config.cache_groups = {{.window = 0}};
  config.num_attention_heads = static_cast<int32_t>(reader.integer("num_attention_heads", kHeads));
  config.num_key_value_heads = static_cast<int32_t>(
      reader.integer("num_key_value_heads", config.num_attention_heads, kHeads));
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    reader.refuse("num_key_value_heads",
                  fmt::format("is {}, which does not divide num_attention_heads {}",
                              config.num_key_value_heads, config.num_attention_heads));
  }
  // Latent attention has sizes of its own for its heads.
  const bool given = reader.has("head_dim") || reader.has("kv_lora_rank");
  if (!given && config.hidden_size % config.num_attention_heads != 0) {
    reader.refuse("hidden_size", fmt::format("is {}, no multiple of num_attention_heads {}, and "
                                             "head_dim is missing",
                                             config.hidden_size, config.num_attention_heads));
  }
  const int64_t by_default = config.hidden_size / config.num_attention_heads;
  config.head_dim = static_cast<int32_t>(reader.integer("head_dim", by_default, kHeadDim));
  if (config.head_dim < 2 || config.head_dim > 1024) {
    reader.refuse("head_dim", fmt::format("is {}, not from 2 to 1024", config.head_dim));
  }
  const int64_t width = int64_t{config.head_dim} * config.num_attention_heads;
  if (width > 1 << 20) {
    reader.refuse("head_dim",
                  fmt::format("times num_attention_heads is {}, the limit is {}", width, 1 << 20));
  }
  config.vocab_size = reader.integer("vocab_size", kVocab);
  config.max_position_embeddings = reader.integer("max_position_embeddings", 2048, kPositions);
  config.rms_norm_eps = static_cast<float>(reader.number("rms_norm_eps", 1e-6, kEps));
  config.attention_scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim));
}

void read_activation(const ConfigReader& reader, ModelConfig& config) {
  const std::string name = reader.string("hidden_act", "silu");
  if (name == "silu" || name == "swish") {
    config.activation = backend::Activation::kSilu;
  } else if (name == "gelu") {
    config.activation = backend::Activation::kGelu;
  } else if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_fast") {
    config.activation = backend::Activation::kGeluTanh;
  } else {
    reader.refuse("hidden_act", fmt::format("is \"{}\"; supported: silu, gelu, gelu_pytorch_tanh",
                                            printable(name, 80)));
  }
}

// Where config.json is silent, the checkpoint's embedding says it.
std::string stored_dtype(const std::string& directory) {
  if (!file_exists(directory, "model.safetensors") &&
      !file_exists(directory, "model.safetensors.index.json")) {
    return "bfloat16";
  }
  const Checkpoint checkpoint(directory);
  const StoredTensor* embedding = checkpoint.find("model.embed_tokens.weight");
  if (embedding == nullptr || embedding->dtype == "BF16") return "bfloat16";
  return embedding->dtype == "F16" ? "float16" : "float32";
}

void read_dtype(const std::string& directory, const ConfigReader& reader, ModelConfig& config) {
  std::string name = reader.string("dtype", reader.string("torch_dtype", ""));
  if (name.empty()) name = stored_dtype(directory);
  if (name == "bfloat16") {
    config.dtype = DType::kBF16;
  } else if (name == "float16") {
    config.dtype = DType::kF16;
  } else if (name == "float32") {
    config.dtype = DType::kF32;
  } else {
    reader.refuse("dtype", fmt::format("is \"{}\"; supported: bfloat16, float16, float32",
                                       printable(name, 80)));
  }
}

// One id, a list of ids, or nothing.
bool read_eos(const ConfigReader& reader, ModelConfig& config) {
  if (!reader.has("eos_token_id")) return false;
  const Range ids = {0, static_cast<double>(config.vocab_size - 1)};
  std::vector<int64_t> list;
  if (reader.raw("eos_token_id").is_array()) {
    list = reader.integers("eos_token_id", 256, ids);
  } else {
    list = {reader.integer("eos_token_id", ids)};
  }
  config.eos_token_ids.clear();
  for (const int64_t id : list) config.eos_token_ids.push_back(static_cast<int32_t>(id));
  return true;
}

void read_special_tokens(const std::string& directory, const ConfigReader& reader,
                         ModelConfig& config) {
  const Range ids = {-1, static_cast<double>(config.vocab_size - 1)};
  config.bos_token_id = static_cast<int32_t>(reader.integer("bos_token_id", -1, ids));
  read_eos(reader, config);
  const std::string name = "generation_config.json";
  if (!file_exists(directory, name)) return;
  const std::string path = printable(directory + "/" + name);
  const nlohmann::json json = parse_json_object(read_text(directory, name, kMaxConfigBytes), path);
  read_eos(ConfigReader(json, path), config);
}

[[noreturn]] void refuse_quantised(const ConfigReader& reader) {
  std::string method;
  if (reader.raw("quantization_config").is_object()) {
    method = reader.object("quantization_config").string("quant_method", "");
  }
  reader.refuse(
      "quantization_config",
      fmt::format("is set{}: quantised checkpoints are not supported; use one whose weights are "
                  "bf16, f16 or f32{}",
                  method.empty() ? "" : fmt::format(" ({})", printable(method, 80)),
                  method == "fp8" ? ", such as this one with its block scales multiplied in (and "
                                    "without this field)"
                                  : ""));
}

bool splits(int64_t size, int tp) {  // no rank's part of ceil(size / tp) is empty
  return (size + tp - 1) / tp * (tp - 1) < size;
}

bool is_valid_tp(const ModelConfig& config, int tp) {
  const int32_t kv = config.num_key_value_heads;
  const MoeConfig& moe = config.moe;
  return tp >= 1 && config.num_attention_heads % tp == 0 && (kv % tp == 0 || tp % kv == 0) &&
         splits(config.vocab_size, tp) && splits(config.intermediate_size, tp) &&
         (moe.num_experts == 0 || splits(moe.intermediate_size, tp)) &&
         (moe.shared_intermediate_size == 0 || splits(moe.shared_intermediate_size, tp));
}

}  // namespace

ModelConfig load_model_config(const std::string& directory) {
  const std::string name = "config.json";
  const std::string path = printable(directory + "/" + name);
  const nlohmann::json json = parse_json_object(read_text(directory, name, kMaxConfigBytes), path);
  const ConfigReader reader(json, path);
  ModelConfig config;
  const std::vector<std::string> names = reader.strings("architectures", 16);
  if (names.empty()) reader.refuse("architectures", "is an empty list");
  config.architecture = names.front();
  if (reader.has("quantization_config")) refuse_quantised(reader);
  read_sizes(reader, config);
  read_activation(reader, config);
  read_dtype(directory, reader, config);
  fill_architecture(reader, config);
  read_special_tokens(directory, reader, config);
  return config;
}

GenerationDefaults load_generation_defaults(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  const std::string shown = printable(path);
  const nlohmann::json json = parse_json_object(read_text(directory, name, kMaxConfigBytes), shown);
  const ConfigReader reader(json, shown);
  GenerationDefaults out;
  out.do_sample = reader.boolean("do_sample", true);
  out.has_temperature = reader.has("temperature");
  out.temperature = static_cast<float>(reader.number("temperature", 1.0, {0.0, 100.0}));
  out.has_top_p = reader.has("top_p");
  out.top_p = static_cast<float>(reader.number("top_p", 1.0, {0.0, 1.0}));
  out.has_top_k = reader.has("top_k");
  out.top_k = static_cast<int32_t>(reader.integer("top_k", 0, {-1, 1 << 24}));
  out.has_repetition_penalty = reader.has("repetition_penalty");
  out.repetition_penalty =
      static_cast<float>(reader.number("repetition_penalty", 1.0, {1e-3, 1e3}));
  return out;
}

std::vector<int> valid_tp(const ModelConfig& config, int limit) {
  std::vector<int> out;
  for (int tp = 1; tp <= limit; ++tp) {
    if (is_valid_tp(config, tp)) out.push_back(tp);
  }
  return out;
}

void require_valid_tp(const ModelConfig& config, int tp) {
  if (is_valid_tp(config, tp)) return;
  throw Error(
      ExitCode::kUsage,
      fmt::format("--tp {} does not fit the model: it must divide {} query heads, and one of "
                  "tp and {} KV heads must divide the other; valid: {}",
                  tp, config.num_attention_heads, config.num_key_value_heads,
                  fmt::join(valid_tp(config, config.num_attention_heads), ", ")));
}

std::vector<int> valid_ep(const ModelConfig& config, int dp, int tp) {
  std::vector<int> out = {1};
  for (int k = 1; config.has_experts() && k <= dp; ++k) {
    if (dp % k == 0 && k * tp > 1 && k * tp <= config.moe.num_experts) out.push_back(k * tp);
  }
  return out;
}

void require_valid_ep(const ModelConfig& config, int dp, int tp, int ep) {
  const std::vector<int> valid = valid_ep(config, dp, tp);
  if (std::find(valid.begin(), valid.end(), ep) != valid.end()) return;
  if (!config.has_experts()) {
    throw Error(ExitCode::kUsage,
                fmt::format("--ep {}: {} has no experts; valid: 1", ep, config.architecture));
  }
  throw Error(
      ExitCode::kUsage,
      fmt::format("--ep {} does not fit dp {} and tp {}: it is 1, tp, or tp times a divisor "
                  "of dp, and at most {} experts; valid: {}",
                  ep, dp, tp, config.moe.num_experts, fmt::join(valid, ", ")));
}

}  // namespace mpinfer::model
