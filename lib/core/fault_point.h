// Named places where a test may make the program die, stop or wait, or a call of the system fail.
// The program itself links the empty one of fault_point.cpp; test programs bring their own
// (tests/support/armed_fault_points).
#pragma once

namespace mpinfer {

inline constexpr int kShortWrite = -1;

// 0: nothing happens here. An errno: the call behind this place is to fail with it. kShortWrite: a
// write is to end halfway.
int fault_point(const char* name);

}  // namespace mpinfer
