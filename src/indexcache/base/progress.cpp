#include "indexcache/base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <utility>

namespace indexcache {
namespace {

std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

}  // namespace

ProgressDisplay display_for(std::FILE* stream) {
  return stream != nullptr && ::isatty(::fileno(stream)) != 0 ? ProgressDisplay::kRedrawnLine
                                                              : ProgressDisplay::kLogLines;
}

Progress::Progress(std::string what, std::string unit, int64_t total, int64_t done,
                   std::FILE* stream)
    : Progress(std::move(what), std::move(unit), total, done, stream, display_for(stream)) {}

Progress::Progress(std::string what, std::string unit, int64_t total, int64_t done,
                   std::FILE* stream, ProgressDisplay display)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      done_(done),
      first_(done),
      stream_(stream),
      display_(display),
      exceptions_(std::uncaught_exceptions()),
      start_(std::chrono::steady_clock::now()),
      drawn_(start_) {}

Progress::~Progress() {
  const bool failed = std::uncaught_exceptions() > exceptions_;
  if (stream_ != nullptr && (shown_ || !failed)) draw(true);
}

void Progress::update(int64_t done, const std::string& note) {
  done_ = done;
  note_ = note;
  if (stream_ == nullptr) return;
  const auto now = std::chrono::steady_clock::now();
  const auto interval = display_ == ProgressDisplay::kRedrawnLine ? std::chrono::milliseconds(200)
                                                                  : std::chrono::seconds(10);
  if (now - drawn_ < interval) return;
  drawn_ = now;
  draw(false);
}

void Progress::draw(bool last) {
  shown_ = true;
  const double elapsed =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double rate = elapsed > 0 ? static_cast<double>(done_ - first_) / elapsed : 0.0;
  std::string line = fmt::format("{}: {}/{} {}", what_, done_, total_, unit_);
  if (last) {
    line += fmt::format(", took {}", duration_text(elapsed));
  } else if (rate > 0) {
    line += fmt::format(
        ", {:.3g}/s, {} left", rate,
        duration_text(static_cast<double>(std::max<int64_t>(total_ - done_, 0)) / rate));
  }
  if (!note_.empty()) line += ", " + note_;
  if (display_ == ProgressDisplay::kRedrawnLine) {
    fmt::print(stream_, "\r\033[K{}{}", line, last ? "\n" : "");
  } else {
    fmt::print(stream_, "{}\n", line);
  }
  std::fflush(stream_);
}

}  // namespace indexcache
