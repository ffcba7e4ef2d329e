// Journal: the losses a search has measured, appended as they come, so that a killed search resumes
// where it was. It lies beside the pattern file and goes away when that is written, or when nothing
// was measured: a refused search must not stand in the way of one with other settings.
//
// JSON lines. The first holds the search's setup, and is written with the first measurement; each
// other one the losses of one call's patterns on one sequence, or (strategy screened) that
// sequence's estimated increases of the loss. As search is deterministic, the n-th
// call of a resumed search asks for the same patterns; a digest of them is kept and checked. Lines
// are synced to disk one by one; a torn last line is dropped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/policy/pattern.h"
#include "indexcache/search/pattern_file.h"
#include "indexcache/search/screened.h"

namespace indexcache {

class Journal {
 public:
  // Opens or creates the file. Throws InputError if it belongs to another search (naming the
  // setting that differs), is no journal, or is in use by a running search; the file is then left
  // as it was.
  Journal(std::filesystem::path path, const SearchSetup& setup);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // The journal of a pattern file: its path with ".journal" appended.
  static std::filesystem::path path_for(const std::filesystem::path& pattern_file);

  // Losses of call number `call` on a sequence, one a pattern, or nullptr. Throws InputError if the
  // journal's patterns are others.
  const std::vector<double>* find(std::int64_t call, int sequence,
                                  const std::vector<Pattern>& patterns) const;
  // Thread-safe.
  void append(std::int64_t call, int sequence, const std::vector<Pattern>& patterns,
              const std::vector<double>& losses);
  // A sequence's part of the increases, or nullptr.
  const IncreaseMatrix* find_increases(int sequence) const;
  // Thread-safe. All finite.
  void append_increases(int sequence, const IncreaseMatrix& increases);
  bool resumed() const { return !entries_.empty() || !increases_.empty(); }
  // The search is done: deletes the file.
  void remove();

 private:
  struct Line {
    std::uint64_t digest = 0;
    std::vector<double> losses;
  };
  void read_lines(const std::string& text, const nlohmann::json& setup, int num_layers);
  void read_line(const nlohmann::json& line, int num_layers);
  InputError not_a_line(std::size_t number) const;
  void append_line(const nlohmann::json& line);
  void write(const std::string& text);

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::string header_;
  bool empty_ = true;  // the file holds nothing
  std::map<std::pair<std::int64_t, int>, Line> entries_;
  std::map<int, IncreaseMatrix> increases_;  // by sequence
  std::mutex mutex_;
};

}  // namespace indexcache
