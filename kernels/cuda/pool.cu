// pool.cu - max pooling with windows of any shape: forward, and the backward as argmax scatter and as gather.
//
// Layout    window.cuh's; dy, argmax and indices have y's layout, tie bits are `bytes` planes of it, bit b of byte a for the
//           tap 8 a + b. An argmax is the tap's place in C order within the window.
// Types     T the element: any float, moved bit for bit, or any integer. A what an argmax is kept in: unsigned char, short or
//           int (unsigned char with tie bits). Gradients are summed in Sum<T>. I (offsets) unsigned below 2**31
//           elements, else unsigned long long.
// Ties, NaN order is `rank` (integers: nothing is flushed, NaNs are equal and above all numbers, -0 == +0), the first in C
//           order wins; a window that meets no cell gives `lowest`, argmax 0 (a tap outside), no tie bit and index -1.
// Thread    max_pool: one output. max_pool_wide, for windows of long rows and no tie bits: a warp an output, whose lanes take
//           every 32nd cell of a row and then agree on the first of the largest. max_pool_scatter, for disjoint windows: one
//           output; it writes every cell from its window's start to the next one's, zeros included, so each cell has one
//           writer and nothing is cleared before. max_pool_gather, for any windows: one cell, which adds up the windows
//           over it in C order. No atomics: the bits are fixed, and those of the portable code.
// Bytes     each array once from memory, the least there is: x, y, saved forward; dy, saved, dx backward. What windows share
//           comes from the caches. Narrow windows of planes, channels first, are max_pool_tile.cu's.
// Source    the portable code in functional/max_pool.py, which the tests hold these kernels to.
#include "common.cuh"
#include "window.cuh"

enum Keep { ARGMAX = 1, TIES = 2, INDICES = 4 };  // what forward saves: any sum of these, but not both of the first two
enum Rule { FIRST = 0, ALL = 1, SPLIT = 2 };      // whose the gradient is

template <typename T, typename A, typename I>
__global__ void __launch_bounds__(256, 4) max_pool(const T* __restrict__ x, T* __restrict__ y, A* __restrict__ saved,
    long long* __restrict__ indices, int keep, I n, I inner, AXES) {
  GATHERED_AXES
  const I plane = I(d.length) * I(h.length) * I(w.length);
  const int taps = d.kernel * h.kernel * w.kernel;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d.out, h.out, w.out, inner);
    T best = lowest<T>();
    auto top = rank(best);
    bool met = false;
    int argmax = 0;
    I where = 0;
    each_tap<I>(d, h, w, at.z, at.r, at.c, [&](int tap, I cell) {
      const T v = x[element(at, plane, cell, inner)];
      const auto r = rank(v);
      if (!met || r > top) {
        met = true;
        best = v;
        top = r;
        argmax = tap;
        where = cell;
      }
    });
    y[i] = best;
    if (keep & ARGMAX) saved[i] = A(argmax);
    if (keep & INDICES) indices[i] = met ? static_cast<long long>(where) : -1;
    if (keep & TIES) {
      int byte = 0;
      unsigned held = 0;
      each_tap<I>(d, h, w, at.z, at.r, at.c, [&](int tap, I cell) {
        for (; byte < tap / 8; ++byte, held = 0) saved[I(byte) * n + i] = A(held);
        held |= unsigned(rank(x[element(at, plane, cell, inner)]) == top) << tap % 8;
      });
      for (; byte < (taps + 7) / 8; ++byte, held = 0) saved[I(byte) * n + i] = A(held);
    }
  }
}

// The same for an argmax or nothing to save. blockDim.x is a multiple of 32.
template <typename T, typename A, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_wide(const T* __restrict__ x, T* __restrict__ y, A* __restrict__ saved,
    long long* __restrict__ indices, int keep, I n, I inner, AXES) {
  GATHERED_AXES
  const I plane = I(d.length) * I(h.length) * I(w.length);
  const int lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32, none = d.kernel * h.kernel * w.kernel;
  for (I i = I(blockIdx.x) * warps + threadIdx.x / 32; i < n; i += I(gridDim.x) * warps) {
    const Place<I> at = place_of(i, d.out, h.out, w.out, inner);
    T best = lowest<T>();
    auto top = rank(best) + 0;  // an int at least, which a shuffle can move
    int argmax = none;
    I where = 0;
    each_tap<I>(d, h, w, at.z, at.r, at.c, [&](int tap, I cell) {
      const T v = x[element(at, plane, cell, inner)];
      const auto r = rank(v);
      if (argmax == none || r > top) {
        best = v;
        top = r;
        argmax = tap;
        where = cell;
      }
    }, lane, 32);
    const int mine = argmax;
#pragma unroll
    for (int by = 16; by; by /= 2) {
      const auto other = __shfl_xor_sync(0xffffffffu, top, by);
      const int tap = __shfl_xor_sync(0xffffffffu, argmax, by);
      if (other > top || (other == top && tap < argmax)) {
        top = other;
        argmax = tap;
      }
    }
    if (argmax == none ? lane == 0 : mine == argmax) {
      y[i] = best;
      if (keep & ARGMAX) saved[i] = A(argmax == none ? 0 : argmax);
      if (keep & INDICES) indices[i] = argmax == none ? -1 : static_cast<long long>(where);
    }
  }
}

// Whether output o, of m, gives to this tap of its window.
template <typename A, typename I>
__device__ __forceinline__ bool chosen(const A* __restrict__ saved, int rule, I m, I o, int tap) {
  return rule == FIRST ? saved[o] == A(tap) : (saved[I(tap / 8) * m + o] >> tap % 8 & 1) != 0;
}

// What each chosen tap gets of output o's gradient.
template <typename T, typename A, typename I>
__device__ __forceinline__ typename Sum<T>::type share(const T* __restrict__ dy, const A* __restrict__ saved, int rule, I m,
    I o, int taps) {
  using S = typename Sum<T>::type;
  const S g = widen(dy[o]);
  if (rule != SPLIT) return g;
  int ties = 0;
  for (int byte = 0; byte < (taps + 7) / 8; ++byte) ties += __popc(saved[I(byte) * m + o]);
  return quotient(g, S(ties));
}

// n outputs.
template <typename T, typename A, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_scatter(const T* __restrict__ dy, const A* __restrict__ saved,
    T* __restrict__ dx, int rule, I n, I inner, AXES) {
  GATHERED_AXES
  const I plane = I(d.length) * I(h.length) * I(w.length);
  const int taps = d.kernel * h.kernel * w.kernel;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d.out, h.out, w.out, inner);
    const T g = narrow<T>(share(dy, saved, rule, n, i, taps));
    const int to_z = at.z == d.out - 1 ? d.length : d.start(at.z + 1);
    const int to_r = at.r == h.out - 1 ? h.length : h.start(at.r + 1);
    const int to_c = at.c == w.out - 1 ? w.length : w.start(at.c + 1);
    for (int z = at.z ? d.start(at.z) : 0; z < to_z; ++z)
      for (int r = at.r ? h.start(at.r) : 0; r < to_r; ++r)
        for (int c = at.c ? w.start(at.c) : 0; c < to_c; ++c) {
          const int tz = d.tap(at.z, z), ty = h.tap(at.r, r), tx = w.tap(at.c, c);
          const bool mine = tz >= 0 && ty >= 0 && tx >= 0 && chosen(saved, rule, n, i, (tz * h.kernel + ty) * w.kernel + tx);
          dx[element(at, plane, (I(z) * I(h.length) + I(r)) * I(w.length) + I(c), inner)] = mine ? g : T(0.f);
        }
  }
}

// n cells of dx, m outputs. Disjoint windows give a cell one gradient: it is copied, so that -0 stays -0.
template <typename T, typename A, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_gather(const T* __restrict__ dy, const A* __restrict__ saved,
    T* __restrict__ dx, int rule, int disjoint, I n, I m, I inner, AXES) {
  GATHERED_AXES
  using S = typename Sum<T>::type;
  const I windows = I(d.out) * I(h.out) * I(w.out);
  const int taps = d.kernel * h.kernel * w.kernel;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d.length, h.length, w.length, inner);
    S sum = 0;
    each_window(d, h, w, at.z, at.r, at.c, [&](int tap, int oz, int oy, int ox) {
      const I o = element(at, windows, (I(oz) * I(h.out) + I(oy)) * I(w.out) + I(ox), inner);
      if (!chosen(saved, rule, m, o, tap)) return;
      const S g = share(dy, saved, rule, m, o, taps);
      sum = disjoint ? g : plus(sum, g);
    });
    dx[i] = narrow<T>(sum);
  }
}
