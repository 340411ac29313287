// Matrix products by cuBLASLt. For each (sizes, types, alignment) and bucket of rows the library's
// candidates are timed on the first product of that kind, behind a kernel that keeps the queue
// full, and the fastest is kept. Rows that are met often are timed again in narrow buckets of 16 or
// 32: tiles fit them. What was chosen is also in a file of the user's cache directory
// ($XDG_CACHE_HOME or ~/.cache, mpinfer/), so that later runs on the same GPU and library time
// nothing. The kernels of that file are brought onto the GPU by a thread of its own while weights
// are read: each takes 3-4 ms when it is first used, and a run uses a hundred. Deterministic: one
// candidate without split sums for every number of rows, so that a row's bits do not depend on its
// batch.
#pragma once

#include <cublasLt.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <tuple>

#include "lib/backend/backend.h"

namespace mpinfer::backend {

class CudaGemm {
 public:
  // Of the current device. gpu: its name, part of the cache file's name.
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

  // Products with weights of this shape are coming.
  void expect(int64_t n, int64_t k);
  // Until their kernels are there. A kernel that comes in while another waits for a peer GPU would
  // wait for that one, and with it the thread that lets the peer go on.
  void wait_for_expected();

  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // one for each stream

 private:
  // n, k, bucket of rows, whether it is a narrow one, products at once, types, alignment of a |
  // weight | out in bytes
  using Key = std::tuple<int64_t, int64_t, int64_t, bool, int32_t, DType, DType, uint32_t>;
  struct Problem;

  void read_cache(const std::string& gpu);
  struct Kernel {
    DType in;
    DType out;
    cublasLtMatmulAlgo_t algo;
  };
  void preload(int device) noexcept;
  void bring_in(cudaStream_t stream, const Kernel& kernel) const noexcept;
  void write_cache() const noexcept;
  bool in_use(const cublasLtMatmulAlgo_t& algo, DType in, DType out) const;
  // close: how much slower a kernel that is in use already may be.
  cublasLtMatmulAlgo_t choose(cudaStream_t stream, void* workspace, const Problem& problem,
                              float close);

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  bool deterministic_;
  std::string cache_path_;  // empty: none
  bool grown_ = false;      // since the file was read
  std::map<Key, cublasLtMatmulAlgo_t> chosen_;
  std::map<Key, int> uses_;  // of narrow buckets without a choice
  std::set<std::pair<int64_t, int64_t>> expected_;
  std::set<std::tuple<DType, DType, std::string>> seen_;  // kernels by the algorithm's bytes
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Kernel> to_preload_;  // the first one is being loaded
  bool stopped_ = false;
  void* preload_memory_ = nullptr;
  std::thread preloader_;  // where earlier runs have chosen something
};

}  // namespace mpinfer::backend
