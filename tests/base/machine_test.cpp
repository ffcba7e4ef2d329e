#include "indexcache/base/machine.h"

#include <gtest/gtest.h>

#include <limits>

#include "support/temporary_folder.h"

namespace indexcache {
namespace {

using testing::TemporaryFolder;

constexpr std::int64_t kMebibyte = 1 << 20;

// A root whose machine has 1000 MiB available, and cgroups.
class FakeRoot {
 public:
  FakeRoot() {
    write("proc/meminfo",
          "MemTotal:       4096000 kB\nMemAvailable:   1024000 kB\nBuffers: 1 kB\n");
  }
  void write(const std::string& name, const std::string& contents) const {
    std::filesystem::create_directories((folder_.path() / name).parent_path());
    folder_.write(name, contents);
  }
  void write_cgroup(const std::string& name, const std::string& limit, std::int64_t taken,
                    std::int64_t files) const {
    const auto group = "sys/fs/cgroup/" + name;
    write(group + "/memory.max", limit + "\n");
    write(group + "/memory.current", std::to_string(taken * kMebibyte) + "\n");
    write(group + "/memory.stat", "anon 1\nfile 7\ninactive_file " +
                                      std::to_string(files * kMebibyte / 4) + "\nactive_file " +
                                      std::to_string(files * kMebibyte / 4 * 3) + "\n");
  }
  std::int64_t available() const { return available_memory_bytes(folder_.path()) / kMebibyte; }
  const std::filesystem::path& path() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
};

std::string mebibytes(std::int64_t count) { return std::to_string(count * kMebibyte); }

TEST(AvailableMemory, IsTheMachinesWithoutCgroups) {
  const FakeRoot root;
  EXPECT_EQ(root.available(), 1000);
  root.write("proc/self/cgroup", "12:memory:/docker/abc\n1:name=systemd:/\n");  // version 1
  EXPECT_EQ(root.available(), 1000);
}

TEST(AvailableMemory, IsWhatTheCgroupsLeave) {
  const FakeRoot root;
  root.write("proc/self/cgroup", "1:name=systemd:/x\n0::/user/job\n");
  root.write_cgroup("user/job", "max", 300, 0);
  root.write_cgroup("user", mebibytes(900), 400, 100);
  EXPECT_EQ(root.available(), 600);  // 900 - (400 - 100)
  root.write_cgroup("user/job", mebibytes(500), 300, 0);
  EXPECT_EQ(root.available(), 200);
  root.write_cgroup("", mebibytes(450), 400, 100);  // where they are mounted, as in a container
  EXPECT_EQ(root.available(), 150);
  root.write_cgroup("user/job", mebibytes(250), 300, 0);  // a limit that was lowered
  EXPECT_EQ(root.available(), 0);
}

TEST(AvailableMemory, IsNeverMoreThanTheMachines) {
  const FakeRoot root;
  root.write("proc/self/cgroup", "0::/job\n");
  root.write_cgroup("job", mebibytes(5000), 300, 0);
  EXPECT_EQ(root.available(), 1000);
}

TEST(AvailableMemory, LooksAtTheMountOfAGroupOutside) {
  const FakeRoot root;
  root.write("proc/self/cgroup", "0::/../../other\n");
  root.write_cgroup("", mebibytes(450), 400, 100);
  EXPECT_EQ(root.available(), 150);
}

TEST(AvailableMemory, IsUnboundedWhereNothingCanBeRead) {
  const TemporaryFolder folder;
  EXPECT_EQ(available_memory_bytes(folder.path()), std::numeric_limits<std::int64_t>::max());
  const auto here = available_memory_bytes();
  EXPECT_GT(here, kMebibyte);
  EXPECT_LT(here, std::int64_t{1} << 50);
}

TEST(CpuName, IsTheFirstModelName) {
  const FakeRoot root;
  EXPECT_EQ(cpu_name(root.path()), "unknown");
  root.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: A: fast one\nmodel name\t: B\n");
  EXPECT_EQ(cpu_name(root.path()), "A: fast one");
}

}  // namespace
}  // namespace indexcache
