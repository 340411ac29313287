#include "lib/backend/workspace.h"

#include <algorithm>

namespace mpinfer::backend {

void* Workspace::take_bytes(int64_t bytes) {
  MPINFER_CHECK(bytes >= 0 && bytes <= std::numeric_limits<int64_t>::max() / 2,
                "a piece of {} bytes", bytes);
  const int64_t begin = used_;
  const int64_t end = begin + (bytes + kAlignment - 1) / kAlignment * kAlignment;
  MPINFER_CHECK(measuring() || end <= buffer_.bytes(),
                "workspace of {} bytes is too small: {} asked for, {} left", buffer_.bytes(), bytes,
                buffer_.bytes() - begin);
  used_ = end;
  peak_ = std::max(peak_, used_);
  return measuring() ? nullptr : static_cast<char*>(buffer_.data()) + begin;
}

Matrix Workspace::take(int64_t rows, int64_t cols, DType dtype) {
  return {.data = take_bytes(rows * cols * size_of(dtype)),
          .dtype = dtype,
          .rows = rows,
          .cols = cols,
          .stride = cols};
}

void Workspace::reset(int64_t mark) {
  MPINFER_CHECK(mark >= 0 && mark <= used_, "mark {} of {} used bytes", mark, used_);
  used_ = mark;
}

}  // namespace mpinfer::backend
