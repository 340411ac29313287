// Named places where a test may make the program die, stop or wait. The program itself links the
// empty one of fault_point.cpp; test programs bring their own (tests/support/armed_fault_points).
#pragma once

namespace mpinfer {

void fault_point(const char* name);

}  // namespace mpinfer
