// memory.h - the device's global memory: each buffer lies 4 GiB from the next, so that an index gone wrong meets
// nothing. Part of runtime.cpp.
#pragma once
#include <sys/mman.h>
#include <cstring>
#include "interface.h"

namespace simt {
namespace {
constexpr size_t SLOTS = 64, PAGE = 4096, ALLOCATION = 512;  // CuPy's allocations are aligned to 512 bytes

struct DeviceMemory {
  char* base = nullptr;
  size_t spacing = size_t(4) << 30;

  bool reserve() {
    for (; !base && spacing >= (size_t(1) << 24); spacing /= 2) {  // a limit on address space: move closer together
      void* p = mmap(nullptr, (SLOTS + 1) * spacing, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) continue;
      base = static_cast<char*>(p);
      break;
    }
    return base != nullptr;
  }
  char* slot(size_t i) const { return base + (i + 1) * spacing; }  // the first gap keeps stacks away
  static size_t pages(const Buffer& b) { return (PAGE + b.phase % ALLOCATION + b.size + PAGE - 1) / PAGE * PAGE; }

  void upload(Buffer* buffers, size_t n) {
    if (!reserve()) return fail("the emulator found no address space for device memory");
    if (n > SLOTS) return fail("a launch with %zu separate arrays; the emulator holds %zu", n, SLOTS);
    for (size_t i = 0; i < n; ++i) {
      Buffer& b = buffers[i];
      if (pages(b) > spacing) return fail("an array of %zu bytes is too large for the emulator", b.size);
      if (mprotect(slot(i), pages(b), PROT_READ | PROT_WRITE)) return fail("no memory for %zu bytes", b.size);
      b.device = slot(i) + PAGE + b.phase % ALLOCATION;
      if (b.size) memcpy(b.device, b.host, b.size);
    }
  }
  // Gives the memory back, and the contents of what kernels may have written.
  void download(Buffer* buffers, size_t n, const Range* ranges, size_t n_ranges) {
    for (size_t i = 0; i < n; ++i) {
      Buffer& b = buffers[i];
      if (!b.device) continue;
      for (size_t k = 0; k < n_ranges; ++k) {
        const Range& r = ranges[k];
        if (r.buffer == i && r.writable && r.size) memcpy(b.host + r.offset, b.device + r.offset, r.size);
      }
      if (b.size > (size_t(1) << 22)) madvise(slot(i), pages(b), MADV_DONTNEED);
    }
  }
} device_memory;
}  // namespace
}  // namespace simt
