#include "indexcache/base/sha256.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>

#include "indexcache/base/error.h"

namespace indexcache {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  INDEXCACHE_ASSERT(state_->context != nullptr);
  INDEXCACHE_ASSERT(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  INDEXCACHE_ASSERT(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1);
}

void Sha256::update(std::string_view text) { update(std::as_bytes(std::span(text))); }

std::string Sha256::hex() {
  std::array<unsigned char, 32> digest;
  unsigned int size = 0;
  INDEXCACHE_ASSERT(EVP_DigestFinal_ex(state_->context, digest.data(), &size) == 1);
  INDEXCACHE_ASSERT(size == digest.size());
  std::string text;
  for (const unsigned char byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

}  // namespace indexcache
