#include "indexcache/checkpoint/staged_folder.h"

#include <fcntl.h>
#include <stdio.h>  // renameat2
#include <unistd.h>

#include <system_error>

#include "indexcache/base/error.h"

namespace indexcache {
namespace {

namespace fs = std::filesystem;

// The path without "..", trailing slash or links at its end, so that a sibling of it can be named.
fs::path resolve(const fs::path& folder) {
  auto path = fs::weakly_canonical(fs::absolute(folder));
  if (!path.has_filename()) path = path.parent_path();
  if (!path.has_filename()) throw expectation_error(folder.string(), "a folder's name", "the root");
  return path;
}

void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

// Swaps two folders in one step; file systems that cannot (NFS) do it in three.
void put_in_place_of(const fs::path& staged, const fs::path& target) {
  if (::renameat2(AT_FDCWD, staged.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) return;
  auto old = staged;
  old += ".old";
  fs::rename(target, old);
  fs::rename(staged, target);
  fs::rename(old, staged);
}

}  // namespace

StagedFolder::StagedFolder(const fs::path& folder) {
  try {
    target_ = resolve(folder);
    staged_ = target_.parent_path() / fmt::format(".{}.partial", target_.filename().string());
    if (!fs::is_directory(target_.parent_path())) {
      throw expectation_error(folder.string(),
                              fmt::format("the folder {} to exist", target_.parent_path().string()),
                              "none");
    }
    if (fs::exists(target_)) {
      if (!fs::is_directory(target_))
        throw expectation_error(folder.string(), "a folder", "a file");
      for (const auto& entry : fs::directory_iterator(target_)) {
        if (entry.is_directory()) {
          throw expectation_error(
              folder.string(), "a folder without folders in it, as it is to be replaced",
              fmt::format("the folder {}", quote(entry.path().filename().string())));
        }
      }
    }
    fs::remove_all(staged_);
    fs::create_directory(staged_);
  } catch (const fs::filesystem_error& error) {
    throw input_error("{}: cannot write: {}", folder.string(), error.code().message());
  }
}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  if (!staged_.empty()) fs::remove_all(staged_, ignored);
}

void StagedFolder::commit(const std::function<bool(const fs::path& name)>& replaced) {
  try {
    const bool exchange = fs::exists(target_);
    if (exchange) {
      for (const auto& entry : fs::directory_iterator(target_)) {
        const auto name = entry.path().filename();
        const auto kept = staged_ / name;
        if (replaced(name) || fs::exists(fs::symlink_status(kept))) continue;
        if (entry.is_symlink()) {
          fs::copy_symlink(entry.path(), kept);
        } else {
          fs::create_hard_link(entry.path(), kept);
        }
      }
    }
    sync_folder(staged_);
    if (exchange) {
      put_in_place_of(staged_, target_);
    } else {
      fs::rename(staged_, target_);
    }
    sync_folder(target_.parent_path());
  } catch (const fs::filesystem_error& error) {
    throw device_error("{}: write failed: {}", target_.string(), error.code().message());
  }
  // After an exchange the hidden name holds the old folder, which the destructor removes.
}

}  // namespace indexcache
