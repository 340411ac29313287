#include "lib/model/boundary.h"

#include "lib/core/error.h"

namespace mpinfer::model {
namespace {

void all_reduce(const Boundary& boundary, backend::Stream stream, const backend::Matrix& rows) {
  MPINFER_CHECK(rows.stride == rows.cols, "a partial of {} columns with stride {}", rows.cols,
                rows.stride);
  boundary.tp.all_reduce_sum(stream, rows.data, rows.dtype, rows.rows * rows.cols);
}

}  // namespace

void reduce_add_norm(const Boundary& boundary, backend::Stream stream, const backend::Matrix& out,
                     const Partial& partial, const backend::Matrix& residual,
                     const void* norm_weight) {
  if (boundary.tp.sum_add_norm(stream, {.out = out,
                                        .partial = partial.rows,
                                        .residual = residual,
                                        .scale = boundary.residual_scale,
                                        .norm_weight = norm_weight,
                                        .eps = boundary.norm_eps})) {
    return;
  }
  all_reduce(boundary, stream, partial.rows);
  boundary.backend.add_rms_norm(stream, out, residual, partial.rows, boundary.residual_scale,
                                norm_weight, boundary.norm_eps);
}

void reduce_add(const Boundary& boundary, backend::Stream stream, const Partial& partial,
                const backend::Matrix& residual) {
  if (boundary.tp.sum_add_norm(stream, {.out = {},
                                        .partial = partial.rows,
                                        .residual = residual,
                                        .scale = boundary.residual_scale})) {
    return;
  }
  all_reduce(boundary, stream, partial.rows);
  boundary.backend.add(stream, residual, partial.rows, boundary.residual_scale);
}

}  // namespace mpinfer::model
