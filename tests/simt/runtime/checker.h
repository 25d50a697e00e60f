// checker.h - each access of the kernel: is it in bounds, aligned, initialised, and ordered after those it meets?
// Part of runtime.cpp; hooks.h calls `access`.
//
// Order. One access is ordered before another by __syncthreads (a block's epoch), __syncwarp and shuffles (a warp's
// epoch), grid.sync(), or by a chain "fence, atomic or volatile write -> atomic or volatile read of the same word, then
// fence or barrier", which Known keeps: which epochs of which blocks, and which fences of which threads, have been
// seen.
#pragma once
#include <unordered_map>
#include "state.h"
#include "traffic.h"

extern "C" const char _end[] __attribute__((visibility("hidden")));  // of this library in memory: its variables
                                                                     // (__constant__, __device__) are not checked

namespace simt {
namespace {
std::unordered_map<const char*, Known> words;  // atomic and volatile words, and what a read of each brings

enum class Kind { Plain, Loose, Volatile };  // Loose: a copy whose type promises no alignment

bool ordered_in_block(const Access& o, const Access& a) {
  return o.thread() == a.thread() || o.epoch != a.epoch ||
         (o.thread() / 32 == a.thread() / 32 && o.warp_epoch != a.warp_epoch);
}
bool saw(const Known& k, const Access& o) {
  return !k.before.empty() && (k.has(Known::key(o.block), o.epoch) || k.has(Known::key(o.block, o.thread()), o.fence));
}
// Whether `a`, made now by the running thread, meets the earlier `o` unordered. One of the two is a write.
bool races(const Access& o, const Access& a) {
  if (!o.any() || (o.who < 0 && a.who < 0)) return false;
  if (o.block == a.block && ordered_in_block(o, a)) return false;
  if (launched->cooperative) {
    const size_t index = descending() ? blocks.size() - 1 - o.block : o.block;
    if (o.epoch < blocks[index].synced) return false;
  }
  return !saw(self->known, o) && !saw(my_block->known, o);
}

// Remembers a reader. Two are kept; the second is the one whose loss would hide most: of another warp or block.
void remember_read(Shadow& s, const Access& a) {
  const bool other = s.read.any() && (s.read.block != a.block || s.read.thread() != a.thread());
  const bool far = s.read.block != a.block || s.read.thread() / 32 != a.thread() / 32;
  if (other && (!s.read2.any() || far || s.read2.epoch != a.epoch)) s.read2 = s.read;
  s.read = a;
}

Region* region_of(const char* p) {
  for (auto* list : {&my_block->shared, &regions})
    for (auto it = list->rbegin(); it != list->rend(); ++it)
      if (p >= it->start && p < it->start + it->size) return &*it;
  return nullptr;
}

void out_of_bounds(const char* p, size_t size, bool write) {
  const Region* nearest = nullptr;
  size_t distance = size_t(1) << 40;
  for (auto* list : {&regions, &my_block->shared})
    for (const Region& r : *list) {
      const size_t away = size_t(p < r.start ? r.start - p : p - r.start);
      if (away < distance) distance = away, nearest = &r;
    }
  const char* does = write ? "write" : "read";
  if (!nearest)
    return fail("out of bounds: %s of %zu bytes at %p, far from every array", does, size, static_cast<const void*>(p));
  fail("out of bounds: %s of %zu bytes at byte %lld of %s, which has %zu", does, size,
       static_cast<long long>(p - nearest->start), nearest->name.c_str(), nearest->size);
}

bool own_memory(const char* p) {  // the thread's stack, or the library's variables
  return (p >= running->stack && p < running->stack + STACK) || (p >= __ehdr_start && p < _end);
}

// An atomic or volatile read brings what the word's writers had fenced; a write passes on what this thread has fenced.
void pass_on(const char* p, bool write) {
  if (!write) self->pending.join(words[p]);
  else if (!self->fenced.before.empty()) words[p].join(self->fenced);
}

void check_byte(const Region& r, Shadow& s, size_t at, bool write, const Access& a) {
  const char *name = r.name.c_str(), *does = write ? "write" : "read";
  if (r.shared && !write && !s.write.any()) return fail("read of uninitialised %s: byte %zu of %zu", name, at, r.size);
  if (races(s.write, a))
    return fail("race on byte %zu of %s: %s here, written by thread %d of block %u", at, name, does, s.write.thread(),
                s.write.block);
  if (!write) return remember_read(s, a);
  for (const Access& o : {s.read, s.read2})
    if (races(o, a))
      return fail("race on byte %zu of %s: write here, read by thread %d of block %u", at, name, o.thread(), o.block);
  s.write = a;
}

void access(const void* address, size_t size, bool write, const void* pc, Kind kind = Kind::Plain) {
  if (current < 0 || !error.empty()) return;
  const char* p = static_cast<const char*>(address);
  if (own_memory(p)) return;
  if (kind == Kind::Volatile) yield(pc);
  else if (write && !in_atomic) progress();
  fault_pc = pc;
  Region* r = region_of(p);
  if (!r) return out_of_bounds(p, size, write);
  const size_t offset = size_t(p - r->start);
  if (offset + size > r->size) return out_of_bounds(p, size, write);
  if (write && !r->writable) return fail("write to %s, which is read-only", r->name.c_str());
  const size_t word = std::min<size_t>(size, 8);  // whether a 16-byte type asks for 16 or 8 the sanitiser knows
  if (kind != Kind::Loose && reinterpret_cast<size_t>(p) % word)
    return fail("misaligned access of %zu bytes at byte %zu of %s", size, offset, r->name.c_str());

  const bool synchronises = in_atomic || kind == Kind::Volatile;
  if (synchronises) pass_on(p, write);
  const int who = my_number + 1;
  const Access a{my_block->id, my_block->epoch, my_warp->epoch, uint16_t(self->fences),
                 int16_t(synchronises ? -who : who)};
  for (size_t i = offset; i < offset + size; ++i) check_byte(*r, r->bytes[i], i, write, a);
  fault_pc = nullptr;
  if (counting && r->count) record_access(*r, offset, size, write, pc, kind == Kind::Loose);
}

// ---- events of the scheduler --------------------------------------------------------------------
void check_begin(const Launch& l) {
  regions.clear();
  words.clear();
  counting = false;
  for (size_t i = 0; i < l.n_ranges; ++i) {
    const Range& g = l.ranges[i];
    const Buffer& b = l.buffers[g.buffer];
    Region r(b.device + g.offset, g.size, false, g.writable != 0, "argument " + std::to_string(g.argument));
    r.phase = b.phase + g.offset;
    r.count = g.count;
    if (g.count)
      for (auto& s : r.seen) s.resize((r.phase % SECTOR + g.size) / SECTOR + 1);
    counting |= g.count != nullptr;
    regions.push_back(std::move(r));
  }
}
void check_end() {
  counting = false;
  for (Region& r : regions)
    for (int w = 0; r.count && w < 2; ++w)
      r.count->distinct[w] = uint64_t(std::count(r.seen[w].begin(), r.seen[w].end(), true));
  regions.clear();
}
void check_shared(Block& b, const char* name, const char* p, size_t n) {
  b.shared.emplace_back(p, n, true, true, "shared " + std::string(name));
}
void check_fence() {
  Thread& t = *self;
  t.known.join(t.pending);
  t.pending.before.clear();
  t.fenced.join(my_block->known);
  t.fenced.join(t.known);
  t.fenced.add(Known::key(my_block->id), my_block->epoch);
  t.fenced.add(Known::key(my_block->id, my_number), ++t.fences);
}
void check_barrier(size_t block) {  // all its threads have met: what one has seen, all have
  for (int i = 0; i < stride; ++i) {
    Thread& t = threads[block * size_t(stride) + size_t(i)];
    blocks[block].known.join(t.known);
    blocks[block].known.join(t.pending);
    t.known.before.clear();
    t.pending.before.clear();
  }
  if (counting)
    for (int w = 0; w < stride / 32; ++w) merge(int(block) * stride / 32 + w, true);
}
}  // namespace
}  // namespace simt
