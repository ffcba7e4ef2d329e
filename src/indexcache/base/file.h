// Files: read-only memory maps, and writes that leave either the old file or the whole new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace indexcache {

// A whole file mapped read-only. Throws InputError naming the path if it cannot be opened or is no
// regular file.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

std::string read_file(const std::filesystem::path& path);

// Writes to PATH.tmp in the same folder and renames it over PATH in commit(), after fsync of file
// and folder. Destroyed without commit(), it removes the temporary file and leaves PATH as it was.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // At `offset` bytes from the start, wherever write() stands; a gap left behind reads as zeros.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view contents);

// A folder held by one process at a time, until the lock is destroyed or its process ends, however
// that comes. Leaves nothing in the folder.
class FolderLock {
 public:
  // Throws InputError if another process holds it.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_ = -1;
};

// Makes the folder and those above it where they are missing. Throws InputError if that fails.
void make_folder(const std::filesystem::path& folder);

// Throws InputError now if PATH could not be written later: its folder is missing or not writable,
// or PATH is a folder.
void check_writable(const std::filesystem::path& path);

}  // namespace indexcache
