// The parameter table against checkpoints, and shard algebra: the shards of any tp and pp put
// together are the tensor.
#include "lib/model/loader.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "lib/backend/cpu_backend.h"
#include "lib/model/params.h"
#include "lib/model/safetensors.h"
#include "tests/support/catch.h"
#include "tests/unit/model/model_folder.h"

namespace mpinfer::model::test {
namespace {

using backend::Matrix;

const std::string kFile = "model.safetensors";

using Rows = std::vector<std::vector<float>>;  // [rows][cols]

// The rows of a packed weight: the product of the identity with it.
Rows unpack(backend::Backend& backend, const backend::Weight& weight) {
  const int64_t in = weight.in_features;
  const int64_t out = weight.out_features;
  std::vector<float> identity(static_cast<size_t>(in * in), 0.0F);
  for (int64_t i = 0; i < in; ++i) identity[static_cast<size_t>(i * in + i)] = 1.0F;
  std::vector<float> product(static_cast<size_t>(in * out));
  backend.gemm(backend::Stream::kCompute, {product.data(), DType::kF32, in, out, out},
               {identity.data(), DType::kF32, in, in, in}, weight, nullptr);
  Rows rows(static_cast<size_t>(out), std::vector<float>(static_cast<size_t>(in)));
  for (size_t o = 0; o < rows.size(); ++o) {
    for (size_t i = 0; i < rows[o].size(); ++i) {
      rows[o][i] = product[i * static_cast<size_t>(out) + o];
    }
  }
  return rows;
}

Rows vector_rows(const void* data, size_t count) {
  Rows rows;
  for (size_t i = 0; i < count; ++i) rows.push_back({static_cast<const float*>(data)[i]});
  return rows;
}

Rows read_tensor(const Checkpoint& checkpoint, const StoredTensor& tensor) {
  std::string bytes(static_cast<size_t>(tensor.bytes), '\0');
  checkpoint.files()[static_cast<size_t>(tensor.file)].read(bytes.data(), tensor.offset,
                                                            tensor.bytes);
  const auto cols = static_cast<size_t>(tensor.rank == 2 ? tensor.shape[1] : 1);
  Rows rows(static_cast<size_t>(tensor.shape[0]), std::vector<float>(cols));
  size_t at = 0;
  for (std::vector<float>& row : rows) {
    for (float& value : row) {
      if (tensor.dtype == "F32") {
        std::memcpy(&value, bytes.data() + 4 * at, 4);
      } else {
        uint16_t bits = 0;
        std::memcpy(&bits, bytes.data() + 2 * at, 2);
        value = tensor.dtype == "BF16" ? float_from_bf16(bits) : float_from_f16(bits);
      }
      ++at;
    }
  }
  return rows;
}

// Content of the target a parameter goes to, on one rank; empty when the rank does not hold it.
Rows target_rows(backend::Backend& backend, const StageWeights& weights, const Target& target) {
  const auto size = static_cast<size_t>(target.rows);
  const LayerWeights none;
  const LayerWeights& layer =
      target.layer < 0 ? none
                       : weights.layers[static_cast<size_t>(target.layer - weights.stage.begin)];
  switch (target.slot) {
    case Slot::kEmbedding:
      return unpack(backend, weights.embedding);
    case Slot::kFinalNorm:
      return vector_rows(weights.final_norm, size);
    case Slot::kLmHead:
      return unpack(backend, weights.lm_head);
    case Slot::kInputNorm:
      return vector_rows(layer.input_norm, size);
    case Slot::kQkv:
      return unpack(backend, layer.qkv);
    case Slot::kQkvBias:
      return vector_rows(layer.qkv_bias, size);
    case Slot::kQNorm:
      return vector_rows(layer.q_norm, size);
    case Slot::kKNorm:
      return vector_rows(layer.k_norm, size);
    case Slot::kO:
      return unpack(backend, layer.o);
    case Slot::kOBias:
      return vector_rows(layer.o_bias, size);
    case Slot::kPostAttentionNorm:
      return vector_rows(layer.post_attention_norm, size);
    case Slot::kGateUp:
      return unpack(backend, layer.gate_up);
    case Slot::kGateUpBias:
      return vector_rows(layer.gate_up_bias, size);
    case Slot::kDown:
      return unpack(backend, layer.down);
    case Slot::kDownBias:
      return vector_rows(layer.down_bias, size);
    default:  // experts: the golden models hold them to every layout
      break;
  }
  return {};
}

// How often each element of a parameter is held, and whether every held one has the tensor's value.
struct Assembled {
  std::vector<std::vector<int>> held;
  bool equal = true;
};

// How often a shard rule puts an element on the ranks of a stage.
int copies(const ModelConfig& config, ShardRule rule, int tp) {
  if (rule == ShardRule::kReplicated) return tp;
  if (rule == ShardRule::kKRows || rule == ShardRule::kVRows) {
    return std::max(1, tp / config.num_key_value_heads);
  }
  return 1;
}

void check_shards(const std::string& name, int tp, int pp) {
  const std::string directory = fmt::format("{}/{}", MPINFER_GOLDEN_DIR, name);
  const ModelConfig config = load_model_config(directory);
  const auto backend = backend::make_cpu_backend({.threads = 1, .simd_target = ""});
  const Checkpoint checkpoint(directory);
  const std::vector<Parameter> table = parameter_table(config);
  std::map<std::string, Rows> tensors;
  std::map<std::string, Assembled> assembled;
  for (const Parameter& parameter : table) {
    tensors[parameter.name] = read_tensor(checkpoint, *checkpoint.find(parameter.name));
    assembled[parameter.name].held.assign(
        static_cast<size_t>(parameter.rows),
        std::vector<int>(static_cast<size_t>(std::max<int64_t>(1, parameter.cols)), 0));
  }
  const std::vector<StageLayers> stages = balance_stages(config, pp, {});
  for (int rank = 0; rank < tp * pp; ++rank) {
    const ShardOf shard{.stage = stages[static_cast<size_t>(rank / tp)],
                        .num_stages = pp,
                        .stage_index = rank / tp,
                        .tp = tp,
                        .tp_rank = rank % tp};
    const StageWeights weights =
        load_weights(*backend, directory, config, shard, LoadFormat::kAuto, 0, 3);
    std::map<std::pair<Slot, int32_t>, Rows> targets;
    size_t rows_left = 0;
    for (const Target& target : shard_targets(config, shard)) {
      targets[{target.slot, target.layer}] = target_rows(*backend, weights, target);
      rows_left += static_cast<size_t>(target.rows);
    }
    for (const Parameter& parameter : table) {
      Slot slot = Slot::kEmbedding;
      if (!holds(shard, config, parameter, &slot)) continue;
      Assembled& into = assembled[parameter.name];
      const Rows& tensor = tensors[parameter.name];
      const Rows& target = targets.at({slot, parameter.layer});
      for (const Piece& piece : shard_pieces(config, shard, parameter)) {
        for (int64_t r = 0; r < piece.rows; ++r) {
          const auto source = static_cast<size_t>(piece.source_row + r);
          const auto place = static_cast<size_t>(piece.first_row + r * piece.row_step);
          REQUIRE(place < target.size());
          REQUIRE(std::ssize(target[place]) == piece.cols);
          --rows_left;
          for (int64_t c = 0; c < piece.cols; ++c) {
            const auto col = static_cast<size_t>(piece.source_col + c);
            ++into.held[source][col];
            into.equal = into.equal && target[place][static_cast<size_t>(c)] == tensor[source][col];
          }
        }
      }
    }
    CHECK(rows_left == 0);  // every row of every target was filled by one piece
  }
  for (const Parameter& parameter : table) {
    INFO(name << " tp " << tp << " pp " << pp << " " << parameter.name);
    CHECK(assembled[parameter.name].equal);
    // Phi-3's fused qkv has q rows once and KV rows as often as the heads are replicated.
    const bool fused = parameter.rule == ShardRule::kQkvRows;
    const int64_t q_rows = int64_t{config.num_attention_heads} * config.head_dim;
    const bool tied_twice =
        parameter.slot == Slot::kEmbedding && config.tie_word_embeddings && pp > 1;
    for (int64_t r = 0; r < parameter.rows; ++r) {
      const ShardRule rule = !fused       ? parameter.rule
                             : r < q_rows ? ShardRule::kQRows
                                          : ShardRule::kKRows;
      const int expected = copies(config, rule, tp) * (tied_twice ? 2 : 1);
      const std::vector<int>& held = assembled[parameter.name].held[static_cast<size_t>(r)];
      if (std::count(held.begin(), held.end(), expected) != std::ssize(held)) {
        FAIL_CHECK("row " << r << " is not held " << expected << " times");
        break;
      }
    }
  }
}

TEST_CASE("the shards of any tp and pp put together are the tensors") {
  for (const std::string name : {"llama-8h4kv", "llama-8h2kv"}) {
    for (const int tp : {1, 2, 4, 8}) check_shards(name, tp, 1);
    check_shards(name, 2, 3);
  }
  for (const int tp : {1, 2, 4}) {
    check_shards("phi3-partial", tp, 1);
    check_shards("qwen2-window", tp, 2);
  }
  check_shards("llama-linear", 4, 2);
}

TEST_CASE("weight_bytes is what the loader takes") {
  const std::string directory = fmt::format("{}/llama-8h2kv", MPINFER_GOLDEN_DIR);
  const ModelConfig config = load_model_config(directory);
  const auto backend = backend::make_cpu_backend({.threads = 1, .simd_target = ""});
  const PackedBytes packed = [&](int64_t rows, int64_t cols, DType dtype, bool expert) {
    return expert ? backend->packed_expert_bytes(rows, cols, dtype)
                  : backend->packed_bytes(rows, cols, dtype);
  };
  for (const int tp : {1, 8}) {
    const ShardOf shard{.stage = {1, 3}, .num_stages = 2, .stage_index = 1, .tp = tp, .tp_rank = 0};
    const StageWeights weights =
        load_weights(*backend, directory, config, shard, LoadFormat::kAuto, 0, 1);
    CHECK(weights.bytes == weight_bytes(config, shard, packed));
    CHECK(weight_bytes(config, shard) <= weights.bytes);
  }
}

std::string refusal(const ModelFolder& folder) {
  return refusal_of([&] { check_checkpoint(folder.path(), load_model_config(folder.path())); });
}

TEST_CASE("a checkpoint that is not what config.json says") {
  const ModelFolder folder("granite");
  CHECK(refusal(folder).empty());
  const std::string file = folder.read(kFile);

  folder.replace("config.json", "\"intermediate_size\": 64", "\"intermediate_size\": 65");
  CHECK_THAT(refusal(folder), Contains("has shape [64, 32]") && Contains("asks for [65, 32]"));
  folder.replace("config.json", "\"intermediate_size\": 65", "\"intermediate_size\": 64");

  folder.replace("config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
  CHECK_THAT(refusal(folder), Contains("model.layers.3.input_layernorm.weight is missing"));
  folder.replace("config.json", "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 2");
  CHECK_THAT(refusal(folder), Contains("model.layers.2.") && Contains("not part of"));
  folder.replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");

  folder.replace("config.json", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
  CHECK_THAT(refusal(folder), Contains("lm_head.weight is missing"));
  folder.replace("config.json", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");

  folder.replace(kFile, "model.norm.weight", "model.nose.weight");
  CHECK_THAT(refusal(folder), Contains("model.norm.weight is missing"));
  folder.write(kFile, file);
  folder.replace(kFile, R"("dtype":"BF16","shape":[32])", R"("dtype":"I16" ,"shape":[32])");
  CHECK_THAT(refusal(folder), Contains("has dtype I16"));
}

// A copy of the folder's file with one more tensor of four bytes in front.
void add_tensor(const ModelFolder& folder, const std::string& name) {
  std::string file = folder.read(kFile);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  std::string header = file.substr(8, length);
  const auto data = file.substr(8 + length);
  header.insert(1, fmt::format(R"("{}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}},)",
                               name, data.size(), data.size() + 4));
  folder.write(kFile, safetensors_bytes(header, data + "abcd"));
}

TEST_CASE("harmless extra tensors are ignored, others refused") {
  const ModelFolder folder("granite");  // tied
  add_tensor(folder, "lm_head.weight");
  add_tensor(folder, "model.layers.0.self_attn.rotary_emb.inv_freq");
  CHECK(refusal(folder).empty());
  add_tensor(folder, "model.layers.0.self_attn.extra");
  CHECK_THAT(refusal(folder), Contains("self_attn.extra is not part of GraniteForCausalLM"));
}

TEST_CASE("the identity is the model's, not the path's") {
  const auto identity = [](const ModelFolder& folder) {
    return check_checkpoint(folder.path(), load_model_config(folder.path()));
  };
  const ModelFolder here("granite");
  const ModelFolder there("granite");
  CHECK(identity(here) == identity(there));
  add_tensor(there, "lm_head.weight");
  CHECK(identity(here) != identity(there));
  const ModelFolder other("granite");
  other.replace("config.json", "0.22", "0.23");
  CHECK(identity(here) != identity(other));
  // Other weights in files of the same shape.
  const ModelFolder tuned("granite");
  const std::string path = tuned.path() + "/model.safetensors";
  std::string bytes;
  {
    std::ifstream in(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  for (size_t i = bytes.size() / 2; i < bytes.size(); ++i)
    bytes[i] = static_cast<char>(bytes[i] ^ 1);
  std::ofstream(path, std::ios::binary) << bytes;
  CHECK(identity(here) != identity(tuned));
}

TEST_CASE("a checkpoint of another dtype is converted to config.json's") {
  const ModelFolder folder("granite");  // bf16
  folder.replace("config.json", "bfloat16", "float32");
  const auto backend = backend::make_cpu_backend({.threads = 1, .simd_target = ""});
  const ModelConfig config = load_model_config(folder.path());
  const StageWeights weights =
      load_weights(*backend, folder.path(), config, {.stage = {0, 3}}, LoadFormat::kAuto, 0, 2);
  CHECK(weights.embedding.dtype == DType::kF32);
  const Checkpoint checkpoint(folder.path());
  CHECK(unpack(*backend, weights.embedding) ==
        read_tensor(checkpoint, *checkpoint.find("model.embed_tokens.weight")));
}

TEST_CASE("a silent config takes the dtype of the files") {
  const ModelFolder folder("phi3-partial");
  folder.replace("config.json", "\"dtype\": \"float16\",", "");
  CHECK(load_model_config(folder.path()).dtype == DType::kF16);
}

TEST_CASE("stages are balanced with the LM head counted") {
  ModelConfig config;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.num_attention_heads = config.num_key_value_heads = 8;
  config.head_dim = 8;
  config.vocab_size = 41000;  // the head weighs about 64 layers of 40,960 elements
  config.layers.resize(100);
  const auto sizes = [&](int pp) {
    std::vector<int32_t> out;
    int32_t next = 0;
    for (const StageLayers& stage : balance_stages(config, pp, {})) {
      CHECK(stage.begin == next);
      next = stage.end;
      out.push_back(stage.end - stage.begin);
    }
    CHECK(next == 100);
    return out;
  };
  CHECK(sizes(1) == std::vector<int32_t>{100});
  CHECK(sizes(2) == std::vector<int32_t>{82, 18});
  config.vocab_size = 10;
  CHECK(sizes(2) == std::vector<int32_t>{50, 50});
  CHECK(sizes(3) == std::vector<int32_t>{33, 34, 33});
  CHECK(sizes(100) == std::vector<int32_t>(100, 1));
}

TEST_CASE("given stages are taken or refused") {
  ModelConfig config;
  config.layers.resize(5);
  const auto given = [&](int pp, const std::vector<int32_t>& layers) {
    return refusal_of([&] { balance_stages(config, pp, layers); }, ExitCode::kUsage);
  };
  CHECK(balance_stages(config, 2, {1, 4})[1].begin == 1);
  CHECK_THAT(given(2, {1, 3}), Contains("2 stages and 4 layers"));
  CHECK_THAT(given(2, {5, 0}), Contains("positive"));
  CHECK_THAT(given(2, {5}), Contains("1 stages"));
  CHECK_THAT(given(6, {}), Contains("--pp 6") && Contains("1 to 5"));
  CHECK_THAT(given(0, {}), Contains("--pp 0"));
}

}  // namespace
}  // namespace mpinfer::model::test
