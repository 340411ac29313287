// The CPU backend: f32 activations and KV, f32 arithmetic over bf16, f16 or f32 weights. Every
// output element is summed in one fixed order, so a row's result has the same bits in any batch,
// with any number of threads, at any block size and chunking, as long as the SIMD target is the
// same. Ops run when called; streams are all the same. One thread at a time may call it. Buffers
// must be gone before their backend.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lib/backend/backend.h"

namespace mpinfer::backend {

struct CpuOptions {
  int threads = 1;
  std::string simd_target = {};  // a name from simd_targets(); empty: the best one
};

// SIMD targets of this build that this CPU has, best first; never empty. Ranks that differ take the
// first name that all of them list.
std::vector<std::string> simd_targets();
std::string best_simd_target();

// Throws Error(kUsage) for threads < 1 or a target this CPU lacks, naming the ones it has.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace mpinfer::backend
