// What every communicator must do, as checks that any transport can be put through. Values are
// integers in floats, so sums are exact in any order. CHECK, not REQUIRE: a rank that left a
// collective alone would hang the others.
#pragma once

#include "lib/comm/communicator.h"

namespace mpinfer::comm {

// Runs the whole suite on one rank of the communicator; every rank calls it. Returns the number of
// failed checks (threads cannot report to Catch themselves).
int run_conformance(Communicator& communicator);

// Sum over ranks of real values drawn by (rank, i): equal bits whatever the transport.
std::vector<float> sum_of_reals(Communicator& communicator, int64_t count);

}  // namespace mpinfer::comm
