// Main of the tests that run under mpirun: the verdict is shared, so a failure on any rank fails
// the run on all. Works as a world of one without mpirun too.
#include <cstdio>

#include "lib/comm/mpi.h"
#include "tests/support/runner.h"

int main(int argc, char** argv) {
  mpinfer::comm::MpiSession session(&argc, &argv);
  const auto world = mpinfer::comm::HostComm::world();
  const int failed = mpinfer::tests::run_tests(argc, argv);
  const int64_t failed_ranks = world.all_reduce_sum(failed != 0 ? 1 : 0);
  if (world.rank() == 0 && failed_ranks > 0) {
    std::fprintf(stderr, "%lld of %d ranks failed\n", static_cast<long long>(failed_ranks),
                 world.size());
  }
  return failed_ranks > 0 ? 1 : 0;
}
