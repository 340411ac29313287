// One short function per architectures[0] string: what that architecture adds to the fields that
// all of them share. The list of names is what a refusal prints.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lib/model/config.h"
#include "lib/model/config_reader.h"

namespace mpinfer::model {

// Fills what depends on the architecture, after the shared sizes and before rope and layers are
// complete. Throws Error(kModelRefused) for an unknown name, listing the known ones.
void fill_architecture(const ConfigReader& reader, ModelConfig& config);

// The rope of config.json in either spelling: rope_theta + rope_scaling, or rope_parameters.
// default_theta: the architecture's own.
RopeConfig read_rope(const ConfigReader& reader, const ModelConfig& config, double default_theta);

// YaRN's scale of attention for a factor and an mscale.
double yarn_scale(double factor, double mscale);

// Layers of a window (from_layer on, or those named by layer_types) and the cache groups they need.
void set_window_layers(ModelConfig& config, const std::vector<bool>& windowed, int32_t window);

// Every layer has the window (Mistral, Phi-3); absent: what the architecture's class says.
void window_everywhere(const ConfigReader& reader, ModelConfig& config, int64_t absent);
// layer_types, one a layer.
std::vector<bool> windowed_by_type(const ConfigReader& reader, const ModelConfig& config);
// Qwen: layers from max_window_layers on, with use_sliding_window.
void window_from_layer(const ConfigReader& reader, ModelConfig& config);

// Architectures with experts (architectures_moe.cpp).
void fill_mixtral(const ConfigReader& reader, ModelConfig& config);
void fill_olmoe(const ConfigReader& reader, ModelConfig& config);
void fill_qwen2_moe(const ConfigReader& reader, ModelConfig& config);
void fill_qwen3_moe(const ConfigReader& reader, ModelConfig& config);
void fill_glm4_moe(const ConfigReader& reader, ModelConfig& config);
void fill_gpt_oss(const ConfigReader& reader, ModelConfig& config);
void fill_deepseek_v2(const ConfigReader& reader, ModelConfig& config);
void fill_deepseek_v3(const ConfigReader& reader, ModelConfig& config);

// What architectures with experts share. Sizes: count names the field of the number of experts.
void read_experts(const ConfigReader& reader, ModelConfig& config, const char* count,
                  int64_t experts, int64_t chosen);
// n_group, topk_group and routed_scaling_factor, with what they are where the file is silent.
void read_groups(const ConfigReader& reader, ModelConfig& config, int64_t groups,
                 int64_t top_groups, double scale);
void read_sigmoid_groups(const ConfigReader& reader, ModelConfig& config, int64_t groups,
                         int64_t top_groups, double scale);
// first_k_dense_replace (dense: where absent), shared experts, layers for drafts that are not read.
void dense_prefix_and_shared(const ConfigReader& reader, ModelConfig& config, int64_t dense);

std::string known_architectures();

}  // namespace mpinfer::model
