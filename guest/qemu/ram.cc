// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/ram.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <algorithm>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <memory>
#include <vector>

namespace remusd::guest::qemu {
namespace {

constexpr std::string_view kMemfdPath = "/memfd:memory-backend-memfd";

struct Area {
  uint64_t start = 0, end = 0, offset = 0;
  dev_t device = 0;
  ino_t inode = 0;
};

/// Shared, writable areas of the memory file, joined where the kernel has split one mapping.
Result<std::vector<Area>> shared_areas(int pid, const std::string& mem_path) {
  const std::string name = "/proc/" + std::to_string(pid) + "/maps";
  std::ifstream maps(name);
  if (!maps) return Status::from_errno("read '" + name + "'");
  std::vector<Area> areas;
  std::string line;
  while (std::getline(maps, line)) {
    Area area;
    char rights[5] = {};
    unsigned major = 0, minor = 0;
    int path_at = 0;
    uint64_t inode = 0;
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &area.start,
                    &area.end, rights, &area.offset, &major, &minor, &inode, &path_at) != 7) {
      continue;
    }
    const std::string_view path = std::string_view(line).substr(std::min<size_t>(path_at, line.size()));
    const bool is_ram = path.starts_with(kMemfdPath) || (!mem_path.empty() && path.starts_with(mem_path));
    if (!is_ram || rights[1] != 'w' || rights[3] != 's') continue;
    area.device = makedev(major, minor);
    area.inode = inode;
    if (!areas.empty() && areas.back().inode == area.inode && areas.back().end == area.start &&
        areas.back().offset + (areas.back().end - areas.back().start) == area.offset) {
      areas.back().end = area.end;
    } else {
      areas.push_back(area);
    }
  }
  return areas;
}

/// The number of a descriptor of process `pid` for the file behind `area`.
Result<std::string> descriptor_of(int pid, const Area& area) {
  const std::string directory = "/proc/" + std::to_string(pid) + "/fd";
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(directory.c_str()), ::closedir);
  if (!entries) return Status::from_errno("look into '" + directory + "'");
  while (const dirent* entry = ::readdir(entries.get())) {
    struct stat info {};
    std::string path = directory + "/" + entry->d_name;
    if (::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_ino == area.inode &&
        info.st_dev == area.device) {
      return path;
    }
  }
  return Status(Code::unsafe, "process " + std::to_string(pid) + " keeps no descriptor of its RAM file");
}

}  // namespace

Result<Ram> open_ram(int pid, uint64_t bytes, const std::string& mem_path, bool writable) {
  REMUSD_ASSIGN(std::vector<Area> areas, shared_areas(pid, mem_path));
  std::erase_if(areas,
                [bytes](const Area& area) { return area.offset != 0 || area.end - area.start != bytes; });
  if (areas.size() != 1) {
    return Status(Code::unsafe, "process " + std::to_string(pid) + " has " + std::to_string(areas.size()) +
                                    " shared mappings that may be the guest's RAM of " +
                                    std::to_string(bytes) +
                                    " bytes; start QEMU with -object memory-backend-memfd,id=ram0,size=SIZE,"
                                    "share=on -machine ...,memory-backend=ram0");
  }
  REMUSD_ASSIGN(const std::string path, descriptor_of(pid, areas[0]));
  Ram ram;
  ram.file.reset(::open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (!ram.file) return Status::from_errno("open the guest's RAM '" + path + "'");
  struct statfs system {};
  if (::fstatfs(ram.file.get(), &system) != 0) return Status::from_errno("look at the guest's RAM file");
  if (system.f_type != TMPFS_MAGIC) {
    return Status(
        Code::unsafe,
        "the guest's RAM is on a file system whose writes cannot be tracked (huge pages or a disk); "
        "use memory-backend-memfd without hugetlb=on, or a file on tmpfs");
  }
  struct stat info {};
  if (::fstat(ram.file.get(), &info) != 0) return Status::from_errno("look at the guest's RAM file");
  if (static_cast<uint64_t>(info.st_size) != bytes || bytes % kPageSize != 0) {
    return Status(Code::unsafe, "the guest's RAM file has " + std::to_string(info.st_size) + " bytes, not " +
                                    std::to_string(bytes));
  }
  REMUSD_ASSIGN(ram.mapping, Mapping::shared(ram.file.get(), bytes, writable, "the guest's RAM"));
  ram.range = {areas[0].start, bytes};
  return ram;
}

Status clear_pages(int fd, uint64_t bytes) {
  if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) != 0) {
    return Status::from_errno("clear the standby's RAM");
  }
  return {};
}

}  // namespace remusd::guest::qemu
