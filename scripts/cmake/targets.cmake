# mpinfer_library(<name> SOURCES ... LINKS ...) and the flags of our own code.
# GCC 12 warns of overlapping copies inside std::string that are none (its bug 105651): -Wno-restrict.
add_library(mpinfer_flags INTERFACE)
target_include_directories(mpinfer_flags INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_options(mpinfer_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion
  -Wold-style-cast -Wnon-virtual-dtor -Wno-restrict -Werror -fstack-protector-strong>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Debug>>:-D_GLIBCXX_ASSERTIONS>)
target_link_options(mpinfer_flags INTERFACE -Wl,-z,relro,-z,now)
if(MPINFER_SANITIZE)
  target_compile_options(mpinfer_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
    -Wno-maybe-uninitialized>)
  target_link_options(mpinfer_flags INTERFACE -fsanitize=address,undefined)
endif()

function(mpinfer_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC mpinfer_flags ${ARG_LINKS})
endfunction()
