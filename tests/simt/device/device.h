// device.h - CUDA C++ for g++: put in front of an unmodified .cu file, it runs on the emulator.
//
// Missing: inline PTX, textures, clusters, thread tiles, `<<<>>>`. __CUDA_ARCH__ is 800; SIMT_HOST is defined. What
// touches memory in this header is inlined into the kernel: the traffic count knows accesses by their code address.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <limits>
#include <type_traits>
#include <utility>
#include "../runtime/interface.h"
#include "vectors.h"

#define SIMT_HOST 1
#define __CUDACC__ 1
#define __CUDA_ARCH__ 800

// ---- qualifiers ---------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __grid_constant__
#define __maxnreg__(n)
// The host has turned these into calls (simt/source.py): __launch_bounds__ at the start of the kernel's body, each
// `__shared__ T name[N];` and `extern __shared__ T name[];` where it stood.
#define SIMT_LAUNCH_BOUNDS(most, ...) ::simt::check_block_size(size_t(most))
#define SIMT_SHARED(align, name, dims, ...)                                                                    \
  static const int simt_slot_##name = ::simt::new_slot();                                                      \
  using simt_type_##name = ::simt::identity<__VA_ARGS__> dims;                                                 \
  simt_type_##name& name = *static_cast<simt_type_##name*>(::simt::shared_variable(                            \
      simt_slot_##name, #name, sizeof(simt_type_##name), ::simt::larger(alignof(::simt::identity<__VA_ARGS__>), align)))
#define SIMT_DYNAMIC(align, name, ...)                                                              \
  ::simt::identity<__VA_ARGS__>* name = static_cast<::simt::identity<__VA_ARGS__>*>(               \
      ::simt::dynamic_shared(#name, ::simt::larger(alignof(::simt::identity<__VA_ARGS__>), align)))

#define threadIdx (::simt::thread_index)
#define blockIdx (::simt::block_index)
#define blockDim (::simt::block_shape)
#define gridDim (::simt::grid_shape)
constexpr int warpSize = 32;

namespace simt {
template <class T> using identity = T;
constexpr size_t larger(size_t a, size_t b) { return a < b ? b : a; }

// ---- calling a kernel, and describing its parameters so that the host can check what it packs ------
// A letter for a type (i, u, f as NumPy's kinds, b bool, h half, y bfloat16, V any other), then its size; P in front
// says that it is pointed to.
template <class T> struct Letter {
  static constexpr char value = std::is_same<T, bool>::value         ? 'b'
                                : std::is_floating_point<T>::value   ? 'f'
                                : !std::is_integral<T>::value        ? 'V'
                                : std::is_signed<T>::value           ? 'i'
                                                                     : 'u';
};
template <class T> struct Size { static constexpr size_t value = sizeof(T); };
template <> struct Size<void> { static constexpr size_t value = 0; };

template <class A> int describe_one(char* out, size_t n) {
  using T = std::remove_cv_t<std::remove_pointer_t<A>>;
  return snprintf(out, n, "%s%c%zu ", std::is_pointer<A>::value ? "P" : "", Letter<T>::value, Size<T>::value);
}
template <class... A> void describe(void (*)(A...), char* out, size_t n) {
  size_t k = 0;
  out[0] = 0;
  ((k += size_t(describe_one<A>(out + k, k < n ? n - k : 0))), ...);
}

template <class... A> struct Call {
  void (*kernel)(A...);
  void** values;
};
template <class... A, size_t... I>
__attribute__((no_sanitize("thread"))) void invoke(const Call<A...>& c, std::index_sequence<I...>) {
  c.kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(c.values[I])...);
}
template <class... A> __attribute__((no_sanitize("thread"))) void invoke_erased(void* p) {
  invoke(*static_cast<Call<A...>*>(p), std::index_sequence_for<A...>{});
}
template <class... A> int run(void (*kernel)(A...), const Launch& l, void** values) {
  Call<A...> c{kernel, values};
  return launch(l, &invoke_erased<A...>, &c);
}
}  // namespace simt

#define SIMT_EXPORT(id, ...)                                             \
  extern "C" int simt_run_##id(const ::simt::Launch* l, void** values) { \
    return ::simt::run(__VA_ARGS__, *l, values);                         \
  }                                                                      \
  extern "C" void simt_parameters_##id(char* out, size_t n) { ::simt::describe(__VA_ARGS__, out, n); }

#include "maths.h"
#include "threads.h"
