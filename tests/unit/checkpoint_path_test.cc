// Which folder or file a model's name means.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include "checkpoint/model_path.h"
#include "util/expect_error.h"
#include "util/temp_folder.h"

namespace tokenmill {
namespace {

using testing::TempFolder;

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

}  // namespace
}  // namespace tokenmill
