// mpinfer run: one start, and where the MPI library survives lost ranks another one for each time
// that some were lost. The journals hold what is done: the next start deals the rest to whole
// replicas of the living, as if the same command had been given for fewer ranks.
#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "apps/commands/commands.h"
#include "apps/commands/run_setup.h"
#include "apps/commands/run_start.h"
#include "apps/signals.h"
#include "lib/comm/ulfm.h"
#include "lib/core/error.h"
#include "lib/core/log.h"

namespace mpinfer::apps {
namespace {

using Clock = std::chrono::steady_clock;

// Running rows have this long after a drain: half of what the job leaves before its end.
double drain_seconds(const Options& options) {
  constexpr double kDefaultNotice = 180.0;
  return (options.stop_before > 0.0 ? options.stop_before : kDefaultNotice) / 2.0;
}

// --stop-before: drain that long before the job ends, cancel halfway.
void set_end_time(const Options& options, bool speaks, job::StopControl* stop) {
  if (options.stop_before <= 0.0) return;
  if (options.job.end_time == 0) {
    if (speaks) {
      spdlog::warn(
          "--stop-before: SLURM_JOB_END_TIME is not set (Slurm sets it from 23.02 on), so "
          "the end of the job is not known; SIGUSR1 drains as well");
    }
    return;
  }
  const auto end = std::chrono::system_clock::from_time_t(options.job.end_time);
  const auto left = end - std::chrono::system_clock::now();
  const auto before = std::chrono::milliseconds(static_cast<int64_t>(options.stop_before * 1e3));
  const auto now = Clock::now();
  stop->set_times(now + left - before, now + left - before / 2);
}

// Rows that are tied to a replica's number cannot go to fewer replicas, and without a directory
// nothing is kept that another start could go on from.
bool keeps_rows(const Options& options) {
  return options.num_shards == 1 && options.replica_sampling.empty() &&
         !run_directory(options).empty();
}

constexpr double kSecondsToNotice = 5.0;  // from a failed call to the launcher's word of a death

struct Member {
  int rank = 0;   // as the launcher started it
  int place = 0;  // in the world of the last start
  std::string host;
};

struct Group {  // the ranks of the next start
  comm::HostComm world;
  std::vector<Member> members;
  bool here = false;      // this rank is one of them
  comm::HostComm living;  // they and the ranks that are left over
};

// Of the survivors: the replicas (or lockstep groups of them) of unit ranks that lost nobody. Where
// each has lost somebody, one is made of what is left.
std::vector<Member> members_that_go_on(const std::vector<Member>& living, int unit) {
  std::vector<Member> chosen;
  for (const Member& member : living) {
    const auto whole = std::count_if(living.begin(), living.end(), [&](const Member& other) {
      return other.place / unit == member.place / unit;
    });
    if (whole == unit) chosen.push_back(member);
  }
  if (chosen.empty() && std::cmp_greater_equal(living.size(), unit)) {
    chosen.assign(living.begin(), living.begin() + unit);
  }
  return chosen;
}

// course.lost[first …] have just been lost; num_left go on.
std::string verdict(const Course& course, size_t first, bool opened, size_t num_left) {
  std::string text = "lost ";
  for (size_t i = first; i < course.lost.size(); ++i) {
    text += fmt::format("{}rank {} on {}", i == first ? "" : ", ", course.lost[i].rank,
                        course.lost[i].host);
  }
  if (!opened) return text + " before the run had begun";
  const comm::Layout& layout = course.layout;
  if (num_left == 0) {
    return text + fmt::format(
                      "; the ranks that are left are too few for a replica of {}; finished "
                      "rows are kept",
                      layout.replica() * layout.members());
  }
  return text + fmt::format("; going on with {} of {} replicas",
                            num_left / static_cast<size_t>(layout.replica()), layout.dp);
}

// Collective over the living ranks of world, some of which may die while they are here.
Group regroup(comm::HostComm world, std::vector<Member> members, const Course& course,
              double patience, double seconds, std::vector<job::LostRank>* lost) {
  const int unit = course.layout.replica() * course.layout.members();
  while (true) {
    comm::Survivors survivors = comm::survivors_of(world);
    std::vector<Member> living;
    for (const int rank : survivors.old_ranks) living.push_back(members[static_cast<size_t>(rank)]);
    for (const Member& member : members) {
      if (std::none_of(living.begin(), living.end(),
                       [&](const Member& other) { return other.rank == member.rank; })) {
        lost->push_back({.rank = member.rank, .host = member.host, .seconds = seconds});
      }
    }
    Group group;
    group.members = members_that_go_on(living, unit);
    const int me = living[static_cast<size_t>(survivors.world.rank())].rank;
    group.here = std::any_of(group.members.begin(), group.members.end(),
                             [&](const Member& member) { return member.rank == me; });
    bool split = false;
    try {
      group.world = survivors.world.split(group.here ? 1 : 0, survivors.world.rank());
      split = true;
    } catch (const Error&) {
      if (!comm::lost_ranks(survivors.world, kSecondsToNotice)) throw;
    }
    const bool stays = comm::agree(survivors.world, split ? 1 : 0, patience) == 1;
    world = std::move(survivors.world);
    if (stays) {
      group.living = std::move(world);
      return group;
    }
    members = std::move(living);
  }
}

// The same command on the ranks that are left: it goes on with the run, at the sizes it has.
Options options_to_go_on(Options options, const Course& course, int num_ranks) {
  options.overwrite = false;
  options.resume = "auto";
  options.dp = num_ranks / course.layout.replica();
  options.pp = course.layout.pp;
  options.tp = course.layout.tp;
  options.ep = course.layout.ep;
  options.enable_expert_parallel = false;
  options.simd = course.simd;
  options.max_model_len = course.max_model_len;
  return options;
}

}  // namespace

int run_command(const Options& options, comm::HostComm world, LastWords& last_words) {
  const auto start = Clock::now();
  job::StopControl stop;
  set_end_time(options, world.rank() == 0, &stop);
  const SignalWatch signals(stop, drain_seconds(options), world.rank() == 0);
  Course course;
  if (!comm::survives_lost_ranks() || world.all_reduce_min(keeps_rows(options) ? 1 : 0) == 0) {
    return start_run(options, std::move(world), stop, course, last_words);
  }
  std::vector<Member> members;
  for (const std::string& host : world.all_gather(comm::host_name())) {
    const auto rank = static_cast<int>(members.size());
    members.push_back({.rank = rank, .place = rank, .host = host});
  }
  constexpr int kDone = 1;
  constexpr int kOpened = 2;
  const double patience = std::max(600.0, options.step_timeout);  // as long as a start may take
  Options now = options;
  while (true) {
    int exit_code = 0;
    std::optional<Error> failure;
    try {
      exit_code = start_run(now, world.duplicate(), stop, course, last_words);
    } catch (const Error& error) {
      const bool peer = error.exit_code() == ExitCode::kPeerFailure;
      if (!peer || !comm::lost_ranks(world, kSecondsToNotice)) throw;
      spdlog::debug("{}", error.what());
      failure = error;
    }
    const int state =
        comm::agree(world, (failure ? 0 : kDone) | (course.opened ? kOpened : 0), patience);
    if ((state & kDone) != 0) return exit_code;
    const size_t lost_before = course.lost.size();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    Group group = regroup(std::move(world), members, course, patience, seconds, &course.lost);
    const bool opened = (state & kOpened) != 0;
    const std::string what = verdict(course, lost_before, opened, group.members.size());
    if (!opened || group.members.empty()) {
      last_words.together = true;
      throw Error(ExitCode::kPeerFailure, what);
    }
    if (course.record && failure) {
      course.record->close("failed", static_cast<int>(ExitCode::kPeerFailure), what);
    }
    last_words.say = {};
    course.record.reset();
    comm::agree(group.living, 0, patience);  // the run directory's lock is given back
    if (!group.here) {
      spdlog::info("left over: the replica of this rank has lost another one");
      return 0;
    }
    world = std::move(group.world);
    if (world.rank() == 0) spdlog::warn("{}; ranks are numbered anew", what);
    members = std::move(group.members);
    for (size_t i = 0; i < members.size(); ++i) members[i].place = static_cast<int>(i);
    now = options_to_go_on(options, course, world.size());
  }
}

}  // namespace mpinfer::apps
