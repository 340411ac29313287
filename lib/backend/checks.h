// Checks that every backend's ops share.
#pragma once

#include "lib/backend/backend.h"

namespace mpinfer::backend {

void check_same_shape(const Matrix& a, const Matrix& b);

}  // namespace mpinfer::backend
