// What was freed and lies between what is used goes back to the system: after the one phase that
// held a record a row, the next one needs the pages for something else.
#pragma once

#include <malloc.h>

namespace mpinfer {

inline void return_free_memory() {
  ::malloc_trim(0);
}

}  // namespace mpinfer
