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

std::string known_architectures();

}  // namespace mpinfer::model
