// hooks.h - the callbacks g++ puts into the kernel (-fsanitize=thread,... -fsanitize-coverage=trace-pc). Part of
// runtime.cpp.
#pragma once
#include "checker.h"

namespace simt {
// What the undefined-behaviour sanitiser gives: a place, then what depends on the check.
struct Place {
  const char* file;
  uint32_t line, column;
};
namespace {
void fail_at(const Place& p, const void* pc, const char* what) {
  fault_pc = pc;
  fail("%s at %s:%u", what, p.file, p.line);
}
}  // namespace
}  // namespace simt

#define SIMT_PC __builtin_return_address(0)
#define SIMT_HOOK(name, n, kind)                                                                            \
  extern "C" void __tsan_##name##read##n(void* p) { simt::access(p, n, false, SIMT_PC, simt::Kind::kind); } \
  extern "C" void __tsan_##name##write##n(void* p) { simt::access(p, n, true, SIMT_PC, simt::Kind::kind); }
#define SIMT_HOOKS(name, kind) \
  SIMT_HOOK(name, 1, kind)     \
  SIMT_HOOK(name, 2, kind)     \
  SIMT_HOOK(name, 4, kind)     \
  SIMT_HOOK(name, 8, kind)     \
  SIMT_HOOK(name, 16, kind)
SIMT_HOOKS(, Plain)
SIMT_HOOKS(unaligned_, Loose)
SIMT_HOOKS(volatile_, Volatile)
SIMT_HOOKS(unaligned_volatile_, Volatile)
extern "C" void __tsan_read_range(void* p, size_t n) { simt::access(p, n, false, SIMT_PC, simt::Kind::Loose); }
extern "C" void __tsan_write_range(void* p, size_t n) { simt::access(p, n, true, SIMT_PC, simt::Kind::Loose); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __sanitizer_cov_trace_pc() { simt::record_block(SIMT_PC); }

// A misaligned access faults on the device; the others would compute something else there, or nothing at all here.
struct Mismatch {
  simt::Place place;
  const void* type;
  unsigned char log_align, kind;
};
extern "C" void __ubsan_handle_type_mismatch_v1(Mismatch* d, const void* p) {
  simt::fault_pc = SIMT_PC;
  const size_t align = size_t(1) << d->log_align;
  simt::fail("misaligned access at %s:%u: %zu bytes off an alignment of %zu", d->place.file, d->place.line,
             reinterpret_cast<size_t>(p) % align, align);
}
struct OutOfBounds {
  simt::Place place;
};
extern "C" void __ubsan_handle_out_of_bounds(OutOfBounds* d, size_t index) {
  simt::fault_pc = SIMT_PC;
  simt::fail("index %zu out of an array's bounds at %s:%u", index, d->place.file, d->place.line);
}
#define SIMT_ARITHMETIC(name, what) \
  extern "C" void __ubsan_handle_##name(simt::Place* p, void*, void*) { simt::fail_at(*p, SIMT_PC, what); }
SIMT_ARITHMETIC(add_overflow, "signed integer overflow")
SIMT_ARITHMETIC(sub_overflow, "signed integer overflow")
SIMT_ARITHMETIC(mul_overflow, "signed integer overflow")
SIMT_ARITHMETIC(negate_overflow, "signed integer overflow")
SIMT_ARITHMETIC(divrem_overflow, "division by zero")
SIMT_ARITHMETIC(shift_out_of_bounds, "shift by more bits than there are")
