#include "indexcache/base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>
#include <utility>

#include "indexcache/base/error.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::thrown;

int count_files(const std::filesystem::path& folder) {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder),
                                        std::filesystem::directory_iterator()));
}

TEST(AtomicFile, CommitReplacesTheOldFileWhole) {
  const TemporaryFolder folder;
  const auto path = folder.write("out.json", "old");
  {
    AtomicFile file(path);
    file.write("new ");
    file.write("text");
    EXPECT_EQ(read_file(path), "old");
    file.commit();
  }
  EXPECT_EQ(read_file(path), "new text");
  EXPECT_EQ(count_files(folder.path()), 1);
}

TEST(AtomicFile, WithoutCommitTheOldFileStaysAndTheTemporaryGoes) {
  const TemporaryFolder folder;
  const auto path = folder.write("out.json", "old");
  {
    AtomicFile file(path);
    file.write("half of the new te");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(count_files(folder.path()), 1);
}

TEST(AtomicFile, AnExceptionBetweenWritesLeavesTheOldFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("out.json", "old");
  EXPECT_THROW(
      {
        AtomicFile file(path);
        file.write("half");
        throw InputError("stop");
      },
      InputError);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(count_files(folder.path()), 1);
}

// A process killed in the middle cannot clean up: its temporary file stays, the old file is whole, and the next writer succeeds.
TEST(AtomicFile, KilledWriterLeavesTheOldFileAndTheNextOneSucceeds) {
  const TemporaryFolder folder;
  const auto path = folder.write("out.json", "old");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    AtomicFile file(path);
    file.write("half");
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(read_file(path), "old");
  write_file_atomically(path, "new");
  EXPECT_EQ(read_file(path), "new");
  EXPECT_EQ(count_files(folder.path()), 1);
}

// The disk is full: a limit on file size stands for it (the write fails with EFBIG where the signal is ignored).
TEST(AtomicFile, FailedWriteIsADeviceErrorAndLeavesTheOldFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("out.json", "old");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int outcome = 1;
    try {
      write_file_atomically(path, std::string(5000, 'x'));
    } catch (const DeviceError& error) {
      outcome =
          std::string(error.what()).find("out.json: write failed") != std::string::npos ? 0 : 2;
    }
    ::_exit(outcome);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(count_files(folder.path()), 1);
}

TEST(AtomicFile, WritesBinaryBytesAndEmptyFiles) {
  const TemporaryFolder folder;
  const std::string bytes("\0\xff\n\0", 4);
  write_file_atomically(folder.path() / "a", bytes);
  EXPECT_EQ(read_file(folder.path() / "a"), bytes);
  write_file_atomically(folder.path() / "b", "");
  EXPECT_EQ(read_file(folder.path() / "b"), "");
}

TEST(AtomicFile, MissingFolderIsAnInputErrorNamingThePath) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "none" / "out.json";
  EXPECT_EQ(thrown<InputError>([&] { AtomicFile file(path); }),
            path.string() + ": cannot write: No such file or directory");
}

TEST(MappedFile, HoldsTheWholeFile) {
  const TemporaryFolder folder;
  const auto path = folder.write("data", "some bytes");
  MappedFile file(path);
  ASSERT_EQ(file.bytes().size(), 10u);
  EXPECT_EQ(static_cast<char>(file.bytes()[5]), 'b');
  EXPECT_EQ(file.path(), path);

  // Moving hands the map over; the bytes stay where they are.
  const auto* data = file.bytes().data();
  MappedFile moved(std::move(file));
  EXPECT_EQ(moved.bytes().data(), data);
  MappedFile other(folder.write("other", "x"));
  other = std::move(moved);
  EXPECT_EQ(other.bytes().data(), data);
}

TEST(MappedFile, AnEmptyFileHasNoBytes) {
  const TemporaryFolder folder;
  EXPECT_TRUE(MappedFile(folder.write("empty", "")).bytes().empty());
}

TEST(MappedFile, WhatIsNoReadableFileIsNamed) {
  const TemporaryFolder folder;
  const auto missing = folder.path() / "none";
  EXPECT_EQ(thrown<InputError>([&] { MappedFile file(missing); }),
            missing.string() + ": cannot open: No such file or directory");
  EXPECT_EQ(thrown<InputError>([&] { MappedFile file(folder.path()); }),
            folder.path().string() + ": expected a regular file, found a folder");
  const auto fifo = folder.path() / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  // Nobody writes to it: opening must not wait.
  EXPECT_EQ(thrown<InputError>([&] { read_file(fifo); }),
            fifo.string() + ": expected a regular file, found a pipe or device");
}

TEST(CheckWritable, AcceptsNewAndExistingFilesAndMakesNone) {
  const TemporaryFolder folder;
  check_writable(folder.path() / "new.json");
  EXPECT_EQ(count_files(folder.path()), 0);
  check_writable(folder.write("old.json", "old"));
  EXPECT_EQ(read_file(folder.path() / "old.json"), "old");
}

TEST(CheckWritable, RefusesWhatCouldNotBeWrittenLater) {
  const TemporaryFolder folder;
  const auto inside_none = folder.path() / "none" / "x.json";
  EXPECT_EQ(thrown<InputError>([&] { check_writable(inside_none); }),
            inside_none.string() + ": expected the folder " + (folder.path() / "none").string() +
                " to exist, found none");
  EXPECT_EQ(thrown<InputError>([&] { check_writable(folder.path()); }),
            folder.path().string() + ": expected a file, found a folder");
  const auto under_file = folder.write("file", "x") / "x.json";
  EXPECT_THAT(thrown<InputError>([&] { check_writable(under_file); }), HasSubstr("to exist"));
  EXPECT_EQ(thrown<InputError>([&] { check_writable(""); }),
            "output: expected a file name, found an empty one");
}

}  // namespace
}  // namespace indexcache
