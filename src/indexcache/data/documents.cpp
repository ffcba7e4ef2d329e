// read_documents: plain text, JSON lines, and JSON lines decompressed from xz as they are read.
#include <lzma.h>

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "indexcache/base/error.h"
#include "indexcache/base/file.h"
#include "indexcache/data/text.h"

namespace indexcache {
namespace {

// More than the largest preset's dictionary needs; a forged header cannot ask for more.
constexpr std::uint64_t kMaxDecoderBytes = std::uint64_t{1} << 30;
constexpr std::size_t kOutputChunk = std::size_t{1} << 20;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void check_utf8(std::string_view text, const std::string& where) {
  if (const auto offset = find_invalid_utf8(text)) {
    throw input_error("{}: expected UTF-8 text, found byte 0x{:02x} at byte offset {}", where,
                      static_cast<unsigned char>(text[*offset]), *offset);
  }
}

// Collects documents from JSON lines that arrive in pieces.
class JsonLines {
 public:
  JsonLines(std::string file, std::vector<Document>& documents)
      : file_(std::move(file)), documents_(&documents) {}

  void add(std::string_view piece) {
    for (std::size_t end = piece.find('\n'); end != piece.npos; end = piece.find('\n')) {
      if (partial_.empty()) {
        add_line(piece.substr(0, end));
      } else {
        partial_ += piece.substr(0, end);
        add_line(partial_);
        partial_.clear();
      }
      piece.remove_prefix(end + 1);
    }
    partial_ += piece;
  }

  void finish() { add_line(partial_); }

 private:
  void add_line(std::string_view line) {
    ++line_number_;
    if (line.find_first_not_of(" \t\r") == line.npos) return;
    const std::string where = fmt::format("{}: line {}", file_, line_number_);
    check_utf8(line, where);
    nlohmann::json object;
    try {
      object = nlohmann::json::parse(line);
    } catch (const nlohmann::json::parse_error& error) {
      throw expectation_error(where, "a JSON object",
                              fmt::format("malformed JSON at byte offset {}", error.byte - 1));
    } catch (const nlohmann::json::exception&) {
      throw expectation_error(where, "a JSON object", "a number beyond any range");
    }
    if (!object.is_object()) throw expectation_error(where, "a JSON object", object.type_name());
    const auto text = object.find("text");
    if (text == object.end() || !text->is_string()) {
      throw expectation_error(where, "a string \"text\"",
                              text == object.end() ? "none" : text->type_name());
    }
    Document document;
    document.text = std::move(text->get_ref<std::string&>());
    if (const auto source = object.find("source"); source != object.end() && source->is_string()) {
      document.source = source->get<std::string>();
    }
    if (!document.text.empty()) documents_->push_back(std::move(document));
  }

  std::string file_;
  std::vector<Document>* documents_;
  std::string partial_;
  std::int64_t line_number_ = 0;
};

std::string_view lzma_reason(lzma_ret result) {
  switch (result) {
    case LZMA_FORMAT_ERROR:
      return "something that is not xz";
    case LZMA_BUF_ERROR:
      return "a truncated stream";
    case LZMA_MEMLIMIT_ERROR:
      return "a stream that asks for more than 1 GiB to decode";
    case LZMA_OPTIONS_ERROR:
      return "options that liblzma does not know";
    default:
      return "corrupt data";
  }
}

void decompress(const MappedFile& file, const std::function<void(std::string_view)>& consume) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, kMaxDecoderBytes, LZMA_CONCATENATED) != LZMA_OK) {
    throw device_error("{}: out of memory for the xz decoder", file.path().string());
  }
  const std::unique_ptr<lzma_stream, decltype(&lzma_end)> ended(&stream, lzma_end);
  std::vector<std::uint8_t> output(kOutputChunk);
  stream.next_in = reinterpret_cast<const std::uint8_t*>(file.bytes().data());
  stream.avail_in = file.bytes().size();
  lzma_ret result = LZMA_OK;
  while (result != LZMA_STREAM_END) {
    stream.next_out = output.data();
    stream.avail_out = output.size();
    result = lzma_code(&stream, LZMA_FINISH);
    if (result == LZMA_MEM_ERROR) {
      throw device_error("{}: out of memory for the xz decoder", file.path().string());
    }
    if (result != LZMA_OK && result != LZMA_STREAM_END) {
      throw input_error("{}: expected xz data, found {} at byte offset {}", file.path().string(),
                        lzma_reason(result), stream.total_in);
    }
    consume({reinterpret_cast<const char*>(output.data()), output.size() - stream.avail_out});
  }
}

}  // namespace

std::vector<Document> read_documents(const std::filesystem::path& path) {
  const MappedFile file(path);
  const std::string name = path.string();
  std::vector<Document> documents;
  if (name.ends_with(".jsonl")) {
    JsonLines lines(name, documents);
    lines.add(as_text(file.bytes()));
    lines.finish();
  } else if (name.ends_with(".jsonl.xz")) {
    JsonLines lines(name, documents);
    decompress(file, [&](std::string_view piece) { lines.add(piece); });
    lines.finish();
  } else {
    const std::string_view text = as_text(file.bytes());
    check_utf8(text, name);
    if (!text.empty()) documents.push_back({.source = "", .text = std::string(text)});
  }
  if (documents.empty()) throw expectation_error(name, "text", "none");
  return documents;
}

}  // namespace indexcache
