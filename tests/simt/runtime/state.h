// state.h - what the scheduler knows of threads, warps and blocks. Part of runtime.cpp.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>
#include "fiber.h"
#include "interface.h"

extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));  // this library in memory

namespace simt {
namespace {
// What has been seen to happen, sorted by key: of a block (before an epoch) or of one of its threads (before a fence).
struct Known {
  std::vector<std::pair<uint64_t, uint32_t>> before;

  static uint64_t key(uint32_t block, int thread = -1) { return uint64_t(block) << 16 | uint64_t(thread + 1); }
  void add(uint64_t k, uint32_t n) {
    auto it = std::lower_bound(before.begin(), before.end(), std::make_pair(k, 0u));
    if (it == before.end() || it->first != k) before.insert(it, {k, n});
    else it->second = std::max(it->second, n);
  }
  void join(const Known& o) {
    for (auto& e : o.before) add(e.first, e.second);
  }
  bool has(uint64_t k, uint32_t n) const {
    auto it = std::lower_bound(before.begin(), before.end(), std::make_pair(k, 0u));
    return it != before.end() && it->first == k && it->second > n;
  }
};

// An access to a byte, and when it was in its block's, warp's and thread's time.
struct Access {
  uint32_t block = ~0u, epoch = 0, warp_epoch = 0;
  uint16_t fence = 0;  // fences of this thread before it
  int16_t who = 0;     // thread in its block + 1, negative when atomic or volatile; 0: no access yet

  bool any() const { return who != 0; }
  int thread() const { return std::abs(who) - 1; }
};

struct Shadow {  // of one byte: the last write and two readers
  Access write, read, read2;
};

struct Region {  // memory that may be accessed: an array argument or a shared variable
  const char* start;
  size_t size;
  bool shared, writable;
  std::string name;
  std::vector<Shadow> bytes;
  size_t phase = 0;           // of start in its device allocation
  Count* count = nullptr;     // null: its traffic is not counted
  std::vector<bool> seen[2];  // sectors read, written

  Region(const char* p, size_t n, bool is_shared, bool may_write, std::string said)
      : start(p), size(n), shared(is_shared), writable(may_write), name(std::move(said)), bytes(n) {}
};

struct Event {  // of a lane's trace: a global access, or a basic block entered (size 0)
  uint32_t pc;
  uint16_t region;
  uint8_t size, write;
  uint64_t offset;
};

enum class State : uint8_t { New, Ready, AtBlock, AtWarp, AtGrid, Done };

struct Thread {
  uint3 index{};
  State state = State::Done;
  Fiber* fiber = nullptr;
  Exchange* exchange = nullptr;  // on its own stack, while it waits at a warp operation
  uint32_t fences = 0;
  Known known, pending, fenced;  // seen; read but not yet fenced; what its next atomic write passes on
  std::vector<Event> trace;      // not yet merged with the warp's other lanes
  size_t merged = 0;             // of them, while merging

  void reset() {  // as new, but for the memory of its trace
    std::vector<Event> kept = std::move(trace);
    *this = Thread{};
    trace = std::move(kept);
    trace.clear();
  }
};

struct Warp {
  unsigned exist = 0, exited = 0, epoch = 0;
};

struct Block {
  uint3 index{};
  uint32_t id = 0;
  int alive = 0, waiting = 0;
  unsigned epoch = 0, synced = 0;  // barriers passed; of them when the grid last met
  unsigned votes[2] = {0, 0};      // of __syncthreads_count, in even and odd epochs
  Site site{};                     // of the barrier that threads wait at
  size_t shared_total = 0, dynamic_align = 0;
  char* dynamic = nullptr;
  std::vector<char*> slots;
  std::vector<std::unique_ptr<char, void (*)(void*)>> owned;
  std::vector<Region> shared;
  Known known;
};

// The resident blocks: one, or all of a cooperative grid. Each is padded to whole warps in `threads`.
std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<Block> blocks;
int stride = 32;   // threads a block takes in `threads`
int current = -1;  // the running thread; -1: the host
const Launch* launched = nullptr;
std::string error;
bool in_atomic = false;
const void* fault_pc = nullptr;  // code address of the offending access, where there is one

bool descending() { return launched->order == 1; }
// Of the running thread: set with `current`, since each access asks for them.
Thread* self = nullptr;
Block* my_block = nullptr;
Warp* my_warp = nullptr;
int my_number = 0;  // in its block
}  // namespace
}  // namespace simt
