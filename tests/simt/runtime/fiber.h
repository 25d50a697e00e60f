// fiber.h - stacks to switch between: one a running device thread. Part of runtime.cpp.
#pragma once
#include <sys/mman.h>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>
#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT 1
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {
namespace {
constexpr size_t STACK = 256 * 1024;

struct Fiber {
  char* stack = nullptr;
#ifdef SIMT_UCONTEXT
  ucontext_t context;
#else
  void* top = nullptr;  // saved stack pointer
#endif
};

std::vector<std::unique_ptr<Fiber>> every_fiber;
std::vector<Fiber*> idle;
Fiber main_fiber, *running = &main_fiber;

#ifndef SIMT_UCONTEXT
// swapcontext would ask the kernel for the signal mask each time. Saves the registers a call must keep, on the old
// stack.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
#endif

void switch_to(Fiber* next) {
  Fiber* me = running;
  if (next == me) return;
  running = next;
#ifdef SIMT_UCONTEXT
  swapcontext(&me->context, &next->context);
#else
  simt_switch(&me->top, next->top);
#endif
}

Fiber* idle_fiber(void (*entry)()) {
  if (!idle.empty()) {
    Fiber* f = idle.back();
    idle.pop_back();
    return f;
  }
  every_fiber.emplace_back(new Fiber);
  Fiber* f = every_fiber.back().get();
  f->stack = static_cast<char*>(
      mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (f->stack == MAP_FAILED) abort();
#ifdef SIMT_UCONTEXT
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack;
  f->context.uc_stack.ss_size = STACK;
  f->context.uc_link = nullptr;
  makecontext(&f->context, entry, 0);
#else
  void** s = reinterpret_cast<void**>(f->stack + STACK) - 2;
  *s = reinterpret_cast<void*>(entry);  // the switch returns into it with the stack as after a call
  f->top = s - 6;
#endif
  return f;
}

// After a failed launch: the fibers stand in the middle of a kernel and are of no more use.
void abandon_fibers() {
  idle.clear();
  for (auto& f : every_fiber) munmap(f->stack, STACK);
  every_fiber.clear();
}
}  // namespace
}  // namespace simt
