#include "indexcache/calibrate/identity.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "support/temporary_folder.h"

namespace indexcache {
namespace {

// A weight file: header length, header "{}", then zeros up to `size` bytes.
std::string weights_of(std::size_t size) {
  std::string bytes(size, '\0');
  bytes[0] = 2;
  return bytes.replace(8, 2, "{}");
}

class ModelHash : public ::testing::Test {
 protected:
  ModelHash() {
    folder_.write("config.json", "{}");
    folder_.write("tokenizer.json", "{}");
    folder_.write("a.safetensors", weights_of(100));
    folder_.write("b.safetensors", weights_of(200));
  }
  std::string hash() const { return model_sha256(folder_.path()); }

  testing::TemporaryFolder folder_;
};

TEST_F(ModelHash, DependsOnEveryFileThatDecidesALoss) {
  std::set<std::string> hashes = {hash()};
  EXPECT_EQ(hashes.begin()->size(), 64u);
  EXPECT_EQ(hash(), *hashes.begin());
  folder_.write("config.json", "{ }");
  EXPECT_TRUE(hashes.insert(hash()).second);
  folder_.write("tokenizer.json", "{ }");
  EXPECT_TRUE(hashes.insert(hash()).second);
  std::filesystem::remove(folder_.path() / "tokenizer.json");
  EXPECT_TRUE(hashes.insert(hash()).second);
  std::filesystem::rename(folder_.path() / "a.safetensors", folder_.path() / "c.safetensors");
  EXPECT_TRUE(hashes.insert(hash()).second);
  folder_.write("notes.txt", "of no weight");
  EXPECT_FALSE(hashes.insert(hash()).second);
  folder_.write("short.safetensors", "\x09");
  EXPECT_TRUE(hashes.insert(hash()).second);
}

TEST_F(ModelHash, DependsOnEveryByteOfWeightsUpToItsLimit) {
  const std::string whole = weights_of(3 << 20);
  folder_.write("a.safetensors", whole);
  std::set<std::string> hashes = {hash()};
  for (const std::size_t at : {std::size_t{9}, whole.size() / 3, whole.size() - 1}) {
    std::string changed = whole;
    changed[at] ^= 1;
    folder_.write("a.safetensors", changed);
    EXPECT_TRUE(hashes.insert(hash()).second) << at;
  }
}

TEST_F(ModelHash, BeyondItsLimitTakesEvenlySpacedBlocks) {
  const std::string whole = weights_of(16 * kHashBlock);
  const auto hash_with = [&](std::size_t changed_byte) {
    std::string changed = whole;
    changed[changed_byte] ^= 1;
    folder_.write("a.safetensors", changed);
    return model_sha256(folder_.path(), 4 * kHashBlock + kHashBlock / 2);
  };
  // Four blocks, at 0, 5, 10 and 15 of the file's 16.
  const auto unread = hash_with(2 * kHashBlock);
  for (std::size_t block = 0; block < 16; ++block) {
    EXPECT_EQ(hash_with(block * kHashBlock + 77) != unread, block % 5 == 0) << block;
  }
  EXPECT_NE(hash_with(16 * kHashBlock - 1), unread);
  folder_.write("b.safetensors", weights_of(201));
  EXPECT_NE(hash_with(2 * kHashBlock), unread);
}

TEST_F(ModelHash, FilesAreHashedAsOtherToolsDo) {
  EXPECT_EQ(file_sha256(folder_.write("abc", "abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace indexcache
