#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <lzma.h>

#include <string>
#include <vector>

#include "indexcache/base/error.h"
#include "indexcache/data/text.h"
#include "support/temporary_folder.h"

namespace indexcache {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string compress(const std::string& text) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  std::size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, nullptr,
                                    reinterpret_cast<const std::uint8_t*>(text.data()), text.size(),
                                    reinterpret_cast<std::uint8_t*>(out.data()), &size, out.size()),
            LZMA_OK);
  out.resize(size);
  return out;
}

class DocumentsTest : public ::testing::Test {
 protected:
  std::string error_of(const std::string& name, const std::string& contents) {
    const auto path = folder_.write(name, contents);
    try {
      read_documents(path);
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(path.string()));
      EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("\n")));
      return error.what();
    }
    ADD_FAILURE() << name << " was read without an error";
    return "";
  }
  testing::TemporaryFolder folder_;
};

TEST_F(DocumentsTest, PlainTextIsOneDocumentByteForByte) {
  const std::string text =
      "H\xC3\xA9llo\r\n\xF0\x9F\x8C\x8D end"
      "\n";
  const auto documents = read_documents(folder_.write("a.txt", text));
  ASSERT_EQ(documents.size(), 1u);
  EXPECT_EQ(documents[0].text, text);
  EXPECT_EQ(documents[0].source, "");
}

TEST_F(DocumentsTest, JsonLinesKeepOrderAndSource) {
  const auto documents = read_documents(folder_.write(
      "a.jsonl",
      "{\"source\": \"x/1\", \"text\": \"one\\n\\u00e9\"}\n\n{\"text\": \"\"}\n{\"text\": \"two\", "
      "\"source\": 7}\r\n{\"text\": \"three\"}"));
  ASSERT_EQ(documents.size(), 3u);
  EXPECT_EQ(documents[0].source, "x/1");
  EXPECT_EQ(documents[0].text, "one\n\xC3\xA9");
  EXPECT_EQ(documents[1].text, "two");
  EXPECT_EQ(documents[1].source, "");
  EXPECT_EQ(documents[2].text, "three");
}

TEST_F(DocumentsTest, XzGivesWhatTheSameLinesGive) {
  // Larger than the decoder's output chunk, with lines across its borders, in two xz streams.
  std::string first, second;
  for (int i = 0; i < 3000; ++i) {
    (i < 2000 ? first : second) += "{\"text\": \"" + std::string(static_cast<std::size_t>(i), 'a') +
                                   std::to_string(i) + "\"}\n";
  }
  const auto plain = read_documents(folder_.write("a.jsonl", first + second));
  const auto packed =
      read_documents(folder_.write("a.jsonl.xz", compress(first) + compress(second)));
  ASSERT_EQ(plain.size(), 3000u);
  ASSERT_EQ(packed.size(), plain.size());
  for (std::size_t i = 0; i < plain.size(); ++i) ASSERT_EQ(packed[i].text, plain[i].text) << i;
}

TEST_F(DocumentsTest, NothingToReadIsAnError) {
  EXPECT_THAT(error_of("a.txt", ""), HasSubstr("expected text, found none"));
  EXPECT_THAT(error_of("a.jsonl", ""), HasSubstr("expected text, found none"));
  EXPECT_THAT(error_of("b.jsonl", "{\"text\": \"\"}\n"), HasSubstr("expected text, found none"));
  EXPECT_THROW(read_documents(folder_.path() / "missing.txt"), InputError);
  EXPECT_THROW(read_documents(folder_.path()), InputError);
}

TEST_F(DocumentsTest, InvalidUtf8IsPlaced) {
  EXPECT_THAT(error_of("a.txt", "abc\xFFxyz"), HasSubstr("found byte 0xff at byte offset 3"));
  EXPECT_THAT(error_of("b.txt", "ok \xE2\x82"), HasSubstr("at byte offset 3"));
  EXPECT_THAT(error_of("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\xC0\x80\"}\n"),
              AllOf(HasSubstr("line 2"), HasSubstr("byte offset 11")));
  EXPECT_THAT(error_of("a.jsonl.xz", compress("{\"text\": \"\x80\"}\n")),
              AllOf(HasSubstr("line 1"), HasSubstr("byte offset 10")));
}

TEST_F(DocumentsTest, MalformedLinesArePlaced) {
  EXPECT_THAT(error_of("a.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \n"),
              AllOf(HasSubstr("line 3"), HasSubstr("malformed JSON")));
  EXPECT_THAT(error_of("b.jsonl", "[1]\n"), HasSubstr("expected a JSON object, found array"));
  EXPECT_THAT(error_of("c.jsonl", "{\"txt\": \"a\"}\n"),
              HasSubstr("expected a string \"text\", found none"));
  EXPECT_THAT(error_of("d.jsonl", "{\"text\": 5}\n"), HasSubstr("found number"));
  EXPECT_THAT(error_of("e.jsonl", "{\"text\": \"\\ud800\"}\n"), HasSubstr("malformed JSON"));
  EXPECT_THAT(error_of("f.jsonl", std::string(100000, '[') + "\n"), HasSubstr("malformed JSON"));
}

TEST_F(DocumentsTest, MalformedXzIsPlaced) {
  const std::string good = compress("{\"text\": \"" + std::string(5000, 'q') + "\"}\n");
  EXPECT_THAT(error_of("a.jsonl.xz", "{\"text\": \"not xz\"}\n"),
              HasSubstr("found something that is not xz at byte offset"));
  EXPECT_THAT(error_of("b.jsonl.xz", good.substr(0, good.size() / 2)), HasSubstr("truncated"));
  std::string corrupt = good;
  corrupt[corrupt.size() / 2] ^= 0x55;
  EXPECT_THAT(error_of("c.jsonl.xz", corrupt), HasSubstr("byte offset"));
  EXPECT_THAT(error_of("d.jsonl.xz", ""), HasSubstr("truncated"));
}

}  // namespace
}  // namespace indexcache
