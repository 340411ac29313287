// Choice of a SIMD target by name. Highway keeps the chosen target in the process; it is set only
// while a table is filled, so tables of several targets live side by side.
#include <hwy/highway.h>

#include <mutex>

#include "kernels/cpu/tables.h"

namespace mpinfer::kernels::cpu {
namespace {

std::vector<int64_t> compiled_targets() {
  std::vector<int64_t> targets;
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    targets.push_back(left & -left);
  }
  if (targets.empty()) targets.push_back(HWY_STATIC_TARGET);
  return targets;
}

}  // namespace

std::vector<std::string> simd_targets() {
  std::vector<std::string> names;
  for (const int64_t target : compiled_targets()) names.emplace_back(hwy::TargetName(target));
  return names;
}

KernelTable kernels_for(const std::string& name) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  std::string known;
  for (const int64_t target : compiled_targets()) {
    if (name == hwy::TargetName(target)) {
      KernelTable table;
      table.target = name;
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      fill_gemm(table);
      fill_attention(table);
      fill_elementwise(table);
      fill_sample(table);
      hwy::SetSupportedTargetsForTest(0);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return table;
    }
    known += known.empty() ? "" : ", ";
    known += hwy::TargetName(target);
  }
  throw Error(ExitCode::kUsage,
              fmt::format("SIMD target {} is not one of this CPU and build: {}", name, known));
}

}  // namespace mpinfer::kernels::cpu
