// Views and ownership of device memory: slices of a Matrix, the destructor of Buffer.
#include "lib/backend/backend.h"

namespace mpinfer::backend {
namespace {

// A view of a measuring workspace has no memory; its slices have none either.
void* advance(void* data, int64_t bytes) {
  return data == nullptr ? nullptr : static_cast<char*>(data) + bytes;
}

}  // namespace

Matrix Matrix::slice_rows(int64_t begin, int64_t count) const {
  MPINFER_CHECK(begin >= 0 && count >= 0 && count <= rows - begin,
                "rows [{}, {} + {}) of a matrix of {} rows", begin, begin, count, rows);
  return {.data = advance(data, begin * stride * size_of(dtype)),
          .dtype = dtype,
          .rows = count,
          .cols = cols,
          .stride = stride};
}

Matrix Matrix::slice_cols(int64_t begin, int64_t count) const {
  MPINFER_CHECK(begin >= 0 && count >= 0 && count <= cols - begin,
                "columns [{}, {} + {}) of a matrix of {} columns", begin, begin, count, cols);
  return {.data = advance(data, begin * size_of(dtype)),
          .dtype = dtype,
          .rows = rows,
          .cols = count,
          .stride = stride};
}

Buffer::~Buffer() {
  if (data_ != nullptr) backend_->release(data_, bytes_);
}

}  // namespace mpinfer::backend
