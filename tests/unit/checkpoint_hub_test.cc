// The hub's parts without a network: names, choice of files, the cache's layout, digests. tests/cli/test_hub_*.py have
// the downloads.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint/hub/digest.h"
#include "checkpoint/hub/hub_api.h"
#include "checkpoint/hub/hub_cache.h"
#include "checkpoint/hub/hub_files.h"
#include "checkpoint/hub/hub_id.h"
#include "checkpoint/hub/hub_settings.h"
#include "checkpoint/model_path.h"
#include "util/expect_error.h"
#include "util/scoped_variable.h"
#include "util/temp_folder.h"

namespace tokenmill {
namespace {

namespace fs = std::filesystem;
using testing::ScopedVariable;
using testing::TempFolder;

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

std::string digest_of(Digest::Kind kind, const std::string& text, size_t piece) {
  Digest digest(kind);
  for (size_t at = 0; at < text.size(); at += piece) digest.update(std::string_view(text).substr(at, piece));
  return digest.finish();
}

TEST(HubDigest, KnownValues) {  // FIPS 180-4's examples
  for (const size_t piece : {1u, 3u, 63u, 64u, 65u, 100000u}) {
    const auto sha1 = [&](const std::string& text) { return digest_of(Digest::Kind::kSha1, text, piece); };
    const auto sha256 = [&](const std::string& text) { return digest_of(Digest::Kind::kSha256, text, piece); };
    EXPECT_EQ(sha1(""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
    EXPECT_EQ(sha1("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
    EXPECT_EQ(sha1("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
    EXPECT_EQ(sha1(std::string(1000000, 'a')), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
    EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    EXPECT_EQ(sha256(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST(HubId, Forms) {
  EXPECT_EQ(parse_hub_id("org/name")->repo, "org/name");
  EXPECT_EQ(parse_hub_id("org/name")->selector, "");
  EXPECT_EQ(parse_hub_id("Org-1/na.me_2:Q4_K_M")->selector, "Q4_K_M");
  EXPECT_EQ(parse_hub_id("org/name:sub/file.gguf")->selector, "sub/file.gguf");
  for (const char* text : {"", "name", "/name", "org/", "a/b/c", "./name", "../name", "org/..", "org/na me",
                           "org/name:", "org/name:../x", "org/name:/x", "org/name:a//b", "~/x", "org\\x/y"}) {
    EXPECT_FALSE(parse_hub_id(text)) << text;
  }
}

TEST(HubFiles, AFolder) {
  const HubId id{.repo = "org/name", .selector = ""};
  const std::vector<std::string> names = {"README.md",        "config.json",    "consolidated.safetensors",
                                          "model.gguf",       "tokenizer.json", "model.safetensors",
                                          "pytorch_model.bin"};
  const auto files = [&](const std::string& format, HubWant want) {
    return choose_hub_files(id, names, format, want).files;
  };
  EXPECT_EQ(files("auto", HubWant::kModel),
            (std::vector<std::string>{"config.json", "tokenizer.json", "model.safetensors"}));
  EXPECT_EQ(files("auto", HubWant::kTokenizer), (std::vector<std::string>{"config.json", "tokenizer.json"}));
  EXPECT_EQ(files("dummy", HubWant::kModel), (std::vector<std::string>{"config.json", "tokenizer.json"}));
  EXPECT_EQ(choose_hub_files(id, names, "gguf", HubWant::kModel).gguf, "model.gguf");
  const HubChoice indexed = choose_hub_files(
      id, {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"}, "auto", HubWant::kModel);
  EXPECT_EQ(indexed.index, "model.safetensors.index.json");
  EXPECT_EQ(indexed.files, (std::vector<std::string>{"config.json", "model.safetensors.index.json"}));
}

TEST(HubFiles, TagsAreWords) {
  const std::vector<std::string> names = {"m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.IQ4_XS.gguf", "UD/m-UD-Q4_K_XL.gguf"};
  const auto choose = [&](const std::string& tag) {
    return choose_hub_files({.repo = "org/name", .selector = tag}, names, "auto", HubWant::kModel).gguf;
  };
  EXPECT_EQ(choose("q4_k_m"), names[0]);
  EXPECT_EQ(choose("IQ4_XS"), names[2]);
  EXPECT_EQ(choose("Q4_K_XL"), names[3]);
  EXPECT_EQ(choose("m-UD-Q4_K_XL.gguf"), names[3]);
  EXPECT_LOAD_ERROR(choose("Q4_K"), ErrorKind::kValue, "org/name", "no GGUF file that is or has 'Q4_K'",
                    "'m-Q4_K_M.gguf'");
  EXPECT_LOAD_ERROR(choose("m"), ErrorKind::kValue, "several GGUF files");
}

TEST(HubCache, LinksAsOthersReadThem) {
  TempFolder folder;
  const HubCache cache(folder.path(), "org/name");
  cache.prepare(kCommit);
  folder.write("models--org--name/blobs/aa", "content");
  cache.link(kCommit, "config.json", "aa");
  cache.link(kCommit, "sub/deep/x.gguf", "aa");
  cache.link(kCommit, "config.json", "aa");  // twice is as good
  const fs::path snapshot = cache.snapshot(kCommit);
  EXPECT_EQ(fs::read_symlink(snapshot / "config.json"), "../../blobs/aa");
  EXPECT_EQ(fs::read_symlink(snapshot / "sub/deep/x.gguf"), "../../../../blobs/aa");
  EXPECT_EQ(cache.find_commit("main"), "");
  cache.write_ref("main", kCommit);
  cache.write_ref("refs/pr/1", kCommit);
  cache.write_ref(kCommit, kCommit);
  EXPECT_EQ(testing::read_file(folder.file("models--org--name/refs/main")), kCommit);
  EXPECT_FALSE(fs::exists(folder.file("models--org--name/refs/" + kCommit)));
  for (const std::string& revision : {std::string("main"), std::string("refs/pr/1"), kCommit}) {
    EXPECT_EQ(cache.find_commit(revision), kCommit);
  }
  EXPECT_EQ(cache.find_commit("../../x"), "");
  fs::create_symlink("../../blobs/gone", snapshot / "broken");
  EXPECT_EQ(cache.list(kCommit), (std::vector<std::string>{"config.json", "sub/deep/x.gguf"}));
  folder.write("models--org--name/refs/main", "../../x");
  EXPECT_LOAD_ERROR(cache.find_commit("main"), ErrorKind::kValue, "refs/main", "commit hash");
}

TEST(HubCache, LocksKeepOthersOut) {
  TempFolder folder;
  const std::string path = folder.file("x.lock");
  const HubLock mine(path);
  ASSERT_TRUE(mine.try_lock());
  EXPECT_FALSE(HubLock(path).try_lock());  // another thread of this process
  const pid_t child = ::fork();
  if (child == 0) ::_exit(HubLock(path).try_lock() ? 1 : 0);
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(HubSettings, Environment) {
  TempFolder home;
  const ScopedVariable variables[] = {{"HF_HOME", home.path()},
                                      {"HF_HUB_CACHE", ""},
                                      {"HUGGINGFACE_HUB_CACHE", ""},
                                      {"HF_ENDPOINT", "http://h/"},
                                      {"HF_TOKEN", ""},
                                      {"HUGGING_FACE_HUB_TOKEN", ""},
                                      {"HF_HUB_OFFLINE", "true"},
                                      {"HF_HUB_DOWNLOAD_TIMEOUT", "7"},
                                      {"HF_TOKEN_PATH", ""}};
  HubSettings settings = read_hub_settings("");
  EXPECT_EQ(settings.cache, home.path() + "/hub");
  EXPECT_EQ(settings.endpoint, "http://h");
  EXPECT_EQ(settings.token, "");
  EXPECT_TRUE(settings.offline);
  EXPECT_EQ(settings.download_timeout_s, 7);
  EXPECT_EQ(settings.metadata_timeout_s, 10);
  home.write("token", "from_file\n");
  EXPECT_EQ(read_hub_settings("").token, "from_file");
  home.write("token", "two\nlines");  // would be two headers
  EXPECT_EQ(read_hub_settings("").token, "");
  const ScopedVariable token("HF_TOKEN", " spaces "), cache("HF_HUB_CACHE", "/c"), online("HF_HUB_OFFLINE", "0");
  settings = read_hub_settings("");
  EXPECT_EQ(settings.token, "spaces");
  EXPECT_EQ(settings.cache, "/c");
  EXPECT_FALSE(settings.offline);
  EXPECT_EQ(read_hub_settings("/d").cache, "/d");
}

TEST(HubApi, Delays) {
  HttpResponse response;
  response.status = 429;
  EXPECT_TRUE(is_transient(response));
  EXPECT_EQ(retry_delay_s(response, 0), 0.5);
  EXPECT_EQ(retry_delay_s(response, 3), 4);
  EXPECT_EQ(retry_delay_s(response, 100), 60);
  response.headers["retry-after"] = "7";
  EXPECT_EQ(retry_delay_s(response, 3), 7);
  response.headers["retry-after"] = "Fri, 31 Dec 1999 23:59:59 GMT";
  EXPECT_EQ(retry_delay_s(response, 3), 0);
  const std::time_t soon = std::time(nullptr) + 30;
  char date[64];
  std::tm parts{};
  std::strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&soon, &parts));
  response.headers["retry-after"] = date;
  EXPECT_NEAR(retry_delay_s(response, 0), 30, 5);
  EXPECT_EQ(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), 784111777);
  for (const char* text : {"-1", "nan", "inf", "Fri, 31 Dez 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:59 CET",
                           "Fri, 31 Dec 1999 23:59:59 GMT+1", "Fri, 31 anF 1999 23:59:59 GMT"}) {
    response.headers["retry-after"] = text;
    EXPECT_EQ(retry_delay_s(response, 0), 0.5) << text;
  }
  for (const long status : {400, 401, 403, 404, 416}) {
    response.status = status;
    EXPECT_FALSE(is_transient(response)) << status;
  }
  EXPECT_EQ(url_quote("a b/c?%\xc3\xa4"), "a%20b%2Fc%3F%25%C3%A4");
  EXPECT_EQ(url_quote("a/b-c", "/"), "a/b-c");
}

TEST(HubModel, Offline) {
  TempFolder cache;
  const ScopedVariable offline("HF_HUB_OFFLINE", "1"), variable("HF_HUB_CACHE", cache.path());
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", {}), ErrorKind::kRuntime, "org/name", cache.path(),
                    "HF_HUB_OFFLINE");
  cache.write("models--org--name/refs/main", kCommit + "\n");
  const std::string folder = "models--org--name/snapshots/" + kCommit + "/";
  cache.write(folder + "config.json", "{}");
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", {}), ErrorKind::kRuntime, "org/name", "holds no weights");
  cache.write(folder + "model.safetensors.index.json",
              R"({"weight_map": {"t": "a.safetensors", "u": "b.safetensors"}})");
  cache.write(folder + "a.safetensors", "x");
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", {}), ErrorKind::kRuntime, "lacks 'b.safetensors'");
  cache.write(folder + "b.safetensors", "x");
  EXPECT_EQ(resolve_model_path("org/name", {}).path + "/", cache.file(folder));
  const std::string gguf = cache.write(folder + "m-Q8_0.gguf", "x");
  EXPECT_FALSE(resolve_model_path("org/name", {}).is_gguf);
  EXPECT_EQ(resolve_model_path("org/name:Q8_0", {}).path, gguf);
  EXPECT_TRUE(resolve_model_path("org/name:m-Q8_0.gguf", {}).is_gguf);
  CheckpointOptions options;
  options.revision = kCommit;  // a commit is a revision, too
  EXPECT_EQ(resolve_model_path("org/name", options).path + "/", cache.file(folder));
  options.revision = "v2";
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", options), ErrorKind::kRuntime, "'v2'");
  TempFolder other;
  options = {};
  options.download_dir = other.path();
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", options), ErrorKind::kRuntime, other.path());
}

}  // namespace
}  // namespace tokenmill
