// lp_pool.cu - Lp pooling and its gradient: y = (sum of |x|^p over a window)^(1/p), dx = dy sign(x) (|x| / y)^(p - 1).
//
// Layout    window.cuh's.
// Types     T any float; computed in double. I (offsets) unsigned below 2**31 elements.
// Range     with `scaled` a window is divided by its largest magnitude first, so that no power leaves double's range; else
//           the launcher knows that every power fits.
// NaN       a window with a NaN gives NaN, another one with an infinity infinity. With p other than 1 the gradient at an
//           infinity is NaN. It is 0 where x or y is 0.
// Thread    lp_pool and lp_pool_scatter: L lanes of a warp (1 or 32) a window, which take every L-th tap of a row. scatter is
//           for disjoint windows: it writes dx in each cell of its window, and 0 in the cells up to the next window.
//           lp_pool_gather: one cell, which adds up the windows over it, whose norms lp_pool wrote before. The order of sums
//           depends on the shapes alone.
// Bytes     each array once from memory; what windows share comes from the caches.
// Source    functional/lp_pool.py.
#include "common.cuh"
#include "window.cuh"

// x^e of x >= 0 and e other than 0, to about |e log x| ulps: pow is a call, whose registers would spill.
__device__ __forceinline__ double power_of(double x, double e) { return exp(e * log(x)); }

struct Power {
  double p;
  bool scaled;

  __device__ __forceinline__ double of(double x) const { return p == 2.0 ? x * x : p == 1.0 ? x : power_of(x, p); }
  __device__ __forceinline__ double root(double x) const { return p == 2.0 ? sqrt(x) : p == 1.0 ? x : power_of(x, 1.0 / p); }
  // dy (size / norm)^(p - 1) of a cell and its window. Below p = 2 the quotient may leave double's range and the power not.
  __device__ __forceinline__ double gradient(double dy, double size, double norm) const {
    if (size == 0.0 || norm == 0.0) return 0.0;
    if (p == 1.0) return dy;
    if (isinf(size)) return nan("");
    if (p == 2.0) return dy * (size / norm);
    if (!scaled) return dy * power_of(norm, 1.0 - p) * power_of(size, p - 1.0);
    if (p > 2.0) return dy * power_of(size / norm, p - 1.0);
    const double half = power_of(size, (p - 1.0) / 2.0) * power_of(norm, (1.0 - p) / 2.0);
    return dy * (half * half);
  }
};

__device__ __forceinline__ double larger(double a, double b) { return a != a || a > b ? a : b; }  // a NaN is larger

// The norm of the window (oz, oy, ox) whose plane begins at `plane`, cells being `inner` apart; L lanes get the same.
template <int L, typename T, typename I>
__device__ __forceinline__ double norm_of(const T* __restrict__ plane, I inner, const Axis& d, const Axis& h, const Axis& w,
    int oz, int oy, int ox, int lane, const Power& power) {
  double largest = 0.0, sum = 0.0;
  if (power.scaled) {
    each_tap<I>(d, h, w, oz, oy, ox,
        [&](int, I cell) { largest = larger(fabs(double(widen(plane[cell * inner]))), largest); }, lane, L);
#pragma unroll
    for (int by = L / 2; by; by /= 2) largest = larger(__shfl_xor_sync(0xffffffffu, largest, by), largest);
  }
  const double scale = largest == 0.0 || isinf(largest) ? 1.0 : largest;
  each_tap<I>(d, h, w, oz, oy, ox, [&](int, I cell) {
    const double size = fabs(double(widen(plane[cell * inner])));
    sum += power.of(power.scaled ? size / scale : size);
  }, lane, L);
#pragma unroll
  for (int by = L / 2; by; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
  return power.root(sum) * scale;
}

template <typename T> __device__ __forceinline__ T rounded(double v) { return narrow<T>(typename Sum<T>::type(v)); }

__device__ __forceinline__ double signed_as(double v, double x) { return x < 0.0 ? -v : x != x ? x : v; }

// n windows; R is T or, for the norms that lp_pool_gather reads, double. blockDim.x is a multiple of 32.
template <typename T, typename R, int L, typename I>
__global__ void __launch_bounds__(256, 2)
    lp_pool(const T* __restrict__ x, R* __restrict__ y, I n, INNER, double p, int scaled, AXES) {
  LOAD_AXES LOAD_INNER
  const Power power = {p, scaled != 0};
  const I cells = I(d.length) * I(h.length) * I(w.length), teams = blockDim.x / L;
  const int lane = int(threadIdx.x) % L;
  for (I i = I(blockIdx.x) * teams + threadIdx.x / L; i < n; i += I(gridDim.x) * teams) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const T* const plane = x + at.outer * cells * inner + at.channel;
    const double norm = norm_of<L>(plane, inner, d, h, w, at.z, at.r, at.c, lane, power);
    if (lane == 0) y[i] = rounded<R>(norm);
  }
}

// The cells that window o of an axis writes: its own, the gap behind it, and what is left at both ends.
__device__ __forceinline__ int first_cell(const Axis& a, int o) { return o == 0 ? 0 : min(a.length, a.start(o)); }

// n windows, disjoint and without dilation.
template <typename T, int L, typename I>
__global__ void __launch_bounds__(256, 2) lp_pool_scatter(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx,
    I n, INNER, double p, int scaled, AXES) {
  LOAD_AXES LOAD_INNER
  const Power power = {p, scaled != 0};
  const I cells = I(d.length) * I(h.length) * I(w.length), teams = blockDim.x / L;
  const int lane = int(threadIdx.x) % L;
  for (I i = I(blockIdx.x) * teams + threadIdx.x / L; i < n; i += I(gridDim.x) * teams) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const I corner = at.outer * cells * inner + at.channel;
    const double norm = norm_of<L>(x + corner, inner, d, h, w, at.z, at.r, at.c, lane, power);
    const double g = widen(dy[i]);
    const int z_end = at.z + 1 < d.out ? first_cell(d, at.z + 1) : d.length,
              r_end = at.r + 1 < h.out ? first_cell(h, at.r + 1) : h.length,
              c_end = at.c + 1 < w.out ? first_cell(w, at.c + 1) : w.length;
    const int z_in = d.end(at.z), r_in = h.end(at.r), c_in = w.end(at.c);
    for (int z = first_cell(d, at.z); z < z_end; ++z)
      for (int r = first_cell(h, at.r); r < r_end; ++r)
        for (int c = first_cell(w, at.c) + lane; c < c_end; c += L) {
          const I cell = corner + ((I(z) * I(h.length) + I(r)) * I(w.length) + I(c)) * inner;
          const bool in = z < z_in && r < r_in && c < c_in;
          const double v = widen(x[cell]);
          dx[cell] = rounded<T>(in ? signed_as(power.gradient(g, fabs(v), norm), v) : 0.0);
        }
  }
}

// n cells.
template <typename T, typename I>
__global__ void __launch_bounds__(256, 2) lp_pool_gather(const T* __restrict__ dy, const T* __restrict__ x,
    const double* __restrict__ norms, T* __restrict__ dx, I n, INNER, double p, int scaled, AXES) {
  LOAD_AXES LOAD_INNER
  const Power power = {p, scaled != 0};
  const I windows = I(d.out) * I(h.out) * I(w.out);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const double v = widen(x[i]), size = fabs(v);
    double sum = 0.0;
    each_window(d, h, w, at.z, at.r, at.c, [&](int, int oz, int oy, int ox) {
      const I window = element(at, windows, (I(oz) * I(h.out) + I(oy)) * I(w.out) + I(ox), inner);
      sum += power.gradient(widen(dy[window]), size, norms[window]);
    });
    dx[i] = rounded<T>(signed_as(sum, v));
  }
}
