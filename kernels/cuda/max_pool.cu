// max_pool.cu - max pooling with windows of any shape: forward, and the backward as argmax scatter and as gather.
//
// Layout    window.cuh's; dy, argmax and indices have y's layout. Tie bits are `bytes` planes of that layout: bit b of byte a is
//           tap 8 a + b. An argmax is the tap's position in C order within the window.
// Types     T is the element: any float, moved bit for bit, or any integer. A is the argmax: unsigned char, short or int
//           (unsigned char with tie bits). Gradients are summed in Sum<T>. I (offsets) is unsigned below 2**31 elements, else
//           unsigned long long.
// Ties, NaN The order is `rank` (integers: nothing is flushed, NaNs are equal and above all numbers, -0 == +0). The first in C
//           order wins. A window without an input cell gives `lowest`, argmax 0 (a tap outside), no tie bit and index -1.
// Thread    max_pool: one output; a warp an output where windows have long rows and there are no tie bits: its lanes take
//           every 32nd cell of a row and then find the first of the largest. max_pool_scatter, for disjoint windows: one
//           output; it writes every cell from its window's start to the next one's, zeros included, so each cell has one
//           writer and nothing is cleared first. max_pool_gather, for any windows: one cell, which adds up the windows
//           over it in C order. No atomics: the bits are fixed, and are those of the portable code.
// Bytes     each array once from memory, the least possible: x, y, saved forward; dy, saved, dx backward. What windows share
//           comes from the caches. Narrow windows of two spatial axes are max_pool_tiled.cu's.
// Source    the portable code in functional/max_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "window.cuh"

enum Save { ARGMAX = 1, TIES = 2, INDICES = 4 };  // what forward writes besides y; ARGMAX and TIES exclude each other
enum TieRule { FIRST = 0, ALL = 1, SPLIT = 2 };   // which of the equal maxima get the gradient

// L lanes of a warp a window; with 32 there are no tie bits, and blockDim.x is a multiple of 32.
template <typename T, typename A, int L, typename I>
__global__ void __launch_bounds__(256, 4) max_pool(const T* __restrict__ x, T* __restrict__ y, A* __restrict__ saved,
    long long* __restrict__ indices, int save, I n, INNER, AXES) {
  LOAD_AXES LOAD_INNER
  const I plane = I(d.length) * I(h.length) * I(w.length), teams = blockDim.x / L;
  const int lane = int(threadIdx.x) % L, no_tap = d.kernel * h.kernel * w.kernel;
  for (I i = I(blockIdx.x) * teams + threadIdx.x / L; i < n; i += I(gridDim.x) * teams) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    T best = lowest<T>();
    auto best_rank = rank(best) + 0;  // + 0 makes it an int at least, which a shuffle can move
    int argmax = no_tap;
    I best_cell = 0;
    each_tap<I>(
        d, h, w, at.z, at.r, at.c,
        [&](int tap, I cell) {
          const T v = x[element(at, plane, cell, inner)];
          const auto r = rank(v);
          if (argmax == no_tap || r > best_rank) {
            best = v;
            best_rank = r;
            argmax = tap;
            best_cell = cell;
          }
        },
        lane, L);
    const int own_argmax = argmax;
#pragma unroll
    for (int by = L / 2; by; by /= 2) {
      const auto other = __shfl_xor_sync(0xffffffffu, best_rank, by);
      const int tap = __shfl_xor_sync(0xffffffffu, argmax, by);
      if (other > best_rank || (other == best_rank && tap < argmax)) {
        best_rank = other;
        argmax = tap;
      }
    }
    if (argmax == no_tap ? lane == 0 : own_argmax == argmax) {
      y[i] = best;
      if (save & ARGMAX) saved[i] = A(argmax == no_tap ? 0 : argmax);
      if (save & INDICES) indices[i] = argmax == no_tap ? -1 : static_cast<long long>(best_cell);
    }
    if (L == 1 && save & TIES) {
      int byte = 0;
      unsigned bits = 0;
      each_tap<I>(d, h, w, at.z, at.r, at.c, [&](int tap, I cell) {
        for (; byte < tap / 8; ++byte, bits = 0) saved[I(byte) * n + i] = A(bits);
        bits |= unsigned(rank(x[element(at, plane, cell, inner)]) == best_rank) << tap % 8;
      });
      for (; byte < (no_tap + 7) / 8; ++byte, bits = 0) saved[I(byte) * n + i] = A(bits);
    }
  }
}

// Whether output o, of m, passes its gradient to this tap of its window.
template <typename A, typename I>
__device__ __forceinline__ bool is_selected(const A* __restrict__ saved, int tie_rule, I m, I o, int tap) {
  return tie_rule == FIRST ? saved[o] == A(tap) : (saved[I(tap / 8) * m + o] >> tap % 8 & 1) != 0;
}

// The gradient that each selected tap of output o gets.
template <typename T, typename A, typename I>
__device__ __forceinline__ typename Sum<T>::type tap_gradient(
    const T* __restrict__ dy, const A* __restrict__ saved, int tie_rule, I m, I o, int taps) {
  using S = typename Sum<T>::type;
  const S g = widen(dy[o]);
  if (tie_rule != SPLIT) return g;
  int ties = 0;
  for (int byte = 0; byte < (taps + 7) / 8; ++byte) ties += __popc(saved[I(byte) * m + o]);
  return quotient(g, S(ties));
}

// n outputs.
template <typename T, typename A, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_scatter(
    const T* __restrict__ dy, const A* __restrict__ saved, T* __restrict__ dx, int tie_rule, I n, INNER, AXES) {
  LOAD_AXES LOAD_INNER
  const I plane = I(d.length) * I(h.length) * I(w.length);
  const int taps = d.kernel * h.kernel * w.kernel;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const T g = narrow<T>(tap_gradient(dy, saved, tie_rule, n, i, taps));
    const int end_z = at.z == d.out - 1 ? d.length : d.start(at.z + 1);
    const int end_r = at.r == h.out - 1 ? h.length : h.start(at.r + 1);
    const int end_c = at.c == w.out - 1 ? w.length : w.start(at.c + 1);
    for (int z = at.z ? d.start(at.z) : 0; z < end_z; ++z)
      for (int r = at.r ? h.start(at.r) : 0; r < end_r; ++r)
        for (int c = at.c ? w.start(at.c) : 0; c < end_c; ++c) {
          const int tz = d.tap(at.z, z), ty = h.tap(at.r, r), tx = w.tap(at.c, c);
          const bool selected =
              tz >= 0 && ty >= 0 && tx >= 0 && is_selected(saved, tie_rule, n, i, (tz * h.kernel + ty) * w.kernel + tx);
          dx[element(at, plane, (I(z) * I(h.length) + I(r)) * I(w.length) + I(c), inner)] = selected ? g : T(0.f);
        }
  }
}

// n cells of dx, m outputs. Disjoint windows give a cell one gradient: it is copied, so that -0 stays -0.
template <typename T, typename A, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_gather(const T* __restrict__ dy, const A* __restrict__ saved,
    T* __restrict__ dx, int tie_rule, int disjoint, I n, I m, INNER, AXES) {
  LOAD_AXES LOAD_INNER
  using S = typename Sum<T>::type;
  const I windows = I(d.out) * I(h.out) * I(w.out);
  const int taps = d.kernel * h.kernel * w.kernel;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    S sum = 0;
    each_window(d, h, w, at.z, at.r, at.c, [&](int tap, int oz, int oy, int ox) {
      const I o = element(at, windows, (I(oz) * I(h.out) + I(oy)) * I(w.out) + I(ox), inner);
      if (!is_selected(saved, tie_rule, m, o, tap)) return;
      const S g = tap_gradient(dy, saved, tie_rule, m, o, taps);
      sum = disjoint ? g : plus(sum, g);
    });
    dx[i] = narrow<T>(sum);
  }
}
