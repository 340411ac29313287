// Warpgroup products of sm_90a (PTX ISA, "wgmma"): operands in shared memory in the 128-byte
// swizzle, described by 64-bit words. A panel is rows of 128 bytes; 16-byte chunk c of row r stands
// at chunk c ^ (r % 8); eight rows are 1,024 bytes, to which panels are aligned.
#pragma once

#include "kernels/cuda/device/mma.cuh"

namespace mpinfer::kernels::cuda {

// leading: bytes between panels (operands whose columns stand together), step: bytes between groups
// of eight rows.
__device__ inline uint64_t operand(uint32_t address, uint32_t leading, uint32_t step) {
  return static_cast<uint64_t>((address & 0x3FFFFU) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(step >> 4) << 32 |
         uint64_t{1} << 62;
}

// The same operand so many bytes further on.
__device__ inline uint64_t shifted(uint64_t operand, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(operand) + (bytes >> 4);  // never leaves its 14 bits
  return (operand & 0xffffffff00000000U) | low;
}

__device__ inline void warpgroup_arrive() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kLeft>
__device__ inline void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// The values of d are those after the last wait: no use of them moves before it.
template <int N>
__device__ inline void warpgroup_settle(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[n][e])::"memory");
  }
}

// Shared memory that this thread wrote becomes visible to the tensor cores (before the barrier).
__device__ inline void fence_shared_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The accumulators of a product: their places in the instruction, and the values behind them.
#define MPINFER_PLACES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MPINFER_PLACES_16 MPINFER_PLACES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MPINFER_PLACES_24 MPINFER_PLACES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define MPINFER_PLACES_32 MPINFER_PLACES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MPINFER_PLACES_40 MPINFER_PLACES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MPINFER_PLACES_48 MPINFER_PLACES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MPINFER_PLACES_56 MPINFER_PLACES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define MPINFER_PLACES_64 MPINFER_PLACES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define MPINFER_PLACES_72 MPINFER_PLACES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define MPINFER_PLACES_80 MPINFER_PLACES_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define MPINFER_PLACES_88 MPINFER_PLACES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define MPINFER_PLACES_96 MPINFER_PLACES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define MPINFER_PLACES_104 MPINFER_PLACES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define MPINFER_PLACES_112 MPINFER_PLACES_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define MPINFER_PLACES_120 MPINFER_PLACES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define MPINFER_PLACES_128 MPINFER_PLACES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define MPINFER_GROUP(how, d, n) how(d[n][0]), how(d[n][1]), how(d[n][2]), how(d[n][3])
#define MPINFER_GROUPS_2(how, d, n) MPINFER_GROUP(how, d, n), MPINFER_GROUP(how, d, n + 1)
#define MPINFER_GROUPS_4(how, d, n) MPINFER_GROUPS_2(how, d, n), MPINFER_GROUPS_2(how, d, n + 2)
#define MPINFER_GROUPS_6(how, d, n) MPINFER_GROUPS_4(how, d, n), MPINFER_GROUPS_2(how, d, n + 4)
#define MPINFER_GROUPS_8(how, d, n) MPINFER_GROUPS_4(how, d, n), MPINFER_GROUPS_4(how, d, n + 4)
#define MPINFER_GROUPS_10(how, d, n) MPINFER_GROUPS_8(how, d, n), MPINFER_GROUPS_2(how, d, n + 8)
#define MPINFER_GROUPS_12(how, d, n) MPINFER_GROUPS_8(how, d, n), MPINFER_GROUPS_4(how, d, n + 8)
#define MPINFER_GROUPS_14(how, d, n) MPINFER_GROUPS_8(how, d, n), MPINFER_GROUPS_6(how, d, n + 8)
#define MPINFER_GROUPS_16(how, d, n) MPINFER_GROUPS_8(how, d, n), MPINFER_GROUPS_8(how, d, n + 8)
#define MPINFER_GROUPS_18(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_2(how, d, n + 16)
#define MPINFER_GROUPS_20(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_4(how, d, n + 16)
#define MPINFER_GROUPS_22(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_6(how, d, n + 16)
#define MPINFER_GROUPS_24(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_8(how, d, n + 16)
#define MPINFER_GROUPS_26(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_10(how, d, n + 16)
#define MPINFER_GROUPS_28(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_12(how, d, n + 16)
#define MPINFER_GROUPS_30(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_14(how, d, n + 16)
#define MPINFER_GROUPS_32(how, d, n) MPINFER_GROUPS_16(how, d, n), MPINFER_GROUPS_16(how, d, n + 16)

// d (+)= a · bᵀ: a 64×16 and b columns×16, both in shared memory, k together. a_at, b_at, use_at:
// the places of a, b and accumulate, behind the accumulators.
#define MPINFER_MULTIPLY_SHARED(columns, type, places, a_at, b_at, use_at, ...)                 \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" use_at                                      \
               ", 0;\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" places \
               "}, %" a_at ", %" b_at ", p, 1, 1, 0, 0;\n}\n"                                   \
               : __VA_ARGS__                                                                    \
               : "l"(a), "l"(b), "r"(accumulate ? 1 : 0))

// d += a · b: a 64×16 in registers (each warp its 16 rows, as in mma), b 16×columns in shared
// memory, columns together. a_at: the places of a's four words.
#define MPINFER_MULTIPLY_REGISTERS(columns, type, places, a_at, b_at, use_at, ...)              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" use_at                                      \
               ", 0;\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" places \
               "}, {" a_at "}, %" b_at ", p, 1, 1, 1;\n}\n"                                     \
               : __VA_ARGS__                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

// Of 8 · N rows or columns of b. kFresh: what d holds is not read, and no register is kept for it
// before.
template <class T, bool kFresh = false, int N>
__device__ inline void warpgroup_multiply(float (&d)[N][4], uint64_t a, uint64_t b,
                                          bool accumulate) {
#define MPINFER_CASE_OF(how, type, groups, columns, places, a_at, b_at, use_at) \
  MPINFER_MULTIPLY_SHARED(columns, type, places, a_at, b_at, use_at,            \
                          MPINFER_GROUPS_##groups(how, d, 0))
#define MPINFER_CASE(groups, ...)                                        \
  else if constexpr (N == groups && std::is_same_v<T, bf16> && kFresh) { \
    MPINFER_CASE_OF("=f", "bf16", groups, __VA_ARGS__);                  \
  }                                                                      \
  else if constexpr (N == groups && std::is_same_v<T, bf16>) {           \
    MPINFER_CASE_OF("+f", "bf16", groups, __VA_ARGS__);                  \
  }                                                                      \
  else if constexpr (N == groups && kFresh) {                            \
    MPINFER_CASE_OF("=f", "f16", groups, __VA_ARGS__);                   \
  }                                                                      \
  else if constexpr (N == groups) {                                      \
    MPINFER_CASE_OF("+f", "f16", groups, __VA_ARGS__);                   \
  }
  if constexpr (N == 0) {
  }
  MPINFER_CASE(2, "16", MPINFER_PLACES_8, "8", "9", "10")
  MPINFER_CASE(4, "32", MPINFER_PLACES_16, "16", "17", "18")
  MPINFER_CASE(6, "48", MPINFER_PLACES_24, "24", "25", "26")
  MPINFER_CASE(8, "64", MPINFER_PLACES_32, "32", "33", "34")
  MPINFER_CASE(10, "80", MPINFER_PLACES_40, "40", "41", "42")
  MPINFER_CASE(12, "96", MPINFER_PLACES_48, "48", "49", "50")
  MPINFER_CASE(14, "112", MPINFER_PLACES_56, "56", "57", "58")
  MPINFER_CASE(16, "128", MPINFER_PLACES_64, "64", "65", "66")
  MPINFER_CASE(18, "144", MPINFER_PLACES_72, "72", "73", "74")
  MPINFER_CASE(20, "160", MPINFER_PLACES_80, "80", "81", "82")
  MPINFER_CASE(22, "176", MPINFER_PLACES_88, "88", "89", "90")
  MPINFER_CASE(24, "192", MPINFER_PLACES_96, "96", "97", "98")
  MPINFER_CASE(26, "208", MPINFER_PLACES_104, "104", "105", "106")
  MPINFER_CASE(28, "224", MPINFER_PLACES_112, "112", "113", "114")
  MPINFER_CASE(30, "240", MPINFER_PLACES_120, "120", "121", "122")
  MPINFER_CASE(32, "256", MPINFER_PLACES_128, "128", "129", "130")
  else {
    static_assert(N == 0, "no product of this width");
  }
#undef MPINFER_CASE
#undef MPINFER_CASE_OF
}

template <class T>
__device__ inline void warpgroup_multiply(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, bf16>) {
    MPINFER_MULTIPLY_REGISTERS("64", "bf16", MPINFER_PLACES_32, "%32, %33, %34, %35", "36", "37",
                               MPINFER_GROUPS_8("+f", d, 0));
  } else {
    MPINFER_MULTIPLY_REGISTERS("64", "f16", MPINFER_PLACES_32, "%32, %33, %34, %35", "36", "37",
                               MPINFER_GROUPS_8("+f", d, 0));
  }
}

template <class T>
__device__ inline void warpgroup_multiply(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, bf16>) {
    MPINFER_MULTIPLY_REGISTERS("128", "bf16", MPINFER_PLACES_64, "%64, %65, %66, %67", "68", "69",
                               MPINFER_GROUPS_16("+f", d, 0));
  } else {
    MPINFER_MULTIPLY_REGISTERS("128", "f16", MPINFER_PLACES_64, "%64, %65, %66, %67", "68", "69",
                               MPINFER_GROUPS_16("+f", d, 0));
  }
}

#undef MPINFER_MULTIPLY_REGISTERS
#undef MPINFER_MULTIPLY_SHARED
#undef MPINFER_GROUPS_32
#undef MPINFER_GROUPS_30
#undef MPINFER_GROUPS_28
#undef MPINFER_GROUPS_26
#undef MPINFER_GROUPS_24
#undef MPINFER_GROUPS_22
#undef MPINFER_GROUPS_20
#undef MPINFER_GROUPS_18
#undef MPINFER_GROUPS_16
#undef MPINFER_GROUPS_14
#undef MPINFER_GROUPS_12
#undef MPINFER_GROUPS_10
#undef MPINFER_GROUPS_8
#undef MPINFER_GROUPS_6
#undef MPINFER_GROUPS_4
#undef MPINFER_GROUPS_2
#undef MPINFER_GROUP
#undef MPINFER_PLACES_128
#undef MPINFER_PLACES_120
#undef MPINFER_PLACES_112
#undef MPINFER_PLACES_104
#undef MPINFER_PLACES_96
#undef MPINFER_PLACES_88
#undef MPINFER_PLACES_80
#undef MPINFER_PLACES_72
#undef MPINFER_PLACES_64
#undef MPINFER_PLACES_56
#undef MPINFER_PLACES_48
#undef MPINFER_PLACES_40
#undef MPINFER_PLACES_32
#undef MPINFER_PLACES_24
#undef MPINFER_PLACES_16
#undef MPINFER_PLACES_8

// Four lanes hold the columns of a row two by two; lane q gets the whole of group first + q.
// words[g]: this lane's word of group g.
__device__ inline void transpose_words(uint32_t (&words)[4], int lane) {
  const bool high = (lane & 2) != 0;
  const bool odd = (lane & 1) != 0;
  // Groups 0, 1 go to lanes 0, 1; groups 2, 3 to lanes 2, 3.
  const uint32_t give0 = high ? words[0] : words[2];
  const uint32_t give1 = high ? words[1] : words[3];
  const uint32_t keep0 = high ? words[2] : words[0];
  const uint32_t keep1 = high ? words[3] : words[1];
  const uint32_t got0 = __shfl_xor_sync(0xffffffffU, give0, 2);
  const uint32_t got1 = __shfl_xor_sync(0xffffffffU, give1, 2);
  // keep*: words of this pair of lanes; got*: of the other pair.
  const uint32_t mine = odd ? keep1 : keep0;
  const uint32_t others = odd ? got1 : got0;
  const uint32_t next_mine = __shfl_xor_sync(0xffffffffU, odd ? keep0 : keep1, 1);
  const uint32_t next_others = __shfl_xor_sync(0xffffffffU, odd ? got0 : got1, 1);
  const uint32_t low_pair0 = high ? others : mine;
  const uint32_t low_pair1 = high ? next_others : next_mine;
  const uint32_t high_pair0 = high ? mine : others;
  const uint32_t high_pair1 = high ? next_mine : next_others;
  words[0] = odd ? low_pair1 : low_pair0;
  words[1] = odd ? low_pair0 : low_pair1;
  words[2] = odd ? high_pair1 : high_pair0;
  words[3] = odd ? high_pair0 : high_pair1;
}

}  // namespace mpinfer::kernels::cuda
