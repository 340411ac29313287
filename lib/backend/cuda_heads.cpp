// The LM head's ops of the CUDA backend: maximum, logits, masks, log-probabilities, draws.
#include <algorithm>
#include <bit>
#include <cstddef>

#include "lib/backend/cuda_backend_impl.h"
#include "lib/backend/cuda_sizes.h"

namespace mpinfer::backend {
namespace {

namespace cuda = kernels::cuda;

static_assert(sizeof(cuda::SampleRow) == sizeof(SampleRow) &&
              offsetof(cuda::SampleRow, seed) == offsetof(SampleRow, seed) &&
              offsetof(cuda::SampleRow, presence_penalty) == offsetof(SampleRow, presence_penalty));
static_assert(sizeof(cuda::LogitAdjustment) == sizeof(LogitAdjustment) &&
              offsetof(cuda::LogitAdjustment, banned) == offsetof(LogitAdjustment, banned));
static_assert(sizeof(cuda::MaxPair) == sizeof(MaxPair));

}  // namespace

// Few rows: the product keeps their maximum. Else tiles of the vocabulary: their f32 logits stay in
// the L2 cache between the product and the maximum.
void CudaBackend::lm_head_max(Stream stream, MaxPair* out, const Matrix& x, const Weight& weight,
                              int32_t first_id) {
  MPINFER_CHECK(x.cols == weight.in_features && x.dtype == weight.dtype,
                "{} columns times a weight of {}", x.cols, weight.in_features);
  if (x.rows == 0) return;
  const cuda::ProductArgs args = product_of(x, weight);
  if (takes_few_rows(args)) {
    auto* parts = static_cast<cuda::MaxPair*>(logits_tile_);
    const int count =
        cuda::product_max_hopper(stream_of(stream), args, parts, first_id, num_processors_);
    if (count > 0) {
      cuda::merge_parts(stream_of(stream), reinterpret_cast<cuda::MaxPair*>(out), parts, count,
                        x.rows, first_id);
      return check_launch();
    }
  }
  constexpr int64_t kLeastTile = 1024;
  constexpr int64_t kMostRows = kLogitsTileBytes / 4 / kLeastTile;
  for (int64_t row = 0; row < x.rows; row += kMostRows) {
    const int64_t rows = std::min(kMostRows, x.rows - row);
    // One width for a whole range of rows: each width is a product whose kernel has to be chosen.
    const int64_t at_most = options_.deterministic
                                ? kMostRows
                                : static_cast<int64_t>(std::bit_ceil(
                                      static_cast<uint64_t>(std::max<int64_t>(rows, 64))));
    const int64_t tile = std::max(kLeastTile, kLogitsTileBytes / 4 / at_most);
    for (int64_t begin = 0; begin < weight.out_features; begin += tile) {
      const int64_t cols = std::min(tile, weight.out_features - begin);
      const Matrix logits{logits_tile_, DType::kF32, rows, cols, (cols + 3) / 4 * 4};
      gemm_->multiply(stream_of(stream), gemm_workspace(stream), logits, x.slice_rows(row, rows),
                      static_cast<const char*>(weight.data) +
                          begin * weight.in_features * size_of(weight.dtype),
                      1.0F);
      cuda::max_tile(stream_of(stream), reinterpret_cast<cuda::MaxPair*>(out + row),
                     static_cast<const float*>(logits.data), logits.stride, rows, cols,
                     checked_cast<int32_t>(first_id + begin), begin == 0);
    }
  }
  check_launch();
}

void CudaBackend::merge_max(Stream stream, int32_t* ids, const MaxPair* gathered, int32_t parts,
                            int64_t rows) {
  if (rows == 0) return;
  cuda::merge_max(stream_of(stream), ids, reinterpret_cast<const cuda::MaxPair*>(gathered), parts,
                  rows);
  check_launch();
}

void CudaBackend::lm_head_logits(Stream stream, const Matrix& logits, const Matrix& x,
                                 const Weight& weight, float scale) {
  MPINFER_CHECK(logits.rows == x.rows && logits.cols == weight.out_features &&
                    x.cols == weight.in_features && logits.dtype == DType::kF32,
                "[{}, {}] = [{}, {}] times [{}, {}] transposed", logits.rows, logits.cols, x.rows,
                x.cols, weight.out_features, weight.in_features);
  if (x.rows == 0 || multiply_few(stream, logits, x, weight, nullptr, scale)) return;
  gemm_->multiply(stream_of(stream), gemm_workspace(stream), logits, x, weight.data, scale);
}

void CudaBackend::mask_logits(Stream stream, const Matrix& logits, const uint32_t* masks,
                              const int32_t* row_masks) {
  MPINFER_CHECK(logits.dtype == DType::kF32, "logits of {}", name_of(logits.dtype));
  if (logits.rows == 0) return;
  cuda::mask_logits(stream_of(stream), logits.row<float>(0), logits.stride, logits.rows,
                    checked_cast<int32_t>(logits.cols), masks, row_masks);
  check_launch();
}

void CudaBackend::log_softmax_top_k(Stream stream, LogprobEntry* out, const Matrix& logits,
                                    const int32_t* ids, int32_t num_top) {
  MPINFER_CHECK(logits.dtype == DType::kF32, "logits of {}", name_of(logits.dtype));
  MPINFER_CHECK(num_top >= 0 && num_top <= kMaxTopLogprobs && num_top <= logits.cols,
                "{} of {} tokens", num_top, logits.cols);
  if (logits.rows == 0) return;
  cuda::log_softmax_top_k(stream_of(stream), reinterpret_cast<cuda::LogprobEntry*>(out),
                          logits.row<float>(0), logits.stride, logits.rows,
                          checked_cast<int32_t>(logits.cols), ids, num_top);
  check_launch();
}

void CudaBackend::sample(Stream stream, int32_t* ids, const SampleBatch& batch) {
  MPINFER_CHECK(batch.logits.dtype == DType::kF32, "logits of {}", name_of(batch.logits.dtype));
  if (batch.logits.rows == 0) return;
  cuda::sample(stream_of(stream), ids, batch.logits.row<float>(0), batch.logits.stride,
               batch.logits.rows, checked_cast<int32_t>(batch.logits.cols),
               reinterpret_cast<const cuda::SampleRow*>(batch.rows), batch.adjustment_offsets,
               reinterpret_cast<const cuda::LogitAdjustment*>(batch.adjustments));
  check_launch();
}

}  // namespace mpinfer::backend
