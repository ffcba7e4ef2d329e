// A folder that appears whole or not at all.
#pragma once

#include <filesystem>
#include <functional>

namespace indexcache {

// Files are written into path(), a hidden folder beside `folder`, and commit() gives it that name in
// one step. Destroyed without commit(), it leaves `folder` as it was and removes what was written.
class StagedFolder {
 public:
  // Throws InputError if `folder` could not be written or replaced: its parent is missing, it is a
  // file, or it holds folders. Clears what a killed run left of the same name.
  explicit StagedFolder(const std::filesystem::path& folder);
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  const std::filesystem::path& path() const { return staged_; }
  // Keeps the old folder's files that `replaced` does not name and that are not written anew.
  void commit(const std::function<bool(const std::filesystem::path& name)>& replaced);

 private:
  std::filesystem::path target_, staged_;
};

}  // namespace indexcache
