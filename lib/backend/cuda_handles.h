// Checks of CUDA and cuBLASLt calls. Anything but exhausted memory has poisoned the process: the
// error ends the run.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "lib/core/error.h"

namespace mpinfer::backend {

inline void cuda_check(cudaError_t status, const char* call,
                       std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  throw Error(
      status == cudaErrorMemoryAllocation ? ExitCode::kOutOfResource : ExitCode::kPeerFailure,
      fmt::format("{}: {} ({})", call, cudaGetErrorString(status), cudaGetErrorName(status)),
      where);
}

inline void cublas_check(cublasStatus_t status, const char* call,
                         std::source_location where = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ExitCode::kPeerFailure, fmt::format("{}: {}", call, cublasLtGetStatusString(status)),
              where);
}

}  // namespace mpinfer::backend

#define MPINFER_CUDA(call) ::mpinfer::backend::cuda_check((call), #call)
#define MPINFER_CUBLAS(call) ::mpinfer::backend::cublas_check((call), #call)
