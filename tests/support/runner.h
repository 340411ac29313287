// Runs the tests of a program. Catch2 2's runner takes half a minute to compile: it is built once,
// the mains of the programs are small.
#pragma once

namespace mpinfer::tests {

// Catch2's command line; gives the number of failed tests.
int run_tests(int argc, char** argv);

}  // namespace mpinfer::tests
