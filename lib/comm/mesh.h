// Mesh: the coordinates of this rank and the host communicators of its axes. rank = (dp·pp_size +
// pp)·tp_size + tp: TP neighbours are next to each other, so they share a node.
#pragma once

#include <string>
#include <vector>

#include "lib/comm/mpi.h"

namespace mpinfer::comm {

struct Layout {
  int dp = 1;
  int pp = 1;
  int tp = 1;
  int ep = 1;
  int world() const { return dp * pp * tp; }
  int replica() const { return pp * tp; }
  // Replicas of a lockstep group: those whose ranks share out experts.
  int members() const { return ep > tp ? ep / tp : 1; }
};

struct Coordinates {
  int dp = 0;
  int pp = 0;
  int tp = 0;
};

constexpr Coordinates coordinates_of(int rank, const Layout& layout) {
  return {rank / (layout.pp * layout.tp), rank / layout.tp % layout.pp, rank % layout.tp};
}

struct Mesh {
  Layout layout;
  Coordinates at;
  HostComm world;    // every rank
  HostComm replica;  // pp × tp ranks that generate together; rank 0 is the leader
  HostComm tp;       // ranks of one stage
  HostComm pp;       // same tp, all stages
  HostComm ep;       // ranks that share out a stage's experts: lockstep members × tp
  HostComm members;  // the same (pp, tp) in each replica of the lockstep group
  HostComm leaders;  // replica leaders by dp; size-1 dummy on other ranks
  int local_rank = 0;
  int local_size = 1;
  int num_hosts = 1;

  bool leader() const { return at.pp == 0 && at.tp == 0; }
};

// Collective over world. layout.world() must be the world's size (the planner has refused others).
Mesh make_mesh(HostComm world, const Layout& layout);

// Every rank's named values must equal rank 0's. Throws Error(kUsage) naming rank, host, field and
// both values, on every rank alike. Collective.
struct NamedValue {
  std::string name;
  std::string value;
};
void require_equal(const HostComm& world, const std::vector<NamedValue>& values);

}  // namespace mpinfer::comm
