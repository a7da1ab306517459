#include "base/machine.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/log.h"
#include "tokenmill/error.h"

namespace tokenmill {
namespace {

class Machine : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "tokenmill_machine_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    files_ = {root_ + "/proc", root_ + "/cgroup"};
    write("proc/meminfo", "MemTotal:       2000 kB\nMemAvailable:   1000 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + "/" + path).parent_path());
    std::ofstream(root_ + "/" + path) << text;
  }
  std::string root_;
  MachineFiles files_;
};

TEST_F(Machine, WithoutCgroupTheAffinityMaskCounts) {
  cpu_set_t mask;
  ASSERT_EQ(sched_getaffinity(0, sizeof(mask), &mask), 0);
  EXPECT_EQ(usable_cpus(files_), CPU_COUNT(&mask));
  EXPECT_EQ(available_memory(files_), 1000 * 1024);
}

TEST_F(Machine, CgroupV2QuotaOfAParentLimits) {
  write("proc/self/cgroup", "0::/job/step\n");
  write("cgroup/job/step/cpu.max", "max 100000\n");
  write("cgroup/job/cpu.max", "50000 100000\n");
  EXPECT_EQ(usable_cpus(files_), 1);
  write("cgroup/job/step/memory.max", "max\n");
  write("cgroup/job/memory.max", "500000\n");
  write("cgroup/job/memory.current", "300000\n");
  write("cgroup/job/memory.stat", "anon 5\ninactive_file 100000\n");
  EXPECT_EQ(available_memory(files_), 300000);
}

TEST_F(Machine, CgroupV1QuotaAtTheMountLimits) {
  write("proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n");
  write("cgroup/cpu/cpu.cfs_quota_us", "100000\n");
  write("cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(usable_cpus(files_), 1);
  write("cgroup/memory/memory.limit_in_bytes", "700000\n");
  write("cgroup/memory/memory.usage_in_bytes", "600000\n");
  write("cgroup/memory/memory.stat", "total_inactive_file 50000\n");
  EXPECT_EQ(available_memory(files_), 150000);
}

TEST_F(Machine, UnlimitedGroupsDoNotLimit) {
  write("proc/self/cgroup", "4:memory:/\n3:cpu,cpuacct:/\n");
  write("cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  write("cgroup/cpu/cpu.cfs_period_us", "100000\n");
  write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("cgroup/memory/memory.usage_in_bytes", "600000\n");
  EXPECT_GE(usable_cpus(files_), 1);
  EXPECT_EQ(available_memory(files_), 1000 * 1024);
}

TEST(Logger, LevelsAndPrefix) {
  std::vector<std::string> lines;
  const Logger logger("info", [&](LogLevel, const std::string& line) { lines.push_back(line); });
  logger.log(LogLevel::kDebug, "hidden");
  logger.info("Load weight begin.");
  logger.log(LogLevel::kInfo, "server_args=", /*with_rank=*/false);
  ASSERT_EQ(lines.size(), 2u);
  // [2026-11-23 10:00:00 TP0] text
  EXPECT_EQ(lines[0].substr(20), " TP0] Load weight begin.");
  EXPECT_EQ(lines[1].substr(20), "] server_args=");
  EXPECT_EQ(lines[0][0], '[');
  EXPECT_EQ(lines[0][11], ' ');
  const Logger silent("critical", [&](LogLevel, const std::string& line) { lines.push_back(line); });
  silent.error("hidden");
  EXPECT_EQ(lines.size(), 2u);
  EXPECT_THROW(Logger("loud"), Error);
}

TEST(Logger, WritesToStderrOnly) {
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  Logger("debug").warning("careful {}");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find(" TP0] careful {}\n"), std::string::npos);
}

}  // namespace
}  // namespace tokenmill
