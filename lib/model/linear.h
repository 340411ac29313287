// Linear layers over TP. Column-parallel ones leave every rank its own output columns; row-parallel
// ones leave a Partial: this rank's summand, which only boundary.h may add up.
#pragma once

#include "lib/backend/backend.h"

namespace mpinfer::model {

struct Partial {
  backend::Matrix
      rows;  // [num_rows, hidden_size], contiguous; the sum over TP is the layer's output
};

// out [num_rows, local out] = a [num_rows, in] · weightᵀ + bias.
void column_parallel(backend::Backend& backend, backend::Stream stream, const backend::Matrix& out,
                     const backend::Matrix& a, const backend::Weight& weight, const void* bias);

// out [num_rows, hidden_size] = a [num_rows, local in] · weightᵀ + bias (bias on one rank only).
Partial row_parallel(backend::Backend& backend, backend::Stream stream, const backend::Matrix& out,
                     const backend::Matrix& a, const backend::Weight& weight, const void* bias);

}  // namespace mpinfer::model
