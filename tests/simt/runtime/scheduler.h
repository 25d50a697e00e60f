// scheduler.h - which device thread runs next, and what releases those that wait. Part of runtime.cpp.
#pragma once
#include <cstring>
#include "state.h"

namespace simt {
uint3 thread_index, block_index;
dim3 block_shape, grid_shape;

namespace {
constexpr uint64_t SPINS_MAX = 4000000;
constexpr int RESIDENT_MAX = 30000;  // threads: each has a stack
void (*kernel)(void*);
void* arguments;
std::vector<int> ready;
size_t ready_head = 0;
int alive = 0, grid_waiting = 0, grid_threads = 0;
Site grid_site;
uint64_t spins = 0;  // yields since anybody got anything done
uint64_t random_state;

uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

// ---- scheduling ---------------------------------------------------------------------------------
int pick() {  // the next thread to run, or -1
  if (ready_head == ready.size() || !error.empty()) return -1;
  size_t k = ready_head;
  if (launched->order == 2) k += random_number() % (ready.size() - ready_head);
  const int t = ready[k];
  ready[k] = ready[ready_head++];
  if (ready_head == ready.size()) {
    ready.clear();
    ready_head = 0;
  }
  return t;
}

void enter(int t) {
  current = t;
  my_number = t % stride;
  self = &threads[size_t(t)];
  my_block = &blocks[size_t(t / stride)];
  my_warp = &warps[size_t(t / 32)];
  thread_index = self->index;
  block_index = my_block->index;
  self->state = State::Ready;
}

void wake(int first, int n, State state) {
  for (int i = 0; i < n; ++i) {
    const int t = first + (descending() ? n - 1 - i : i);
    if (threads[size_t(t)].state != state) continue;
    threads[size_t(t)].state = State::Ready;
    ready.push_back(t);
  }
}

void run_kernel();
void run_next() {  // leaves the running thread; returns when it is picked again
  const int t = pick();
  if (t < 0) return switch_to(&main_fiber);
  Thread& next = threads[size_t(t)];
  if (!next.fiber) next.fiber = idle_fiber(run_kernel);
  enter(t);
  switch_to(next.fiber);
}
void wait() {
  const int t = current;
  run_next();
  enter(t);
}

void next_epoch(size_t b) {
  check_barrier(b);
  blocks[b].votes[++blocks[b].epoch & 1] = 0;
}
void release_block(size_t b) {
  next_epoch(b);
  blocks[b].waiting = 0;
  spins = 0;
  wake(int(b) * stride, stride, State::AtBlock);
}
void release_grid() {
  for (size_t b = 0; b < blocks.size(); ++b) {
    next_epoch(b);
    blocks[b].synced = blocks[b].epoch;
  }
  grid_waiting = 0;
  spins = 0;
  wake(0, int(threads.size()), State::AtGrid);
}

// Releases the operation of warp w over `mask` once all its live lanes have arrived.
void release_warp(int w, unsigned mask) {
  Warp& warp = warps[size_t(w)];
  Thread* lane = &threads[size_t(w) * 32];
  const unsigned need = mask & warp.exist & ~warp.exited;
  unsigned arrived = 0, votes = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(need >> l & 1) || lane[l].state != State::AtWarp || lane[l].exchange->mask != mask) continue;
    arrived |= 1u << l;
    votes |= unsigned(lane[l].exchange->vote) << l;
  }
  if (!need || arrived != need) return;
  if (need == (warp.exist & ~warp.exited)) {
    ++warp.epoch;
    merge(w, true);
  }
  for (int i = 0; i < 32; ++i) {
    const int l = descending() ? 31 - i : i;
    if (!(need >> l & 1)) continue;
    Exchange& e = *lane[l].exchange;
    e.votes = votes;
    if (need >> e.source & 1) memcpy(e.out, lane[e.source].exchange->in, sizeof e.out);
    else memset(e.out, 0xff, sizeof e.out);  // undefined on the device
    lane[l].state = State::Ready;
    ready.push_back(w * 32 + l);
  }
}

void retire() {  // the running thread has returned
  const int w = current / 32;
  const size_t b = size_t(current / stride);
  self->state = State::Done;
  --alive;
  spins = 0;
  my_warp->exited |= 1u << (current & 31);
  if (my_warp->exited == my_warp->exist) merge(w, true);
  if (--blocks[b].alive && blocks[b].waiting == blocks[b].alive) release_block(b);
  for (int l = 0; l < 32; ++l) {
    const Thread& t = threads[size_t(w * 32 + l)];
    if (t.state == State::AtWarp) release_warp(w, t.exchange->mask);
  }
}

void run_kernel() {  // a fiber's whole life: one thread after another
  for (;;) {
    kernel(arguments);
    retire();
    const int t = pick();
    if (t >= 0 && !threads[size_t(t)].fiber) {  // one that has not begun: it takes this stack
      threads[size_t(t)].fiber = running;
      enter(t);
      continue;
    }
    idle.push_back(running);
    if (t < 0) {
      switch_to(&main_fiber);
    } else {
      enter(t);
      switch_to(threads[size_t(t)].fiber);
    }
  }
}
}  // namespace
}  // namespace simt
