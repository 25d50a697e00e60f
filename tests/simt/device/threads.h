// threads.h - how device threads meet: barriers, fences, warp operations, atomics.
#pragma once

#define SIMT_SITE(what) ::simt::Site{what, __FILE__, __LINE__, __COUNTER__}
#define __syncthreads() ((void)::simt::barrier(SIMT_SITE("__syncthreads()"), false))
#define __syncthreads_count(p) int(::simt::barrier(SIMT_SITE("__syncthreads_count()"), bool(p)))
#define __syncthreads_or(p) int(::simt::barrier(SIMT_SITE("__syncthreads_or()"), bool(p)) != 0)
#define __syncthreads_and(p) int(::simt::barrier(SIMT_SITE("__syncthreads_and()"), !(p)) == 0)
inline void __threadfence() { ::simt::fence(); }
inline void __threadfence_system() { ::simt::fence(); }
inline void __threadfence_block() {}

// ---- warp operations ----------------------------------------------------------------------------
// The file and line are the caller's: default arguments are worked out where the call stands.
#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
namespace simt {
inline int lane() {
  return int((thread_index.x + block_shape.x * (thread_index.y + block_shape.y * thread_index.z)) & 31u);
}
template <class T> T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable<T>::value, "a type that a shuffle can move");
  Exchange e{};
  memcpy(e.in, &value, sizeof value);
  e.mask = mask;
  e.source = source;
  e.site = site;
  exchange(e);
  memcpy(&value, e.out, sizeof value);
  return value;
}
inline unsigned ballot(unsigned mask, bool vote, Site site) {
  Exchange e{};
  e.mask = mask;
  e.source = lane();
  e.vote = vote;
  e.site = site;
  exchange(e);
  return e.votes;
}
}  // namespace simt

template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, SIMT_HERE) {
  const int l = simt::lane();
  return simt::shuffle(mask, v, (l & ~(width - 1)) | (source & (width - 1)), {"__shfl_sync", file, line, 0});
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32, SIMT_HERE) {
  const int l = simt::lane(), s = l ^ flip;
  return simt::shuffle(mask, v, s >= (l & ~(width - 1)) + width ? l : s, {"__shfl_xor_sync", file, line, 0});
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, SIMT_HERE) {
  const int l = simt::lane();
  const int s = (l & (width - 1)) + int(by) >= width ? l : l + int(by);
  return simt::shuffle(mask, v, s, {"__shfl_down_sync", file, line, 0});
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, SIMT_HERE) {
  const int l = simt::lane();
  return simt::shuffle(mask, v, (l & (width - 1)) < int(by) ? l : l - int(by), {"__shfl_up_sync", file, line, 0});
}
inline unsigned __ballot_sync(unsigned mask, int p, SIMT_HERE) {
  return simt::ballot(mask, p != 0, {"__ballot_sync", file, line, 0});
}
inline int __any_sync(unsigned mask, int p, SIMT_HERE) {
  return simt::ballot(mask, p != 0, {"__any_sync", file, line, 0}) != 0;
}
inline int __all_sync(unsigned mask, int p, SIMT_HERE) {
  return simt::ballot(mask, p == 0, {"__all_sync", file, line, 0}) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  simt::ballot(mask, false, {"__syncwarp", file, line, 0});
}
inline unsigned __activemask() { return simt::active_lanes(); }

// ---- atomics: plain operations, since one OS thread runs everything --------------------------------
namespace simt {
template <class T, class F> __forceinline__ T read_modify_write(T* p, F change) {  // change(value): whether to store it
  Atomic guard;
  const T old = *p;
  T value = old;
  if (change(value)) *p = value;
  if (memcmp(&old, &value, sizeof value)) progress();
  return old;
}
}  // namespace simt
#define SIMT_ATOMIC(name, expression)                                            \
  template <class T, class U> __forceinline__ T name(T* p, U u) {                 \
    return simt::read_modify_write(p, [&](T& old) {                               \
      const T v = T(u);                                                           \
      old = T(expression);                                                        \
      return true;                                                                \
    });                                                                           \
  }
SIMT_ATOMIC(atomicAdd, old + v)
SIMT_ATOMIC(atomicSub, old - v)
SIMT_ATOMIC(atomicMax, old < v ? v : old)
SIMT_ATOMIC(atomicMin, v < old ? v : old)
SIMT_ATOMIC(atomicExch, v)
SIMT_ATOMIC(atomicAnd, old & v)
SIMT_ATOMIC(atomicOr, old | v)
SIMT_ATOMIC(atomicXor, old ^ v)
SIMT_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
template <class T, class U, class W> __forceinline__ T atomicCAS(T* p, U expected, W v) {
  return simt::read_modify_write(p, [&](T& old) {
    const bool hit = old == T(expected);
    if (hit) old = T(v);
    return hit;
  });
}
