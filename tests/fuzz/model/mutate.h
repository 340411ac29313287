// Deterministic mutations of JSON-like bytes: flipped bytes, cut and doubled ranges, numbers and
// words that parsers trip over.
#pragma once

#include <random>
#include <string>

namespace mpinfer::model::test {

// One to four mutations of seed.
std::string mutate(const std::string& seed, std::mt19937_64& random);

}  // namespace mpinfer::model::test
