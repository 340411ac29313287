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

std::string known_architectures();

}  // namespace mpinfer::model
