// Names of threads, for top -H, debuggers and scripts/bench/durability; 15 bytes at most.
#pragma once

#include <pthread.h>

namespace mpinfer {

inline void name_this_thread(const char* name) {
  ::pthread_setname_np(::pthread_self(), name);
}

}  // namespace mpinfer
