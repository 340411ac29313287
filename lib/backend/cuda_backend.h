// The CUDA backend, or its absence: no_cuda.cpp stands in where the build has no CUDA toolkit.
#pragma once

#include <memory>

#include "lib/backend/backend.h"

namespace mpinfer::backend {

struct CudaOptions {
  int device = 0;                         // CUDA device of this process
  DType activation_dtype = DType::kBF16;  // kBF16, kF16 or kF32
  // A row's bits depend on its own tokens alone, at the cost of speed: no kernel is chosen by the
  // size of a batch.
  bool deterministic = false;
};

// Devices this process sees; 0 without a driver or in a build without CUDA. Never throws.
int cuda_device_count();

// Of the toolkit, such as "13.0"; empty in a build without CUDA.
std::string cuda_version();

// Throws Error(kUsage) in a build without CUDA, Error(kPeerFailure) when the device does not start.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

// The cudaStream_t behind a stream of a CUDA backend, for NCCL. Not there in a build without CUDA.
void* cuda_stream(Backend& backend, Stream stream);

}  // namespace mpinfer::backend
