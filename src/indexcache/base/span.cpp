#include "indexcache/base/span.h"

#include <chrono>
#include <utility>
#include <vector>

namespace indexcache {
namespace {

using Clock = std::chrono::steady_clock;

struct Recorder {
  bool on = false;
  std::function<void()> synchronize;
  std::map<std::string, double> seconds;
  std::vector<const char*> open;
  Clock::time_point mark;

  // Books the time since the last event on the innermost open span.
  void book() {
    if (synchronize) synchronize();
    const auto now = Clock::now();
    if (!open.empty()) {
      seconds[open.back()] += std::chrono::duration<double>(now - mark).count();
    }
    mark = now;
  }
};

Recorder& recorder() {
  static Recorder instance;
  return instance;
}

}  // namespace

TimedSpan::TimedSpan(const char* name) : name_(name), active_(recorder().on) {
  if (!active_) return;
  recorder().book();
  recorder().open.push_back(name_);
}

TimedSpan::~TimedSpan() {
  if (!active_) return;
  recorder().book();
  recorder().open.pop_back();
}

void TimedSpan::enable(bool on) { recorder().on = on; }

void TimedSpan::set_synchronize(std::function<void()> synchronize) {
  recorder().synchronize = std::move(synchronize);
}

std::map<std::string, double> TimedSpan::take() { return std::exchange(recorder().seconds, {}); }

}  // namespace indexcache
