// avg_pool.cu - sum, average and adaptive average pooling, forward and backward.
//
// Layout    window.cuh's.
// Types     T any float; sums in Sum<T> without flushing, of at most RUN cells of a row, then of as many of these sums, and in
//           double from there on, so that no sum loses digits, however long. I (offsets) unsigned below 2**31 elements, else
//           unsigned long long.
// Divisor   one number for all windows where `counted` is 0 (1 for sums). Else each window's own count: on each axis its taps from
//           `low` to before `high` (the input, or with its declared padding: ceil mode's overhang never counts), the
//           product of the axes; adaptive windows count their cells. A window without a counted cell has sum 0 and divisor 1.
// NaN       spreads through its window.
// Thread    sum_pool: one output; a warp an output where windows have long rows: its lanes take every 32nd cell of a row and
//           add up in pairs. sum_pool_backward: one cell, which gathers from the windows over it in C order. No atomics; the
//           order depends on the shapes alone.
// Bytes     each array once from memory, the least there is; what windows share comes from the caches.
// Source    the portable code in functional/avg_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "window.cuh"
#include "window_count.cuh"

constexpr int RUN = 32;  // numbers that are added up in their own type

// A sum of any length.
template <typename S> struct LongSum {
  S some = 0;
  double total = 0.0;
  int number = 0;

  __device__ __forceinline__ void add(S v) {
    some = plus(some, v);
    if (++number % RUN) return;
    total += double(some);
    some = 0;
  }
  __device__ __forceinline__ S value() const { return number < RUN ? some : S(total + double(some)); }
};

// The sum of window `at`: of all its cells, or of every `step`th cell of each row from the `offset`th on.
template <typename T, typename I>
__device__ __forceinline__ typename Sum<T>::type window_sum(
    const T* __restrict__ x, const Place<I>& at, I inner, const Axis& d, const Axis& h, const Axis& w, int offset, int step) {
  using S = typename Sum<T>::type;
  const Span sd = d.span(at.z), sh = h.span(at.r), sw = w.span(at.c);
  const int apart = step * w.dilation;
  LongSum<S> sum;
  for (int z = sd.cell; z < sd.end; z += d.dilation)
    for (int r = sh.cell; r < sh.end; r += h.dilation) {
      const T* cells = x + ((at.outer * I(d.length) + I(z)) * I(h.length) + I(r)) * I(w.length) * inner + at.channel;
      for (int c = sw.cell + offset * w.dilation; c < sw.end;) {
        S run = 0;
        for (int k = 0; k < RUN && c < sw.end; ++k, c += apart) run = plus(run, widen(cells[I(c) * inner]));
        sum.add(run);
      }
    }
  return sum.value();
}

// L lanes of a warp a window; blockDim.x is a multiple of 32.
template <typename T, int L, typename I>
__global__ void __launch_bounds__(256, 4) sum_pool(
    const T* __restrict__ x, T* __restrict__ y, typename Sum<T>::type divisor, int counted, I n, INNER, AXES, BOUNDS) {
  LOAD_AXES LOAD_INNER
  using S = typename Sum<T>::type;
  const int lane = int(threadIdx.x) % L, teams = int(blockDim.x) / L;
  for (I i = I(blockIdx.x) * teams + threadIdx.x / L; i < n; i += I(gridDim.x) * teams) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    S sum = window_sum(x, at, inner, d, h, w, lane, L);
#pragma unroll
    for (int by = L / 2; by; by /= 2) sum = plus(sum, __shfl_xor_sync(0xffffffffu, sum, by));
    if (lane == 0) y[i] = narrow<T>(quotient(sum, counted ? COUNT(S, at.z, at.r, at.c) : divisor));
  }
}

// n cells of dx.
template <typename T, typename I>
__global__ void __launch_bounds__(256, 4) sum_pool_backward(
    const T* __restrict__ dy, T* __restrict__ dx, typename Sum<T>::type divisor, int counted, I n, INNER, AXES, BOUNDS) {
  LOAD_AXES LOAD_INNER
  using S = typename Sum<T>::type;
  const I windows = I(d.out) * I(h.out) * I(w.out);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    LongSum<S> gathered;
    each_window(d, h, w, at.z, at.r, at.c, [&](int, int oz, int oy, int ox) {
      const S g = widen(dy[element(at, windows, (I(oz) * I(h.out) + I(oy)) * I(w.out) + I(ox), inner)]);
      gathered.add(counted ? quotient(g, COUNT(S, oz, oy, ox)) : g);
    });
    const S sum = gathered.value();
    dx[i] = narrow<T>(counted ? sum : quotient(sum, divisor));
  }
}
