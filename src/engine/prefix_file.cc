#include "engine/prefix_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/content_hash.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

constexpr std::string_view kMagic = "tokenmill-prefix 2\n", kMagicStart = "tokenmill-prefix ";
constexpr size_t kLengthBytes = 8, kDigestBytes = ContentHash::kDigits;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::kValue, "The saved prefix " + path + " " + what);
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string little_endian(uint64_t value) {
  std::string bytes(kLengthBytes, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(value & 0xff);
    value >>= 8;
  }
  return bytes;
}

uint64_t from_little_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// No other writer's, be it a thread of this process.
std::string temporary_name(const std::string& path) {
  static std::atomic<uint64_t> number{0};
  return path + ".tmp" + std::to_string(::getpid()) + "-" + std::to_string(number++);
}

// A file under another name until it is whole; removed unless it was kept.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path), temporary_(temporary_name(path)) {
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd_ < 0) fail_system();
  }
  ~NewFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!kept_) ::unlink(temporary_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail_system();
      bytes.remove_prefix(static_cast<size_t>(count));
    }
  }
  void keep() {
    if (::fsync(fd_) != 0) fail_system();
    if (::close(std::exchange(fd_, -1)) != 0) fail_system();
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_system();
    kept_ = true;
  }

 private:
  [[noreturn]] void fail_system() const {
    const int reason = errno;
    throw Error(ErrorKind::kRuntime,
                "The prefix could not be saved to " + path_ + ": " + std::strerror(reason) + ". Nothing was changed.");
  }

  std::string path_, temporary_;
  int fd_ = -1;
  bool kept_ = false;
};

}  // namespace

void write_prefix_file(const std::string& path, const PrefixFile& file) {
  const nlohmann::ordered_json header = {{"key", file.key}, {"tokens", file.tokens}, {"kv_bytes", file.kv.size()}};
  const std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  NewFile out(path);
  ContentHash digest;
  const std::string length = little_endian(text.size());
  for (const std::string_view part : {kMagic, std::string_view(length), std::string_view(text), text_of(file.kv)}) {
    digest.update(part);
    out.write(part);
  }
  out.write(digest.finish());
  out.keep();
}

PrefixFile read_prefix_file(const std::string& path) {
  PrefixFile file;
  file.memory = std::make_shared<const MappedFile>(path);
  const std::string_view all = text_of(file.memory->bytes());
  if (!all.starts_with(kMagicStart)) fail(path, "is no file of save_prefix().");
  if (!all.starts_with(kMagic)) {
    fail(path, "was written in another format, by another version of tokenmill. Save it again with this one.");
  }
  const std::string damaged = "is cut or damaged. Save it again.";
  size_t begin = kMagic.size() + kLengthBytes;
  if (all.size() < begin + kDigestBytes) fail(path, damaged);
  ContentHash digest;
  digest.update(all.substr(0, all.size() - kDigestBytes));
  if (digest.finish() != all.substr(all.size() - kDigestBytes)) fail(path, damaged);
  // The sum holds, so the rest is as it was written; what follows guards against a file made by hand.
  const uint64_t length = from_little_endian(all.substr(kMagic.size(), kLengthBytes));
  if (length > all.size() - kDigestBytes - begin) fail(path, damaged);
  try {
    const auto header = nlohmann::ordered_json::parse(all.substr(begin, length));
    file.key = header.at("key");
    file.tokens = header.at("tokens").get<std::vector<int32_t>>();
    begin += length;
    const size_t kv_bytes = all.size() - kDigestBytes - begin;
    if (header.at("kv_bytes").get<uint64_t>() != kv_bytes) fail(path, damaged);
    file.kv = file.memory->bytes().subspan(begin, kv_bytes);
  } catch (const nlohmann::json::exception&) {
    fail(path, damaged);
  }
  return file;
}

void require_same_key(const std::string& path, const PrefixKey& in_file, const PrefixKey& here) {
  for (const auto& [name, value] : here.items()) {
    const auto found = in_file.find(name);
    if (found != in_file.end() && *found == value) continue;
    fail(path, fmt::format("cannot be used here: its {} is {}, this engine's is {}. Save it again with this engine, or "
                           "start the engine as it was saved.",
                           name, found == in_file.end() ? "not told" : found->dump(), value.dump()));
  }
}

}  // namespace tokenmill
