// runtime.cpp - runs a kernel on one OS thread, one fiber a device thread: one block at a time, or all of a cooperative
// grid.
#include <cstdarg>
#include <cstdio>
#include <numeric>
#include "../device/vectors.h"
#include "interface.h"
#include "memory.h"
#include "state.h"
#ifdef SIMT_CHECK
#include "hooks.h"
#else
namespace simt {
namespace {
void check_begin(const Launch&) {}
void check_end() {}
void check_shared(Block&, const char*, const char*, size_t) {}
void check_fence() {}
void check_barrier(size_t) {}
void merge(int, bool) {}
}  // namespace
}  // namespace simt
#endif
#include "scheduler.h"

namespace simt {
// ---- what the kernel calls ----------------------------------------------------------------------
void fail(const char* format, ...) {
  if (!error.empty()) return;
  char text[512];
  const int n = current < 0 ? 0
                            : snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u): ", block_index.x,
                                       block_index.y, block_index.z, thread_index.x, thread_index.y, thread_index.z);
  va_list values;
  va_start(values, format);
  vsnprintf(text + n, sizeof text - size_t(n), format, values);
  va_end(values);
  error = text;
  if (running != &main_fiber) switch_to(&main_fiber);  // never returns: the faulty access must not happen
}

unsigned barrier(Site s, bool predicate) {
  Block& b = *my_block;
  if (b.waiting && b.site.id != s.id)
    fail("%s at %s:%d while others wait at %s:%d (divergent barrier)", s.what, s.file, s.line, b.site.file,
         b.site.line);
  b.site = s;
  const unsigned slot = b.epoch & 1;
  b.votes[slot] += predicate;
  self->state = State::AtBlock;
  if (++b.waiting == b.alive) release_block(size_t(current / stride));
  wait();
  return my_block->votes[slot];
}

void grid_barrier(Site s) {
  if (!launched->cooperative) fail("%s at %s:%d in a launch that is not cooperative", s.what, s.file, s.line);
  if (grid_waiting && (grid_site.line != s.line || strcmp(grid_site.file, s.file)))
    fail("%s at %s:%d while others wait at %s:%d", s.what, s.file, s.line, grid_site.file, grid_site.line);
  grid_site = s;
  self->state = State::AtGrid;
  if (++grid_waiting == grid_threads)
    release_grid();  // a thread that has returned is missing for ever, as on the device
  wait();
}

void exchange(Exchange& e) {
  const int lane = current & 31, w = current / 32;
  const Site& s = e.site;
  if (!(e.mask >> lane & 1))
    fail("lane %d calls %s at %s:%d with mask %08x, which lacks it", lane, s.what, s.file, s.line, e.mask);
  for (int l = 0; l < 32; ++l) {
    const Thread& t = threads[size_t(w * 32 + l)];
    if (t.state != State::AtWarp || t.exchange->mask != e.mask || !strcmp(t.exchange->site.what, s.what)) continue;
    const Site& o = t.exchange->site;
    fail("%s at %s:%d while lane %d waits in %s at %s:%d", s.what, s.file, s.line, l, o.what, o.file, o.line);
  }
  e.source &= 31;
  self->exchange = &e;
  self->state = State::AtWarp;
  release_warp(w, e.mask);
  wait();
}

unsigned active_lanes() { return my_warp->exist & ~my_warp->exited; }

void yield(const void* pc) {
  if (current < 0) return;
  if (++spins > SPINS_MAX) {
    fault_pc = pc;
    fail("no progress: every thread that can run spins on an atomic or a volatile read");
  }
  if (ready.empty()) return;
  ready.push_back(current);
  wait();
}
void progress() { spins = 0; }
void fence() { check_fence(); }

Atomic::Atomic() {
  yield(__builtin_return_address(0));
  in_atomic = true;
  asm volatile("" ::: "memory");
}
Atomic::~Atomic() {
  asm volatile("" ::: "memory");
  in_atomic = false;
}

void check_block_size(size_t most) {
  const size_t n = size_t(block_shape.x) * block_shape.y * block_shape.z;
  if (n <= most) return;
  fault_pc = __builtin_return_address(0);
  fail("a block of %zu threads, but __launch_bounds__ says %zu", n, most);
}

// ---- shared memory: aligned as declared and no better, and full of NaNs for every block -----------
namespace {
constexpr size_t GAP = 1024;  // bytes to the next variable: an index gone wrong meets nothing

void take_shared(Block& b, size_t size, const void* pc = nullptr) {
  b.shared_total += size;
  if (b.shared_total <= launched->shared_limit) return;
  fault_pc = pc;
  fail("%zu bytes of shared memory, the limit is %zu", b.shared_total, launched->shared_limit);
}
char* allocate(Block& b, const char* name, size_t size, size_t align) {
  void* p = nullptr;
  if (posix_memalign(&p, 2 * std::max<size_t>(align, 8), size + align + GAP)) abort();
  b.owned.emplace_back(static_cast<char*>(p), &free);
  char* start = static_cast<char*>(p) + align;
  memset(start, 0xff, size);
  check_shared(b, name, start, size);
  return start;
}
}  // namespace

int new_slot() {
  static int n = 0;
  return n++;
}
void* shared_variable(int slot, const char* name, size_t size, size_t align) {
  auto& slots = my_block->slots;
  if (size_t(slot) >= slots.size()) slots.resize(size_t(slot) + 1, nullptr);
  if (!slots[size_t(slot)]) {
    take_shared(*my_block, size, __builtin_return_address(0));
    slots[size_t(slot)] = allocate(*my_block, name, size, align);
  }
  return slots[size_t(slot)];
}
void* dynamic_shared(const char* name, size_t align) {  // the device aligns it to 16 bytes at least
  Block& b = *my_block;
  if (!b.dynamic) {
    b.dynamic_align = std::max<size_t>(align, 16);
    b.dynamic = allocate(b, name, launched->dynamic_shared, b.dynamic_align);
  }
  if (align > b.dynamic_align)
    fail("dynamic shared memory is declared with two alignments, %zu and %zu", b.dynamic_align, align);
  return b.dynamic;
}

// ---- a launch -----------------------------------------------------------------------------------
namespace {
uint3 coordinates(uint64_t i, const dim3& shape) {
  return {unsigned(i % shape.x), unsigned(i / shape.x % shape.y), unsigned(i / shape.x / shape.y)};
}

void validate(const Launch& l, uint64_t threads_a_block, uint64_t resident) {
  const unsigned *b = l.block, *g = l.grid;
  if (!threads_a_block || threads_a_block > 1024 || b[2] > 64)
    fail("invalid block (%u,%u,%u): 1 to 1024 threads, at most 64 of them along z", b[0], b[1], b[2]);
  if (!g[0] || !g[1] || !g[2] || g[0] > 2147483647u || g[1] > 65535 || g[2] > 65535)
    fail("invalid grid (%u,%u,%u): from 1 to 2147483647, 65535 and 65535", g[0], g[1], g[2]);
  if (resident * uint64_t(stride) > RESIDENT_MAX)
    fail("a cooperative grid of %llu threads; the emulator holds %d at a time",
         static_cast<unsigned long long>(resident * threads_a_block), RESIDENT_MAX);
}

void start_block(size_t r, uint64_t id, size_t n) {
  Block& b = blocks[r];
  b.id = uint32_t(id);
  b.index = block_index = coordinates(id, grid_shape);
  b.alive = int(n);
  take_shared(b, launched->dynamic_shared);
  for (size_t i = 0; i < n; ++i) {
    const size_t t = descending() ? n - 1 - i : i, at = r * size_t(stride) + t;
    threads[at].index = coordinates(t, block_shape);
    threads[at].state = State::New;
    warps[at / 32].exist |= 1u << (t & 31);
    ready.push_back(int(at));
  }
}

// The i-th block to run: any of them in a random order, by a step that has no divisor in common with their number.
uint64_t block_at(uint64_t i, uint64_t total) {
  if (descending()) return total - 1 - i;
  if (launched->order != 2 || launched->cooperative) return i;
  uint64_t step = launched->seed * 0x9E3779B97F4A7C15ull % total | 1;
  while (std::gcd(step, total) != 1) ++step;
  return uint64_t((static_cast<unsigned __int128>(i) * step + launched->seed) % total);
}

// Runs `resident` blocks to their end, the first of them number `first` in the launch's order.
void run_blocks(uint64_t first, uint64_t resident, uint64_t total, size_t n) {
  blocks.clear();
  blocks.resize(resident);
  threads.resize(resident * size_t(stride));
  for (Thread& t : threads) t.reset();
  warps.assign(threads.size() / 32, Warp{});
  ready.clear();
  ready_head = 0;
  spins = 0;
  grid_waiting = 0;
  alive = grid_threads = int(resident * n);
  for (uint64_t r = 0; r < resident && error.empty(); ++r) start_block(r, block_at(first + r, total), n);
  if (error.empty()) run_next();
  current = -1;
}

void report_deadlock() {  // how many threads wait at what, and where the last of them came
  struct {
    const char* name;
    State state;
    int n;
    Site site;
  } all[] = {{"__syncthreads", State::AtBlock, 0, {}},
             {"a warp operation", State::AtWarp, 0, {}},
             {"grid.sync", State::AtGrid, 0, grid_site}};
  std::string text;
  for (auto& w : all) {
    for (Thread& t : threads)
      if (t.state == w.state && ++w.n && w.state == State::AtWarp) w.site = t.exchange->site;
    for (Block& b : blocks)
      if (b.waiting && w.state == State::AtBlock) w.site = b.site;
    if (w.n)
      text += std::to_string(w.n) + " threads at " + w.name + " (" + w.site.file + ":" + std::to_string(w.site.line) +
              "), ";
  }
  fail("deadlock: %s%d finished", text.c_str(), grid_threads - alive);
}
}  // namespace

int launch(const Launch& l, void (*k)(void*), void* a) {
  error.clear();
  fault_pc = nullptr;
  current = -1;
  launched = &l;
  kernel = k;
  arguments = a;
  random_state = l.seed * 0x9E3779B97F4A7C15ull + 1;
  block_shape = dim3(l.block[0], l.block[1], l.block[2]);
  grid_shape = dim3(l.grid[0], l.grid[1], l.grid[2]);
  const size_t n = size_t(l.block[0]) * l.block[1] * l.block[2];
  const uint64_t total = uint64_t(l.grid[0]) * l.grid[1] * l.grid[2], resident = l.cooperative ? total : 1;
  stride = int((n + 31) / 32 * 32);
  validate(l, n, resident);
  if (error.empty()) upload(l);
  if (error.empty()) {
    for (size_t i = 0; i < l.n_ranges; ++i)
      *l.ranges[i].value = l.buffers[l.ranges[i].buffer].device + l.ranges[i].start;
    check_begin(l);
    for (uint64_t first = 0; first < total && error.empty(); first += resident) {
      run_blocks(first, resident, total, n);
      if (alive && error.empty()) report_deadlock();
    }
    check_end();
    download(l);
  }
  if (!error.empty()) abandon_fibers();
  running = &main_fiber;
  in_atomic = false;
  threads.clear();
  blocks.clear();
  return error.empty() ? 0 : 1;
}
}  // namespace simt

extern "C" const char* simt_error() { return simt::error.c_str(); }
extern "C" size_t simt_error_pc() {  // in the library, as addr2line wants it; 0: none is known
  return simt::fault_pc ? size_t(static_cast<const char*>(simt::fault_pc) - __ehdr_start) - 1 : 0;
}
