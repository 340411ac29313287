#include "lib/model/linear.h"

namespace mpinfer::model {

void column_parallel(backend::Backend& backend, backend::Stream stream, const backend::Matrix& out,
                     const backend::Matrix& a, const backend::Weight& weight, const void* bias) {
  backend.gemm(stream, out, a, weight, bias);
}

Partial row_parallel(backend::Backend& backend, backend::Stream stream, const backend::Matrix& out,
                     const backend::Matrix& a, const backend::Weight& weight, const void* bias) {
  backend.gemm(stream, out, a, weight, bias);
  return {out};
}

}  // namespace mpinfer::model
