// interface.h - what a kernel's translation unit and the emulator's runtime (runtime.cpp) know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3;
struct dim3;

namespace simt {

// A place in the kernel's source. `what` is the operation's name; `id` tells two barriers on one line apart.
struct Site {
  const char* what;
  const char* file;
  int line, id;
};

// ---- what a device thread calls -----------------------------------------------------------------
extern uint3 thread_index, block_index;
extern dim3 block_shape, grid_shape;

unsigned barrier(Site, bool predicate);  // __syncthreads and its kin: how many threads gave true
void grid_barrier(Site);                 // cooperative_groups: grid.sync()
void fence();                            // __threadfence
void yield(const void* pc = nullptr);    // lets the other threads run; pc: where in the kernel, for a message
void progress();                         // something changed, so a spinning thread may yet be released
unsigned active_lanes();
void check_block_size(size_t most);  // __launch_bounds__
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// One lane's part in a warp operation over `mask`: gives `in` of lane `source`, and the lanes whose `vote` was true.
struct Exchange {
  unsigned char in[16], out[16];
  unsigned mask, votes;
  int source;
  bool vote;
  Site site;
};
void exchange(Exchange&);

// Memory of a block: a shared variable by its slot (one a declaration and template instance), or the launch's dynamic
// part.
int new_slot();
void* shared_variable(int slot, const char* name, size_t size, size_t align);
void* dynamic_shared(const char* name, size_t align);

// While one of these lives, the thread's accesses count as atomic ones.
struct Atomic {
  Atomic();
  ~Atomic();
};

// ---- what the host gives for a launch; simt/launch.py has the same structures --------------------
struct Count {  // of one argument: (read, written)
  uint64_t requests[2], bytes[2], sectors[2], distinct[2];
};
struct Buffer {  // host memory that is copied to the device and back
  char* host;
  size_t size;
  size_t phase;  // of its first byte in its device allocation, which starts on a sector
  char* device;  // set by the launch
};
struct Range {   // an array argument
  void** value;  // where the kernel's pointer is to be written
  size_t buffer;
  size_t start, offset, size;   // in the buffer: what the pointer points at; the bytes that may be accessed
  uint32_t writable, argument;  // its place among the kernel's arguments
  Count* count;                 // null: not counted
};
struct Launch {
  unsigned grid[3], block[3];
  size_t dynamic_shared, shared_limit;
  unsigned order, cooperative;
  uint64_t seed;
  char* memory;  // what simt_reserve gave: the device's memory, and how far its buffers lie apart
  size_t spacing;
  Buffer* buffers;
  size_t n_buffers;
  const Range* ranges;
  size_t n_ranges;
};
int launch(const Launch&, void (*kernel)(void*), void* arguments);  // 0, or 1 and an error to be read
}  // namespace simt
