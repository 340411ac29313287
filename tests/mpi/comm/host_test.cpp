// Host data: the verbs of HostComm, the shared counter, the mesh and the start-up agreement.
#include <set>

#include "lib/comm/affinity.h"
#include "lib/comm/mesh.h"
#include "lib/comm/mpi.h"
#include "lib/core/error.h"
#include "tests/support/catch.h"

namespace mpinfer::comm {
namespace {

std::string piece_of(int rank) {
  return std::string(static_cast<size_t>(rank * 1000 % 4096), static_cast<char>('a' + rank));
}

template <class Ready>
void wait_for(Ready ready) {
  while (!ready()) {
  }
}

}  // namespace

TEST_CASE("gathers, scatters and broadcasts of uneven bytes", "[host]") {
  const HostComm world = HostComm::world();
  const auto all = world.all_gather(piece_of(world.rank()));
  CHECK(all.size() == static_cast<size_t>(world.size()));
  for (int r = 0; r < world.size(); ++r) CHECK(all[static_cast<size_t>(r)] == piece_of(r));

  const int root = world.size() - 1;
  const auto gathered = world.gather(piece_of(world.rank()), root);
  CHECK(gathered.size() == (world.rank() == root ? static_cast<size_t>(world.size()) : 0));
  std::vector<std::string> parts;
  for (int r = 0; r < world.size(); ++r) parts.push_back(piece_of(r));
  CHECK(world.scatter(world.rank() == root ? parts : std::vector<std::string>(), root) ==
        piece_of(world.rank()));

  std::vector<int64_t> sizes;
  std::string expected;
  for (int r = 0; r < world.size(); ++r) {
    sizes.push_back(static_cast<int64_t>(piece_of(r).size()));
    expected += piece_of(r);
  }
  const std::string mine = piece_of(world.rank());
  std::string buffer;
  const std::string_view round = world.gather_v(mine, sizes, 0, &buffer);
  if (world.rank() == 0) CHECK(round == expected);

  std::string text = world.rank() == 0 ? std::string(100000, 'x') : "";
  world.broadcast(text, 0);
  CHECK(text == std::string(100000, 'x'));
  text.clear();
  world.broadcast(text, 0);
  CHECK(text.empty());
  CHECK(world.all_reduce_sum(world.rank()) == world.size() * (world.size() - 1) / 2);
  CHECK(world.all_reduce_min(world.rank()) == 0);
  CHECK(world.all_reduce_max(world.rank()) == world.size() - 1);
}

TEST_CASE("a round beyond 31 bits is refused before it is sent", "[host]") {
  const HostComm world = HostComm::world();
  if (world.size() == 1) return;
  const std::vector<int64_t> sizes(static_cast<size_t>(world.size()), int64_t{1} << 31);
  std::string buffer;
  CHECK_THROWS_AS(world.gather_v("", sizes, 0, &buffer), Error);
}

TEST_CASE("many broadcasts under way at once arrive in order", "[host]") {
  const HostComm world = HostComm::world();
  constexpr int kCount = 50;
  std::vector<int64_t> values(kCount, -1);
  std::vector<std::unique_ptr<HostRequest>> requests;
  for (int i = 0; i < kCount; ++i) {
    if (world.rank() == 0) values[static_cast<size_t>(i)] = i * i;
    requests.push_back(world.start_broadcast(&values[static_cast<size_t>(i)], sizeof(int64_t), 0));
  }
  for (auto& request : requests) wait_for([&] { return request->test(); });
  for (int i = 0; i < kCount; ++i) CHECK(values[static_cast<size_t>(i)] == i * i);
}

TEST_CASE("messages from anyone", "[host]") {
  const HostComm world = HostComm::world();
  if (world.size() == 1) return;
  constexpr int kTag = 5;
  const std::string mine = piece_of(world.rank());
  if (world.rank() != 0) {
    const auto request = world.start_send(mine.data(), static_cast<int64_t>(mine.size()), 0, kTag);
    wait_for([&] { return request->test(); });
  } else {
    std::set<int> sources;
    HostComm::Message message;
    while (static_cast<int>(sources.size()) + 1 < world.size()) {
      if (!world.try_receive(&message, kTag)) continue;
      CHECK(message.bytes == piece_of(message.source));
      sources.insert(message.source);
    }
  }
  world.barrier();
}

TEST_CASE("a shared counter hands out every number once", "[host]") {
  const HostComm world = HostComm::world();
  constexpr int64_t kEach = 200;
  std::string taken;
  {
    SharedCounter counter(world, 0);
    for (int64_t i = 0; i < kEach; ++i) {
      taken += std::to_string(counter.fetch_and_add(1)) + " ";
      if (world.rank() == 0) counter.poll();
    }
    const auto done = world.start_broadcast(nullptr, 0, 0);
    wait_for([&] {
      counter.poll();
      return done->test();
    });
    world.barrier();
  }
  std::set<int64_t> numbers;
  for (const std::string& list : world.all_gather(taken)) {
    for (size_t at = 0; at < list.size(); at = list.find(' ', at) + 1)
      numbers.insert(std::stoll(list.substr(at)));
  }
  CHECK(static_cast<int64_t>(numbers.size()) == kEach * world.size());
  CHECK(*numbers.rbegin() == kEach * world.size() - 1);
}

TEST_CASE("coordinates and axes of every layout", "[host]") {
  const HostComm world = HostComm::world();
  for (int tp = 1; tp <= world.size(); ++tp) {
    for (int pp = 1; pp * tp <= world.size(); ++pp) {
      if (world.size() % (tp * pp) != 0) continue;
      const Layout layout{world.size() / tp / pp, pp, tp, 1};
      const Mesh mesh = make_mesh(world.duplicate(), layout);
      const Coordinates at = mesh.at;
      CHECK(world.rank() == (at.dp * pp + at.pp) * tp + at.tp);
      CHECK(mesh.tp.size() == tp);
      CHECK(mesh.tp.rank() == at.tp);
      CHECK(mesh.pp.size() == pp);
      CHECK(mesh.pp.rank() == at.pp);
      CHECK(mesh.replica.size() == pp * tp);
      CHECK((mesh.replica.rank() == 0) == mesh.leader());
      CHECK(mesh.leaders.size() == (mesh.leader() ? layout.dp : 1));
      CHECK(mesh.local_size == world.size());
      CHECK(mesh.num_hosts == 1);
    }
  }
}

TEST_CASE("a rank that differs is named with field and values, on every rank", "[host]") {
  const HostComm world = HostComm::world();
  require_equal(world, {{"binary", "same"}, {"model", "same"}});
  if (world.size() == 1) return;
  const std::string model = world.rank() == world.size() - 1 ? "other" : "same";
  try {
    require_equal(world, {{"binary", "same"}, {"model", model}});
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.exit_code() == ExitCode::kUsage);
    const std::string what = error.what();
    CHECK(what.find("rank " + std::to_string(world.size() - 1)) != std::string::npos);
    CHECK(what.find("model: other against same") != std::string::npos);
    CHECK(what.find(host_name()) != std::string::npos);
  }
}

TEST_CASE("ranks of a host share its cores", "[host]") {
  const HostComm world = HostComm::world();
  const CoreShare share = take_core_share(world.split_host());
  CHECK(share.num_cores >= 1);
  CHECK(share.description.find("cores ") == 0);
}

}  // namespace mpinfer::comm
