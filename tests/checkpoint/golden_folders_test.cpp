// The folders that transformers wrote open without complaint.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "indexcache/checkpoint/checkpoint.h"

namespace indexcache {
namespace {

TEST(GoldenFolders, Open) {
  const std::filesystem::path goldens = INDEXCACHE_SOURCE_DIR "/tests/golden/models";
  int opened = 0;
  for (const auto& folder : std::filesystem::directory_iterator(goldens)) {
    const auto checkpoint = Checkpoint::open(folder.path());
    EXPECT_TRUE(checkpoint.notices().empty()) << folder.path() << checkpoint.notices()[0];
    EXPECT_TRUE(checkpoint.has("model.embed_tokens.weight"));
    ++opened;
  }
  EXPECT_GE(opened, 8);
}

}  // namespace
}  // namespace indexcache
