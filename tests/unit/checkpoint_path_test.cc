// Which folder or file a model's name means.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <cstdlib>

#include "checkpoint/model_path.h"
#include "util/expect_error.h"
#include "util/temp_folder.h"

namespace tokenmill {
namespace {

using testing::TempFolder;

// Sets an environment variable for one test.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    ::setenv(name, value.c_str(), 1);
  }
  ~ScopedVariable() { old_.empty() ? ::unsetenv(name_) : ::setenv(name_, old_.c_str(), 1); }

 private:
  const char* name_;
  std::string old_;
};

TEST(ModelPath, Folders) {
  TempFolder folder;
  folder.write("config.json", "{}");
  EXPECT_EQ(resolve_model_path(folder.path() + "//", {}).path, folder.path());
  EXPECT_FALSE(resolve_model_path(folder.path(), {}).is_gguf);
  const std::string gguf = folder.write("m.gguf", "x");
  EXPECT_TRUE(resolve_model_path(gguf, {}).is_gguf);
  EXPECT_EQ(resolve_model_path(folder.path(), {}).path, gguf);  // config.json alone has no weights
  folder.write("model.safetensors", "x");
  EXPECT_FALSE(resolve_model_path(folder.path(), {}).is_gguf);
  CheckpointOptions options;
  options.load_format = "gguf";
  EXPECT_EQ(resolve_model_path(folder.path(), options).path, gguf);
  options.load_format = "dummy";
  EXPECT_FALSE(resolve_model_path(folder.path(), options).is_gguf);
}

TEST(ModelPath, FolderWithSeveralGgufs) {
  TempFolder folder;
  folder.write("a.gguf", "x");
  folder.write("b.gguf", "x");
  EXPECT_LOAD_ERROR(resolve_model_path(folder.path(), {}), ErrorKind::kValue, folder.path(), "2 .gguf files");
}

TEST(ModelPath, WhatIsNoModel) {
  TempFolder folder;
  EXPECT_LOAD_ERROR(resolve_model_path("", {}), ErrorKind::kValue, "model_path");
  EXPECT_LOAD_ERROR(resolve_model_path(folder.file("absent"), {}), ErrorKind::kValue, "absent", "no such file");
  EXPECT_LOAD_ERROR(resolve_model_path(folder.file("a.gguf"), {}), ErrorKind::kValue, "a.gguf", "no such file");
  EXPECT_LOAD_ERROR(resolve_model_path(folder.write("notes.txt", "x"), {}), ErrorKind::kValue, "not a .gguf file");
  ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_LOAD_ERROR(resolve_model_path(folder.file("pipe"), {}), ErrorKind::kValue, "neither a folder");
  std::filesystem::create_symlink("loop", folder.file("loop"));
  EXPECT_LOAD_ERROR(resolve_model_path(folder.file("loop"), {}), ErrorKind::kValue, "loop", "symbolic links");
  CheckpointOptions options;
  options.load_format = "pt";
  EXPECT_LOAD_ERROR(Checkpoint::open(folder.path(), options), ErrorKind::kValue, "load_format", "dummy", "'pt'");
}

TEST(ModelPath, HubCache) {
  TempFolder cache;
  const ScopedVariable variable("HF_HUB_CACHE", cache.path());
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", {}), ErrorKind::kValue, "org/name", cache.path(),
                    "huggingface-cli download org/name");
  cache.write("models--org--name/refs/main", "abc123\n");
  const std::string config = cache.write("models--org--name/snapshots/abc123/config.json", "{}");
  const std::string snapshot = std::filesystem::path(config).parent_path().string();
  EXPECT_EQ(resolve_model_path("org/name", {}).path, snapshot);
  CheckpointOptions options;
  options.revision = "abc123";  // a commit is a revision, too
  EXPECT_EQ(resolve_model_path("org/name", options).path, snapshot);
  options.revision = "v2";
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", options), ErrorKind::kValue, "'v2'",
                    "huggingface-cli download org/name --revision v2");
  options.revision = "../../x";
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", options), ErrorKind::kValue, "not in the Hugging Face cache");
  TempFolder other;
  options = {};
  options.download_dir = other.path();
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", options), ErrorKind::kValue, other.path());
  cache.write("models--org--name/refs/main", "../../x");
  EXPECT_LOAD_ERROR(resolve_model_path("org/name", {}), ErrorKind::kValue, "refs/main", "commit hash");
}

TEST(ModelPath, HubCacheOfHfHome) {
  TempFolder home;
  const ScopedVariable no_cache("HF_HUB_CACHE", ""), no_old_cache("HUGGINGFACE_HUB_CACHE", "");
  const ScopedVariable variable("HF_HOME", home.path());
  home.write("hub/models--org--name/refs/main", "abc123");
  home.write("hub/models--org--name/snapshots/abc123/m.gguf", "x");
  EXPECT_TRUE(resolve_model_path("org/name", {}).is_gguf);
}

}  // namespace
}  // namespace tokenmill
