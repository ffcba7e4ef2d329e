#include "indexcache/search/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <string>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"

namespace indexcache {
namespace {

using nlohmann::json;

constexpr std::string_view kJournalFormat = "indexcache search journal 1";

// FNV-1a over the patterns' sources.
std::uint64_t digest_of(const std::vector<Pattern>& patterns) {
  std::uint64_t digest = 14695981039346656037u;
  const auto mix = [&](std::uint64_t value) { digest = (digest ^ value) * 1099511628211u; };
  for (const Pattern& pattern : patterns) {
    for (const int source : pattern.sources()) mix(static_cast<std::uint64_t>(source + 1));
    mix(0xff);
  }
  return digest;
}

// The first setting in which two setups differ: "/calibration/seed: 1 there, 2 here".
std::string first_difference(const json& there, const json& here) {
  const json a = there.is_structured() ? there.flatten() : json::object();
  const json b = here.flatten();
  const auto value = [](const json& setup, const std::string& key) {
    return setup.contains(key) ? setup[key].dump() : std::string("none");
  };
  for (const auto* keys : {&b, &a}) {
    for (const auto& item : keys->items()) {
      if (value(a, item.key()) != value(b, item.key())) {
        return fmt::format("{}: {} there, {} here", item.key(), value(a, item.key()),
                           value(b, item.key()));
      }
    }
  }
  return "";
}

bool is_triangle(const IncreaseMatrix& matrix, int num_layers) {
  if (std::ssize(matrix) != num_layers) return false;
  for (std::size_t layer = 0; layer < matrix.size(); ++layer) {
    if (matrix[layer].size() != layer) return false;
  }
  return true;
}

}  // namespace

std::filesystem::path Journal::path_for(const std::filesystem::path& pattern_file) {
  auto path = pattern_file;
  path += ".journal";
  return path;
}

Journal::Journal(std::filesystem::path path, const SearchSetup& setup) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    throw input_error("{}: cannot write: {}", path_.string(), std::strerror(errno));
  }
  try {
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      throw input_error("{}: another search is writing it", path_.string());
    }
    const json here = to_json(setup);
    header_ = json({{"journal", kJournalFormat}, {"setup", here}}).dump() + "\n";
    const std::string text = read_file(path_);
    // What follows the last newline was torn by a kill; without one it is all of the file, and ours
    // only if it begins as our header does.
    const auto newline = text.rfind('\n');
    if (newline != std::string::npos) {
      read_lines(text.substr(0, newline + 1), here, setup.num_layers);
    } else if (!header_.starts_with(text)) {
      throw not_a_line(1);
    }
    // Only now is it known to be this search's. A header without measurements is written anew.
    const auto kept = resumed() ? newline + 1 : 0;
    if (::ftruncate(descriptor_, static_cast<off_t>(kept)) != 0) {
      throw device_error("{}: write failed: {}", path_.string(), std::strerror(errno));
    }
    empty_ = kept == 0;
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

Journal::~Journal() {
  if (empty_) ::unlink(path_.c_str());
  ::close(descriptor_);
}

InputError Journal::not_a_line(std::size_t number) const {
  return expectation_error(fmt::format("{} line {}", path_.string(), number),
                           "a line of a search journal", "something else; delete it to begin anew");
}

void Journal::read_lines(const std::string& text, const json& setup, int num_layers) {
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < text.size(); ++number) {
    const auto end = text.find('\n', begin);
    const json line = json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                  text.begin() + static_cast<std::ptrdiff_t>(end), nullptr,
                                  /*allow_exceptions=*/false);
    begin = end + 1;
    try {
      if (number == 0) {
        if (line.at("journal") != kJournalFormat) throw json::other_error::create(500, "", nullptr);
        if (line.at("setup") != setup) {
          throw input_error(
              "{}: belongs to a search with other settings ({}); delete it to begin anew",
              path_.string(), first_difference(line.at("setup"), setup));
        }
      } else {
        read_line(line, num_layers);
      }
    } catch (const json::exception&) {
      throw not_a_line(number + 1);
    }
  }
}

void Journal::read_line(const json& line, int num_layers) {
  const int sequence = line.at("sequence").get<int>();
  if (line.contains("increases")) {
    auto increases = line.at("increases").get<IncreaseMatrix>();
    if (!is_triangle(increases, num_layers)) throw json::other_error::create(500, "", nullptr);
    increases_[sequence] = std::move(increases);
  } else {
    entries_[{line.at("call").get<std::int64_t>(), sequence}] = {
        line.at("patterns").get<std::uint64_t>(), line.at("losses").get<std::vector<double>>()};
  }
}

const std::vector<double>* Journal::find(std::int64_t call, int sequence,
                                         const std::vector<Pattern>& patterns) const {
  const auto entry = entries_.find({call, sequence});
  if (entry == entries_.end()) return nullptr;
  if (entry->second.digest != digest_of(patterns) ||
      entry->second.losses.size() != patterns.size()) {
    throw input_error(
        "{}: call {} holds other patterns than this search asks for; delete it to begin anew",
        path_.string(), call);
  }
  return &entry->second.losses;
}

void Journal::append(std::int64_t call, int sequence, const std::vector<Pattern>& patterns,
                     const std::vector<double>& losses) {
  // A loss that is not finite ends the search with an error; JSON has no word for it.
  for (const double loss : losses) {
    if (!std::isfinite(loss)) return;
  }
  append_line({{"call", call},
               {"sequence", sequence},
               {"patterns", digest_of(patterns)},
               {"losses", losses}});
}

const IncreaseMatrix* Journal::find_increases(int sequence) const {
  const auto entry = increases_.find(sequence);
  return entry == increases_.end() ? nullptr : &entry->second;
}

void Journal::append_increases(int sequence, const IncreaseMatrix& increases) {
  append_line({{"sequence", sequence}, {"increases", increases}});
}

void Journal::append_line(const json& line) {
  const std::scoped_lock lock(mutex_);
  write((empty_ ? header_ : "") + line.dump() + "\n");
}

void Journal::write(const std::string& text) {
  empty_ = false;
  std::size_t written = 0;
  while (written < text.size()) {
    const ssize_t count = ::write(descriptor_, text.data() + written, text.size() - written);
    if (count < 0 && errno != EINTR) {
      throw device_error("{}: write failed: {}", path_.string(), std::strerror(errno));
    }
    if (count > 0) written += static_cast<std::size_t>(count);
  }
  if (::fdatasync(descriptor_) != 0) {
    throw device_error("{}: write failed: {}", path_.string(), std::strerror(errno));
  }
}

void Journal::remove() {
  std::filesystem::remove(path_);
  empty_ = false;  // another search may have made its own by now
}

}  // namespace indexcache
