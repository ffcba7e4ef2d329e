// Progress of long work: one redrawn line with rate and time left on a terminal, a plain line every
// few seconds in a log.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace indexcache {

enum class ProgressDisplay { kRedrawnLine, kLogLines };
ProgressDisplay display_for(std::FILE* stream);  // the redrawn line: on a terminal alone

class Progress {
 public:
  // `what` names the work, `unit` one step of it ("evaluations"). `done` is where a resumed run
  // starts; its share of the time is not counted into the rate. Writes to `stream`; nullptr is
  // silent.
  Progress(std::string what, std::string unit, int64_t total, int64_t done = 0,
           std::FILE* stream = stderr);
  Progress(std::string what, std::string unit, int64_t total, int64_t done, std::FILE* stream,
           ProgressDisplay display);
  // The last line: how long it took. None where an exception ends work of which nothing was shown
  // yet, so that a refusal is one line alone.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Sets the steps done so far (and, where the work is re-estimated, the total); `note` is a short
  // remark, such as the loss.
  void update(int64_t done, const std::string& note = "");
  void set_total(int64_t total) { total_ = total; }
  // Where a resumed run starts, if that shows only on the way: `done` of the constructor.
  void set_resumed(int64_t done) { first_ = done; }

 private:
  void draw(bool last);

  std::string what_, unit_, note_;
  int64_t total_, done_, first_;
  std::FILE* stream_;
  ProgressDisplay display_;
  bool shown_ = false;
  int exceptions_;  // in flight where it was made
  std::chrono::steady_clock::time_point start_, drawn_;
};

}  // namespace indexcache
