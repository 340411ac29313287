// --model as the user writes it: a directory, or a hub name (ORG/NAME) that is looked up in the
// local hub cache. Nothing is downloaded; the command that would is named.
#pragma once

#include <string>

namespace mpinfer::apps {

// The directory of a model. Throws Error(kModelRefused) for a hub name that is neither a directory
// nor in the cache; other names come back as they are.
std::string find_model(const std::string& name, const std::string& hub_cache);

}  // namespace mpinfer::apps
