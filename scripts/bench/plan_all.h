// The plans that a scheduler makes for these requests, without a device: every row draws the same
// id.
#pragma once

#include <deque>
#include <utility>
#include <vector>

#include "lib/engine/scheduler.h"

namespace mpinfer::engine {

// Requests leave `requests` at most so many a plan; see(plan) is called for each plan.
template <class See>
void plan_all(const SchedulerOptions& options, std::vector<Request> requests, size_t a_plan,
              const See& see) {
  Scheduler scheduler(options, nullptr);
  std::deque<StepPlan> plans;
  size_t next = 0;
  for (int64_t number = 0;; ++number) {
    ControlRecord record;
    for (; next < requests.size() && record.requests.size() < a_plan; ++next)
      record.requests.push_back(std::move(requests[next]));
    record.no_more = next == requests.size();
    scheduler.apply(std::move(record));
    if (number > options.num_lanes) {
      const std::vector<int32_t> ids(plans.front().logit_entries.size(), 5);
      scheduler.commit(plans.front(), ids);
      plans.pop_front();
      if (scheduler.finished()) return;
    }
    plans.push_back(scheduler.make_plan(number));
    see(plans.back());
  }
}

}  // namespace mpinfer::engine
