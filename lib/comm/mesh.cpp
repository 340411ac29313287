#include "lib/comm/mesh.h"

#include <set>

#include "lib/core/error.h"

namespace mpinfer::comm {

Mesh make_mesh(HostComm world, const Layout& layout) {
  MPINFER_CHECK(layout.world() == world.size(), "layout {} x {} x {} in a world of {}", layout.dp,
                layout.pp, layout.tp, world.size());
  const Coordinates at = coordinates_of(world.rank(), layout);
  const HostComm host = world.split_host();
  std::set<std::string> hosts;
  for (auto& name : world.all_gather(host_name())) hosts.insert(std::move(name));

  Mesh mesh;
  mesh.layout = layout;
  mesh.at = at;
  mesh.replica = world.split(at.dp, at.pp * layout.tp + at.tp);
  mesh.tp = world.split(at.dp * layout.pp + at.pp, at.tp);
  mesh.pp = world.split(at.dp * layout.tp + at.tp, at.pp);
  // Experts are dealt to the ranks of one replica's stage (ep 1 and tp) or of its whole group.
  const int members = layout.members();
  const int group = at.dp / members;
  mesh.ep = world.split(group * layout.pp + at.pp, at.dp % members * layout.tp + at.tp);
  mesh.members = world.split((group * layout.pp + at.pp) * layout.tp + at.tp, at.dp % members);
  const bool leader = at.pp == 0 && at.tp == 0;
  HostComm leaders = world.split(leader ? 0 : 1 + world.rank(), at.dp);
  mesh.leaders = leader ? std::move(leaders) : HostComm();
  mesh.local_rank = host.rank();
  mesh.local_size = host.size();
  mesh.num_hosts = static_cast<int>(hosts.size());
  mesh.world = std::move(world);
  return mesh;
}

void require_equal(const HostComm& world, const std::vector<NamedValue>& values) {
  std::string packed;
  for (const auto& [name, value] : values) {
    packed += fmt::format("{}\n{}\n", name.size(), value.size()) + name + value;
  }
  const auto unpack = [](const std::string& bytes) {
    std::vector<NamedValue> out;
    for (size_t at = 0; at < bytes.size();) {
      const size_t first = bytes.find('\n', at);
      const size_t second = bytes.find('\n', first + 1);
      const size_t name_size = std::stoul(bytes.substr(at, first - at));
      const size_t value_size = std::stoul(bytes.substr(first + 1, second - first - 1));
      out.push_back(
          {bytes.substr(second + 1, name_size), bytes.substr(second + 1 + name_size, value_size)});
      at = second + 1 + name_size + value_size;
    }
    return out;
  };
  const auto everyone = world.all_gather(packed);
  const auto hosts = world.all_gather(host_name());
  const auto reference = unpack(everyone[0]);
  for (size_t rank = 1; rank < everyone.size(); ++rank) {
    if (everyone[rank] == everyone[0]) continue;
    const auto theirs = unpack(everyone[rank]);
    for (size_t i = 0; i < reference.size(); ++i) {
      const bool missing = i >= theirs.size() || theirs[i].name != reference[i].name;
      if (!missing && theirs[i].value == reference[i].value) continue;
      throw Error(ExitCode::kUsage, fmt::format("rank {} on {} differs from rank 0 on {} in {}: {} "
                                                "against {}; every rank must run the same "
                                                "binary on the same model and input",
                                                rank, hosts[rank], hosts[0], reference[i].name,
                                                missing ? std::string("(absent)") : theirs[i].value,
                                                reference[i].value));
    }
    throw Error(
        ExitCode::kUsage,
        fmt::format(
            "rank {} on {} sends more start-up values than rank 0 on {}: the binaries differ", rank,
            hosts[rank], hosts[0]));
  }
}

}  // namespace mpinfer::comm
