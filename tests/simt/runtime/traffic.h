// traffic.h - global memory traffic: which 32-byte sectors each warp's accesses touch. Part of runtime.cpp.
//
// Each lane keeps a trace of its accesses and of the basic blocks it enters. Lanes of a warp are lined up afterwards:
// those at the lowest code address step together, as after a reconvergence on the device (the flags keep blocks in
// source order).
#pragma once
#include "state.h"

namespace simt {
namespace {
constexpr size_t TRACE_MAX = 4096;  // events a lane may be ahead of its warp: bounds the memory
constexpr uint64_t SECTOR = 32;
constexpr uint32_t NO_PC = ~0u;
std::vector<Region> regions;  // the launch's array arguments
bool counting = false;

// Where the lowest lane stands; NO_PC: nobody has anything left, or (without `all`) a lane that may come lower must run
// first.
uint32_t lowest_pc(const Thread* lane, bool all) {
  uint32_t pc = NO_PC;
  for (int l = 0; l < 32; ++l) {
    if (lane[l].merged < lane[l].trace.size()) pc = std::min(pc, lane[l].trace[lane[l].merged].pc);
    else if (!all && (lane[l].state == State::Ready || lane[l].state == State::New)) return NO_PC;
  }
  return pc;
}

// Counts one access of a warp: `hit` has the (region, sector) of each lane that took part.
void count_request(std::vector<std::pair<uint16_t, uint64_t>>& hit, bool write) {
  std::sort(hit.begin(), hit.end());
  for (size_t i = 0; i < hit.size(); ++i) {
    Region& r = regions[hit[i].first];
    if (!i || hit[i].first != hit[i - 1].first) ++r.count->requests[write];
    if (i && hit[i] == hit[i - 1]) continue;
    ++r.count->sectors[write];
    r.seen[write][hit[i].second] = true;
  }
}

void merge(int warp, bool all) {
  if (!counting) return;
  Thread* lane = &threads[size_t(warp) * 32];
  std::vector<std::pair<uint16_t, uint64_t>> hit;
  for (uint32_t pc; (pc = lowest_pc(lane, all)) != NO_PC;) {
    hit.clear();
    bool write = false;
    for (int l = 0; l < 32; ++l) {
      if (lane[l].merged == lane[l].trace.size() || lane[l].trace[lane[l].merged].pc != pc) continue;
      const Event& e = lane[l].trace[lane[l].merged++];
      if (!e.size) continue;
      write = e.write;
      regions[e.region].count->bytes[write] += e.size;
      hit.emplace_back(e.region, e.offset / SECTOR);
    }
    count_request(hit, write);
  }
  for (int l = 0; l < 32; ++l) {
    lane[l].trace.erase(lane[l].trace.begin(), lane[l].trace.begin() + long(lane[l].merged));
    lane[l].merged = 0;
  }
}

void record(Event e) {  // by value, in registers: through memory it costs a stall
  if (self->trace.size() >= TRACE_MAX && !in_atomic)
    for (merge(current / 32, false); self->trace.size() >= TRACE_MAX; merge(current / 32, false)) yield();
  self->trace.push_back(e);
}
uint32_t relative(const void* pc) { return uint32_t(static_cast<const char*>(pc) - __ehdr_start); }

// An access in the pieces that device instructions can move: of a loosely aligned copy of up to 16 bytes, words.
void record_access(const Region& r, size_t offset, size_t size, bool write, const void* pc, bool loose) {
  const size_t most = loose && size <= 16 ? 4 : 16, start = r.phase % SECTOR + offset;
  for (size_t i = 0, piece; i < size; i += piece) {
    piece = most;
    while (piece > size - i || (start + i) % piece || size % piece) piece /= 2;
    record({relative(pc), uint16_t(&r - regions.data()), uint8_t(piece), write, start + i});
  }
}
void record_block(const void* pc) {
  if (counting && current >= 0) record({relative(pc), 0, 0, 0, 0});
}
}  // namespace
}  // namespace simt
