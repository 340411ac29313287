// Views and ownership of device memory: slices of a Matrix, the destructor of Buffer.
#include <algorithm>

#include "lib/backend/checks.h"

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

void check_same_shape(const Matrix& a, const Matrix& b) {
  MPINFER_CHECK(a.rows == b.rows && a.cols == b.cols, "[{}, {}] beside [{}, {}]", a.rows, a.cols,
                b.rows, b.cols);
}

int64_t moe_places(int64_t rows, int64_t top_k, int64_t num_experts) {
  const int64_t chosen = rows * std::min(top_k, num_experts);
  return chosen + std::min(chosen, num_experts) * (kExpertPlaces - 1);
}

int64_t moe_scratch_bytes(int64_t rows, int64_t top_k, int64_t num_experts, int64_t hidden,
                          int64_t intermediate, DType activation) {
  constexpr int64_t kAlignment = 256;
  const int64_t chosen = rows * std::min(top_k, num_experts);
  const auto align = [](int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  const int64_t tiles = chosen / kLeastExpertRows + num_experts;
  const int64_t places = moe_places(rows, top_k, num_experts);
  return align(places * intermediate * size_of(activation)) +  // activated, sorted by expert
         align(places * hidden * size_of(activation)) +        // what each choice adds, likewise
         align(places * 4) + align(rows * top_k * 4) + align((num_experts + 2) * 8) +
         align((tiles + 1) * 12);
}

Buffer::~Buffer() {
  if (data_ != nullptr) backend_->release(data_, bytes_);
}

}  // namespace mpinfer::backend
