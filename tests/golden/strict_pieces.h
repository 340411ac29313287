// A communicator on host memory that offers sums by pieces, and punishes whoever uses rows before
// they are there: rows of out are NaN from send to receive, but for a rank's own from add on, and
// the residual of rows that other ranks keep is NaN after add.
#pragma once

#include <memory>

#include "lib/comm/communicator.h"

namespace mpinfer::model::test {

// Everything else goes to inner. *sums counts the pieces received.
std::unique_ptr<comm::Communicator> make_strict_pieces(std::unique_ptr<comm::Communicator> inner,
                                                       backend::Backend& backend, int* sums);

}  // namespace mpinfer::model::test
