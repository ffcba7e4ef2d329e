// Where the time goes: named spans that layers open around their parts and `bench` reads.
//
//   {
//     TimedSpan span("indexer");
//     ...
//   }
//
// Off (the default) a span costs one branch. On, times are summed per name; spans may nest,
// and a nested span's time is not counted again in the outer one. Device work is asynchronous:
// set_synchronize() installs what a span calls before it reads the clock (torch's device
// synchronisation; base knows no device). Spans are opened on the thread that drives the model; not
// thread-safe.
#pragma once

#include <functional>
#include <map>
#include <string>

namespace indexcache {

class TimedSpan {
 public:
  explicit TimedSpan(const char* name);
  ~TimedSpan();
  TimedSpan(const TimedSpan&) = delete;
  TimedSpan& operator=(const TimedSpan&) = delete;

  static void enable(bool on);
  static void set_synchronize(std::function<void()> synchronize);
  // Seconds per span name since the last call; clears them.
  static std::map<std::string, double> take();

 private:
  const char* name_;
  bool active_;
};

}  // namespace indexcache
