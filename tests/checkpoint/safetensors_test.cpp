// The safetensors format: what is written is read back, and hostile files are refused.
#include "indexcache/checkpoint/safetensors.h"

#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "support/temporary_folder.h"
#include "support/thrown.h"

namespace indexcache {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::thrown;

std::string file_of(const std::string& header, std::size_t data_bytes = 0) {
  std::string text(8, '\0');
  for (int i = 0; i < 8; ++i) text[i] = static_cast<char>(header.size() >> (8 * i));
  return text + header + std::string(data_bytes, '\1');
}

std::map<std::string, TensorView, std::less<>> parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file)), "x.safetensors");
}

std::string refusal_of(const std::string& file) {
  return thrown<InputError>([&] { parse(file); });
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape,
                     offsets);
}

std::string header_with(const std::vector<std::string>& members) {
  return fmt::format("{{{}}}", fmt::join(members, ","));
}

std::string file_with(const std::vector<std::string>& members, std::size_t data_bytes) {
  return file_of(header_with(members), data_bytes);
}

const std::string kMetadata = R"("__metadata__":{"format":"pt"})";

TEST(Safetensors, ParsesTensorsMetadataAndPadding) {
  const auto header =
      header_with({kMetadata, tensor("b", "BF16", "[2,3]", "[4,16]"),
                   tensor("a", "F32", "[]", "[0,4]"), tensor("empty", "F32", "[0,5]", "[4,4]")});
  const auto tensors = parse(file_of(header + "   ", 16));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors.at("a").num_elements(), 1);
  EXPECT_TRUE(tensors.at("a").shape.empty());
  EXPECT_EQ(tensors.at("b").dtype, DType::kBF16);
  EXPECT_EQ(tensors.at("b").shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(tensors.at("b").bytes.size(), 12u);
  EXPECT_EQ(tensors.at("empty").num_elements(), 0);
  EXPECT_EQ(tensors.at("b").file, "x.safetensors");
}

TEST(Safetensors, NoTensorsAreFine) { EXPECT_TRUE(parse(file_of("{}")).empty()); }

struct Hostile {
  const char* name;
  std::string file;
  const char* message;
};

class HostileSafetensors : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileSafetensors, IsRefused) {
  const auto message = refusal_of(GetParam().file);
  EXPECT_THAT(message, HasSubstr(GetParam().message));
  EXPECT_THAT(message, HasSubstr("x.safetensors"));
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets,
                std::size_t bytes) {
  return file_with({tensor("t", dtype, shape, offsets)}, bytes);
}

INSTANTIATE_TEST_SUITE_P(
    All, HostileSafetensors,
    ::testing::Values(
        Hostile{"Empty", "", "at least 8 bytes, found 0 bytes"},
        Hostile{"LengthPastEnd", std::string("\x09\0\0\0\0\0\0\0{}", 10), "header length"},
        Hostile{"LengthHuge", std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10),
                "found 18446744073709551615"},
        Hostile{"HeaderEmpty", file_of(""), "JSON that starts with {"},
        Hostile{"HeaderIsAList", file_of("[]"), "JSON that starts with {"},
        Hostile{"LeadingSpace", file_of(" {}"), "JSON that starts with {"},
        Hostile{"NotJson", file_of("{\"t\":"), "not valid JSON"},
        Hostile{"TrailingText", file_of("{}{}"), "not valid JSON"},
        Hostile{"NotUtf8", file_of("{\"\xff\":1}"), "not valid JSON"},
        Hostile{"Nul", file_of(std::string("{}\0", 3)), "not valid JSON"},
        Hostile{"TensorIsNoObject", file_of("{\"t\":3}"), "expected an object, found 3"},
        Hostile{"TensorIsAList", file_of("{\"t\":[]}"), "expected an object, found a list"},
        Hostile{"TensorIsNull", file_of("{\"t\":null}"), "expected an object, found null"},
        Hostile{"DeepNesting", file_of(std::string("{\"t\":{\"dtype\":").append(100000, '[')),
                "expected a string, found a list"},
        Hostile{"MetadataOfNumbers", file_of("{\"__metadata__\":{\"a\":1}}"),
                "expected a string, found 1"},
        Hostile{"MetadataNested", file_of("{\"__metadata__\":{\"a\":{}}}"),
                "expected a string, found an object"},
        Hostile{"MetadataKeyTwice", file_of("{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}"), "twice"},
        Hostile{"NoDtype", file_of("{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4),
                "dtype, shape and data_offsets"},
        Hostile{"NoOffsets", file_of("{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4),
                "one of them missing"},
        Hostile{
            "ExtraKey",
            file_of("{\"t\":{\"dtype\":\"F32\",\"x\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4),
            "found \"x\""},
        Hostile{"KeyTwice",
                file_of("{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],"
                        "\"data_offsets\":[0,4]}}",
                        4),
                "\"dtype\" twice"},
        Hostile{
            "NameTwice",
            file_with({tensor("t", "U8", "[1]", "[0,1]"), tensor("t", "U8", "[1]", "[1,2]")}, 2),
            "every tensor name once, found \"t\" twice"},
        Hostile{"UnknownDtype", one("F5", "[1]", "[0,4]", 4), "a dtype such as F32"},
        Hostile{"DtypeIsANumber", file_of("{\"t\":{\"dtype\":3}}"), "expected a string, found 3"},
        Hostile{"ShapeIsAString", file_of("{\"t\":{\"shape\":\"1\"}}"),
                "expected a list, found a string"},
        Hostile{"NegativeDimension", one("F32", "[-1]", "[0,4]", 4),
                "a non-negative integer, found -1"},
        Hostile{"FractionalDimension", one("F32", "[1.0]", "[0,4]", 4),
                "a non-negative integer, found 1.0"},
        Hostile{"DimensionPastInt64", one("U8", "[9223372036854775808,0]", "[0,0]", 0),
                "a shape that fits in memory"},
        Hostile{"DimensionPastUint64", one("U8", "[18446744073709551616]", "[0,0]", 0),
                "a non-negative integer"},
        Hostile{"ProductOverflows", one("F32", "[4294967296,4294967296]", "[0,4]", 4),
                "a shape that fits in memory"},
        Hostile{"ProductOverflowsToSize", one("F32", "[4611686018427387905]", "[0,4]", 4),
                "a shape that fits in memory"},
        Hostile{"ManyDimensions", one("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]", 1),
                "at most 16"},
        Hostile{"OffsetsReversed", one("F32", "[1]", "[4,0]", 4), "[begin, end] within 4 bytes"},
        Hostile{"OffsetsPastEnd", one("F32", "[2]", "[0,8]", 4), "[begin, end] within 4 bytes"},
        Hostile{"OffsetsHuge", one("F32", "[1]", "[18446744073709551612,18446744073709551615]", 4),
                "[begin, end] within 4 bytes"},
        Hostile{"OneOffset", one("F32", "[1]", "[0]", 4), "[begin, end]"},
        Hostile{"ThreeOffsets", one("F32", "[1]", "[0,4,4]", 4), "[begin, end]"},
        Hostile{"SizeMismatch", one("F32", "[2]", "[0,4]", 4), "expected 8 bytes for F32 [2]"},
        Hostile{
            "Overlap",
            file_with({tensor("a", "U8", "[3]", "[0,3]"), tensor("b", "U8", "[2]", "[2,4]")}, 4),
            "data from byte 3 on"},
        Hostile{
            "SameBytesTwice",
            file_with({tensor("a", "U8", "[3]", "[0,3]"), tensor("b", "U8", "[3]", "[0,3]")}, 3),
            "data from byte 3 on"},
        Hostile{
            "Hole",
            file_with({tensor("a", "U8", "[1]", "[0,1]"), tensor("b", "U8", "[2]", "[2,4]")}, 4),
            "data from byte 1 on"},
        Hostile{"TrailingData", one("U8", "[1]", "[0,1]", 2), "expected 1 bytes of data"},
        Hostile{"NameWithNewline", file_with({tensor("a\\nb", "U8", "[1]", "[0,9]")}, 1),
                "tensor \"a\\x0ab\""}),
    [](const auto& info) { return info.param.name; });

std::string valid_file() {
  return file_with(
      {kMetadata, tensor("w", "F16", "[2,2]", "[0,8]"), tensor("v", "I64", "[1]", "[8,16]")}, 16);
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const auto file = valid_file();
  ASSERT_EQ(parse(file).size(), 2u);
  for (std::size_t length = 0; length < file.size(); ++length) {
    EXPECT_NE(refusal_of(file.substr(0, length)), "") << length;
  }
}

// Any change of a byte gives a refusal or tensors inside the file.
TEST(Safetensors, EveryChangedByteIsSafe) {
  const auto file = valid_file();
  for (std::size_t at = 0; at < file.size(); ++at) {
    for (int byte = 0; byte < 256; ++byte) {
      auto changed = file;
      changed[at] = static_cast<char>(byte);
      try {
        for (const auto& [name, view] : parse(changed)) {
          const auto* begin = reinterpret_cast<const char*>(view.bytes.data());
          ASSERT_GE(begin, changed.data());
          ASSERT_LE(begin + view.bytes.size(), changed.data() + changed.size());
        }
      } catch (const InputError&) {
      }
    }
  }
}

TEST(SafetensorsWriter, RoundTripsAlignedInAnyOrder) {
  TemporaryFolder folder;
  const auto path = folder.path() / "t.safetensors";
  // Odd numbers of small elements before large ones: written in order, aligned all the same.
  const std::vector<SafetensorsWriter::Entry> entries = {
      {"bytes", DType::kF8E4M3, {3}}, {"half", DType::kBF16, {1, 3}},
      {"none", DType::kF32, {0, 4}},  {"scalar", DType::kF32, {}},
      {"wide", DType::kI64, {2}},     {"\"quoted\"\n", DType::kU8, {1}}};
  std::mt19937 random(3);
  std::map<std::string, std::string> contents;
  SafetensorsWriter writer(path, entries);
  for (const auto& entry : entries) {
    std::size_t size = dtype_size(entry.dtype);
    for (const auto dimension : entry.shape) size *= static_cast<std::size_t>(dimension);
    auto& bytes = contents[entry.name];
    for (std::size_t i = 0; i < size; ++i) bytes += static_cast<char>(random());
    writer.write(std::as_bytes(std::span(bytes)));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.commit();

  const MappedFile file(path);
  const auto tensors = parse_safetensors(file.bytes(), path.string());
  ASSERT_EQ(tensors.size(), entries.size());
  for (const auto& entry : entries) {
    const auto& view = tensors.at(entry.name);
    EXPECT_EQ(view.dtype, entry.dtype);
    EXPECT_EQ(view.shape, entry.shape);
    const auto& bytes = contents[entry.name];
    ASSERT_EQ(view.bytes.size(), bytes.size());
    if (!bytes.empty()) {
      EXPECT_EQ(std::memcmp(view.bytes.data(), bytes.data(), bytes.size()), 0);
    }
    const auto offset = static_cast<std::size_t>(view.bytes.data() - file.bytes().data());
    EXPECT_EQ(offset % dtype_size(entry.dtype), 0u) << entry.name;
  }
}

TEST(SafetensorsWriter, LeavesNothingWithoutCommit) {
  TemporaryFolder folder;
  const auto path = folder.path() / "t.safetensors";
  folder.write("t.safetensors", "old");
  {
    SafetensorsWriter writer(path, {{"a", DType::kU8, {1}}});
    writer.write(std::as_bytes(std::span("x", 1)));
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(SafetensorsWriter, RefusesBadNamesAndShapes) {
  TemporaryFolder folder;
  const auto refusal = [&](std::vector<SafetensorsWriter::Entry> entries) {
    return thrown<InputError>(
        [&] { SafetensorsWriter(folder.path() / "t.safetensors", std::move(entries)); });
  };
  EXPECT_THAT(refusal({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}), HasSubstr("unique"));
  EXPECT_THAT(refusal({{"", DType::kU8, {1}}}), HasSubstr("not empty"));
  EXPECT_THAT(refusal({{"__metadata__", DType::kU8, {1}}}), HasSubstr("not __metadata__"));
  EXPECT_THAT(refusal({{"a", DType::kF32, {-1}}}), HasSubstr("[-1]"));
  EXPECT_THAT(refusal({{"a", DType::kF32, {INT64_MAX, 4}}}), HasSubstr("fits in memory"));
}

}  // namespace
}  // namespace indexcache
