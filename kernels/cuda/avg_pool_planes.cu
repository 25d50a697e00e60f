// avg_pool_planes.cu - sum and average pooling where a window is its whole plane: global pooling.
//
// Layout    contiguous. Channels first: x and dx are planes of `packs` packs of C cells, y and dy have one value a plane.
//           Channels last: x and dx are (samples, depth, columns) packs of V channels, y and dy (samples, columns).
// Types     T any float; sums in Sum<T> without flushing, of at most RUN cells, and in double of these. I (offsets) unsigned
//           below 2**31 elements, else unsigned long long.
// NaN       spreads through its plane.
// Thread    W warps a plane; each thread takes every (32 W)th pack, RUN cells' packs at once, all loaded before the first is
//           added. Warps add up in pairs of lanes, then one after another. The order depends on the shape alone. Backward
//           stores the one gradient in each pack. Channels last: packs of one column (column_reduce.cuh); backward a pack.
// Bytes     each array once.
// Source    the portable code in functional/avg_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "row_reduce.cuh"
#include "column_reduce.cuh"

constexpr int RUN = 32;  // numbers that are added up in their own type

template <typename A> __device__ __forceinline__ A sum_warp(A sum) {
#pragma unroll
  for (int by = 16; by; by /= 2) sum = plus(sum, __shfl_xor_sync(0xffffffffu, sum, by));
  return sum;
}

// The sum of the thread's cells of a plane, thread `t` of `threads`.
template <typename T, int C> __device__ __forceinline__ typename Sum<T>::type thread_sum(
    const Pack<T, C>* __restrict__ cells, int packs, int t, int threads) {
  using A = typename Sum<T>::type;
  constexpr int U = C < 4 ? 8 : RUN / C;  // packs at once
  double total = 0.0;
  for (int p = t; p < packs; p += U * threads) {
    Pack<T, C> some[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      some[u] = {};
      if (p + u * threads < packs) some[u] = cells[p + u * threads];
    }
    A run = 0;
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int c = 0; c < C; ++c) run = plus(run, widen(some[u].v[c]));
    total += double(run);
  }
  return A(total);
}

// blockDim.x is a multiple of 32 W; n planes.
template <typename T, int C, int W, typename I>
__global__ void __launch_bounds__(256, 4) sum_planes(
    const Pack<T, C>* __restrict__ x, T* __restrict__ y, typename Sum<T>::type divisor, I n, int packs) {
  using A = typename Sum<T>::type;
  __shared__ A sums[8];
  const int warp = int(threadIdx.x) / 32, team = warp / W, teams = int(blockDim.x) / (32 * W);
  for (I first = I(blockIdx.x) * teams; first < n; first += I(gridDim.x) * teams) {
    const I plane = first + team;
    A sum = 0;
    if (plane < n) sum = thread_sum<T, C>(x + plane * I(packs), packs, int(threadIdx.x) - team * 32 * W, 32 * W);
    sum = sum_warp(sum);
    if constexpr (W > 1) {
      if (threadIdx.x % 32 == 0) sums[warp] = sum;
      __syncthreads();
      sum = sums[team * W];
#pragma unroll
      for (int w = 1; w < W; ++w) sum = plus(sum, sums[team * W + w]);
      __syncthreads();
    }
    if (plane < n && threadIdx.x % (32 * W) == 0) y[plane] = narrow<T>(quotient(sum, divisor));
  }
}

// blockDim.x is a multiple of 32 W; n planes.
template <typename T, int C, int W, typename I>
__global__ void __launch_bounds__(256, 4) fill_planes(
    const T* __restrict__ dy, Pack<T, C>* __restrict__ dx, typename Sum<T>::type divisor, I n, int packs) {
  using A = typename Sum<T>::type;
  const int team = int(threadIdx.x) / (32 * W), teams = int(blockDim.x) / (32 * W), t = int(threadIdx.x) - team * 32 * W;
  for (I plane = I(blockIdx.x) * teams + team; plane < n; plane += I(gridDim.x) * teams) {
    Pack<T, C> out;
    const T share = narrow<T>(quotient(plus(A(0), widen(dy[plane])), divisor));
#pragma unroll
    for (int c = 0; c < C; ++c) out.v[c] = share;
    Pack<T, C>* const cells = dx + plane * I(packs);
#pragma unroll 4
    for (int p = t; p < packs; p += 32 * W) cells[p] = out;
  }
}

template <typename A> struct Plus {
  __device__ __forceinline__ A operator()(A a, A b) const { return plus(a, b); }
};

// `width` packs of columns a block.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(512, 1) pool_columns(const Pack<T, V>* __restrict__ x, T* __restrict__ y,
    typename Sum<T>::type divisor, unsigned depth, unsigned columns, unsigned width) {
  using A = typename Sum<T>::type;
  constexpr int U = 8;  // packs at once
  __shared__ Pack<A, V> workspace[512];
  const ColumnBlock block(blockIdx.x, 1, width, depth, columns);
  const ColumnIndex<I> at(block, depth, columns);
  double total[V] = {};
  for (unsigned j = block.ty; j < block.size; j += U * block.step) {
    Pack<T, V> some[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) some[u].v[v] = T(0.f);
      if (j + u * block.step < block.size) some[u] = x[at(j + u * block.step)];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A run = 0;
#pragma unroll
      for (int u = 0; u < U; ++u) run = plus(run, widen(some[u].v[v]));
      total[v] += double(run);
    }
  }
  A sum[V];
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = A(total[v]);
  reduce_columns(sum, Plus<A>(), width, workspace);
  A own = 0;  // the sum that this thread writes: a column has at least 16 threads
#pragma unroll
  for (int v = 0; v < V; ++v) own = block.ty == v ? sum[v] : own;
  if (block.ty < V && block.size)
    y[(I(block.sample) * columns + block.column) * V + block.ty] = narrow<T>(quotient(own, divisor));
}

// n packs of dx.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 4) fill_columns(const Pack<T, V>* __restrict__ dy, Pack<T, V>* __restrict__ dx,
    typename Sum<T>::type divisor, I n, I columns, I plane, DIVISOR(columns), DIVISOR(plane)) {
  using A = typename Sum<T>::type;
  const Divisor<I> by_columns = LOAD_DIVISOR(columns, columns), by_plane = LOAD_DIVISOR(plane, plane);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I sample = by_plane.quotient(i), row = by_columns.quotient(i);
    const Pack<T, V> g = dy[sample * columns + (i - row * columns)];
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = narrow<T>(quotient(plus(A(0), widen(g.v[v])), divisor));
    dx[i] = out;
  }
}
