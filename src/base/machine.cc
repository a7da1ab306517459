#include "base/machine.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

namespace tokenmill {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// A file's first word as a number; nothing where the file or the number is missing ("max").
std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// The value after `key` in a file of "key value" lines.
std::optional<int64_t> read_keyed(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

// The folders of this process's cgroup for one controller and of all its parents, innermost first. /proc/self/cgroup
// has lines "id:controllers:path"; v2's has no controllers. Inside a container the path may not exist below the mount,
// which then shows the container's own group at its root, so the root is always in the list.
std::vector<std::string> cgroup_folders(const MachineFiles& files, const std::string& controller) {
  std::vector<std::string> folders;
  std::ifstream file(files.proc + "/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find("," + controller + ",") == std::string::npos) continue;
    const std::string mount = files.cgroup + (v2 ? "" : "/" + controller);
    std::string path = line.substr(second + 1);
    while (!path.empty() && path != "/") {
      folders.push_back(mount + path);
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
    folders.push_back(mount);
  }
  return folders;
}

// Processors' worth of time a group may use, rounded up.
int64_t cpu_quota(const std::string& folder) {
  if (std::ifstream v2(folder + "/cpu.max"); v2) {
    int64_t quota = 0, period = 0;
    if (v2 >> quota >> period && quota > 0 && period > 0) return (quota + period - 1) / period;
    return kNoLimit;
  }
  const auto quota = read_number(folder + "/cpu.cfs_quota_us"), period = read_number(folder + "/cpu.cfs_period_us");
  if (quota && period && *quota > 0 && *period > 0) return (*quota + *period - 1) / *period;
  return kNoLimit;
}

// Bytes a group's limit leaves.
int64_t memory_left(const std::string& folder) {
  std::optional<int64_t> limit = read_number(folder + "/memory.max");
  std::optional<int64_t> used = read_number(folder + "/memory.current");
  const char* cache_key = "inactive_file";
  if (!limit) {
    limit = read_number(folder + "/memory.limit_in_bytes");
    used = read_number(folder + "/memory.usage_in_bytes");
    cache_key = "total_inactive_file";
  }
  if (!limit || !used) return kNoLimit;
  const int64_t cache = read_keyed(folder + "/memory.stat", cache_key).value_or(0);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *used - cache));
}

int affinity_cpus() {
  // The mask is as long as the kernel's; grow until it fits.
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
    cpu_set_t* const mask = CPU_ALLOC(static_cast<size_t>(cpus));
    if (mask == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cpus));
    const int count = sched_getaffinity(0, bytes, mask) == 0 ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (count > 0) return count;
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int usable_cpus(const MachineFiles& files) {
  int64_t cpus = affinity_cpus();
  for (const std::string& folder : cgroup_folders(files, "cpu")) cpus = std::min(cpus, cpu_quota(folder));
  return static_cast<int>(std::max<int64_t>(1, cpus));
}

int64_t available_memory(const MachineFiles& files) {
  const auto available_kib = read_keyed(files.proc + "/meminfo", "MemAvailable:");
  int64_t bytes = available_kib ? *available_kib * 1024 : kNoLimit;
  for (const std::string& folder : cgroup_folders(files, "memory")) bytes = std::min(bytes, memory_left(folder));
  return bytes == kNoLimit ? 0 : bytes;
}

}  // namespace tokenmill
