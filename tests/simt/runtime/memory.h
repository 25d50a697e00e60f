// memory.h - the device's global memory: each buffer lies 4 GiB from the next and from all else, so that an index gone
// wrong meets nothing. The address space is reserved once a process and shared by all libraries. Part of runtime.cpp.
#pragma once
#include <sys/mman.h>
#include <cstring>
#include "interface.h"

namespace simt {
namespace {
constexpr size_t SLOTS = 64, PAGE = 4096, ALLOCATION = 512;  // CuPy's allocations are aligned to 512 bytes

char* slot(const Launch& l, size_t i) { return l.memory + (i + 1) * l.spacing; }
size_t pages(const Buffer& b) { return (PAGE + b.phase % ALLOCATION + b.size + PAGE - 1) / PAGE * PAGE; }

void upload(const Launch& l) {
  if (!l.memory) return fail("the emulator found no address space for device memory");
  if (l.n_buffers > SLOTS) return fail("a launch with %zu separate arrays; the emulator holds %zu", l.n_buffers, SLOTS);
  for (size_t i = 0; i < l.n_buffers; ++i) {
    Buffer& b = l.buffers[i];
    if (pages(b) > l.spacing) return fail("an array of %zu bytes is too large for the emulator", b.size);
    if (mprotect(slot(l, i), pages(b), PROT_READ | PROT_WRITE)) return fail("no memory for %zu bytes", b.size);
    b.device = slot(l, i) + PAGE + b.phase % ALLOCATION;
    if (b.size) memcpy(b.device, b.host, b.size);
  }
}

// Gives back what kernels may have written, and the memory of large buffers.
void download(const Launch& l) {
  for (size_t k = 0; k < l.n_ranges; ++k) {
    const Range& r = l.ranges[k];
    const Buffer& b = l.buffers[r.buffer];
    if (r.writable && r.size) memcpy(b.host + r.offset, b.device + r.offset, r.size);
  }
  for (size_t i = 0; i < l.n_buffers; ++i)
    if (l.buffers[i].size > (size_t(1) << 22)) madvise(slot(l, i), pages(l.buffers[i]), MADV_DONTNEED);
}
}  // namespace
}  // namespace simt

// Address space for all buffers, and how far apart they lie: less where there is a limit. Null: there is none.
extern "C" char* simt_reserve(size_t* spacing) {
  for (*spacing = size_t(4) << 30; *spacing >= (size_t(1) << 24); *spacing /= 2) {
    const size_t size = (simt::SLOTS + 1) * *spacing;
    void* p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) return static_cast<char*>(p);
  }
  return nullptr;
}
