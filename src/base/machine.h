// What this process may use of the machine: processors and memory, cgroup limits (v1 and v2) included.
#pragma once

#include <cstdint>
#include <string>

namespace tokenmill {

// Where the kernel's files are looked for; tests point it to a folder of their own.
struct MachineFiles {
  std::string proc = "/proc";
  std::string cgroup = "/sys/fs/cgroup";
};

// The processors of the affinity mask, capped by the cgroup's CPU quota rounded up; at least 1.
int usable_cpus(const MachineFiles& files = {});

// Bytes that can still be used: MemAvailable, capped by what each memory limit of the process's cgroup and its parents
// leaves (page cache that can be dropped counts as free). 0 where nothing can be read.
int64_t available_memory(const MachineFiles& files = {});

}  // namespace tokenmill
