// Main of the tests that need no MPI. MPI tests have their own main, which all-reduces the verdict.
#include "tests/support/runner.h"

int main(int argc, char** argv) {
  return mpinfer::tests::run_tests(argc, argv);
}
