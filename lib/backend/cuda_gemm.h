// Matrix products by cuBLASLt. For each (sizes, types, alignment) and bucket of rows the library's
// candidates are timed on the first product of that kind; the fastest is kept, also in a file of
// the user's cache directory ($XDG_CACHE_HOME or ~/.cache, mpinfer/), so that later runs on the
// same GPU and library time nothing. Deterministic: one candidate without split sums for every
// number of rows, so that a row's bits do not depend on its batch.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "lib/backend/backend.h"

namespace mpinfer::backend {

class CudaGemm {
 public:
  // gpu: name of the device, part of the cache file's name.
  CudaGemm(bool deterministic, const std::string& gpu);
  ~CudaGemm();
  CudaGemm(const CudaGemm&) = delete;
  CudaGemm& operator=(const CudaGemm&) = delete;

  // Products of one shape, each so many elements behind the one before.
  struct Batch {
    int32_t count = 1;
    int64_t out_step = 0;
    int64_t a_step = 0;
    int64_t weight_step = 0;
  };
  // out[rows, n] = scale * a[rows, k] · weight[n, k]ᵀ; a and weight of one type, out of that type
  // or f32.
  void multiply(cudaStream_t stream, void* workspace, const Matrix& out, const Matrix& a,
                const void* weight, float scale, const Batch& batch);
  void multiply(cudaStream_t stream, void* workspace, const Matrix& out, const Matrix& a,
                const void* weight, float scale) {
    multiply(stream, workspace, out, a, weight, scale, {});
  }

  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // one for each stream

 private:
  // n, k, bucket of rows, products at once, types, alignment of a | weight | out in bytes
  using Key = std::tuple<int64_t, int64_t, int64_t, int32_t, DType, DType, uint32_t>;
  struct Problem;

  void read_cache();
  void write_cache() const noexcept;
  cublasLtMatmulAlgo_t choose(cudaStream_t stream, void* workspace, const Problem& problem);

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  bool deterministic_;
  std::string cache_path_;  // empty: none
  bool grown_ = false;      // since the file was read
  std::map<Key, cublasLtMatmulAlgo_t> chosen_;
};

}  // namespace mpinfer::backend
