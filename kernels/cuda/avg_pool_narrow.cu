// avg_pool_narrow.cu - sum and average pooling with windows of 2 stride 2 or 3 stride 1 or 2 on each pooled axis, known at compile
// time, a thread a window.
//
// Layout    window_narrow.cuh's: any padding and lengths.
// Types, NaN and divisor  avg_pool.cu's, with sums in the same order, so that both give the same bits.
// Thread    forward: a window. Backward: a tile, whose gradients are summed in registers. What lies outside is 0, which
//           changes no sum: each begins with 0.
// Bytes     each array once from memory; windows and tiles share cells through the caches.
// Source    the portable code in functional/avg_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "quotients.cuh"
#include "window.cuh"
#include "window_count.cuh"
#include "window_narrow.cuh"

// n windows.
template <typename T, int KD, int KH, int KW, int S, int L, bool Counted, typename I>
__global__ void __launch_bounds__(256, 4) sum_pool_narrow(const Pack<T, LANES(L)>* __restrict__ x,
    Pack<T, LANES(L)>* __restrict__ y, typename Sum<T>::type divisor, I n, INNER, AXES, BOUNDS) {
  LOAD_NARROW
  constexpr int M = LANES(L), Rows = KH * KW;
  using A = typename Sum<T>::type;
  const Quotients<T> quotients(divisor);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const NarrowWindow<I, KD, KH, KW, S> window(at, d, h, w, by_inner.number);
    const Pack<T, M>* const corner = x + window.corner;
    A sum[M] = {};
#pragma unroll 1
    for (int tz = 0; tz < KD; ++tz) {
      Pack<T, M> cells[Rows] = {};
#pragma unroll
      for (int k = 0; k < Rows; ++k)
        if (window.has(tz, k / KW, k % KW)) cells[k] = corner[window.offset(tz, k / KW, k % KW)];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int ty = 0; ty < KH; ++ty) {
          A run = widen(cells[ty * KW].v[m]);
#pragma unroll
          for (int tx = 1; tx < KW; ++tx) run = plus(run, widen(cells[ty * KW + tx].v[m]));
          sum[m] = plus(sum[m], run);
        }
    }
    const A count = Counted ? COUNT(A, at.z, at.r, at.c) : divisor;
    Pack<T, M> out;
#pragma unroll
    for (int m = 0; m < M; ++m) out.v[m] = narrow<T>(Counted ? quotient(sum[m], count) : quotients(sum[m]));
    y[i] = out;
  }
}

// n tiles.
template <typename T, int KD, int KH, int KW, int S, int L, bool Counted, typename I>
__global__ void __launch_bounds__(256, 4) sum_pool_narrow_backward(const Pack<T, LANES(L)>* __restrict__ dy,
    Pack<T, LANES(L)>* __restrict__ dx, typename Sum<T>::type divisor, I n, INNER, AXES, BOUNDS) {
  LOAD_NARROW
  constexpr int M = LANES(L);
  using A = typename Sum<T>::type;
  using Tile = NarrowTile<I, KD, KH, KW, S>;
  constexpr bool Alike = KD == Tile::SD && KH == Tile::SH && KW == Tile::SW;  // the cells of a tile have the same gradient
  constexpr int N = Alike ? 1 : Tile::Cells;
  const Quotients<T> quotients(divisor);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const Tile tile(at, d, h, w, by_inner.number);
    A sum[N][M] = {};
    tile.each_window([&](auto o, bool exists, int kz, int ky, int kx) {
      Pack<T, M> gradients = {};
      if (exists) gradients = dy[o];
      const A count = Counted ? COUNT(A, at.z - kz, at.r - ky, at.c - kx) : A(1);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        A g = widen(gradients.v[m]);
        if (Counted) g = quotient(g, count);
#pragma unroll
        for (int c = 0; c < N; ++c)
          if (Tile::tap(c, kz, ky, kx) >= 0) sum[c][m] = plus(sum[c][m], g);
      }
    });
    Pack<T, M> out[N];
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int m = 0; m < M; ++m) out[c].v[m] = narrow<T>(Counted ? sum[c][m] : quotients(sum[c][m]));
    tile.each_cell([&](int c, auto cell) { dx[cell] = out[c % N]; });
  }
}
