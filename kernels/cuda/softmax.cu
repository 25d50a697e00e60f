// softmax.cu - softmax along one axis and its gradient, one launch each.
//
//   y = exp(x - max) / sum(exp(x - max))    dx = y * (dy - sum(dy * y)), the sums along the axis
//
// Layout    contiguous. Rows: the axis is the last one, (rows, length) packs of V values. Columns: (samples, depth, columns)
//           packs, the axis is the second one (column_reduce.cuh).
// Types     T is float, __half or __nv_bfloat16 and computes in float, or double. I (offsets) is unsigned below 2**31 elements,
//           else unsigned long long.
// NaN       A NaN, an infinity, or nothing but -infinities along the axis gives NaN all along it.
// Thread    R packs of its team's row or column at a time: lanes of a warp or a block work on a row, the threads of a block
//           that have one column on a column. If these are all, they stay in registers; else they are read again.
// Sums      Over a thread, then the team, in a fixed order (row_reduce.cuh), no atomics.
// Bytes     2 T an element forward, 3 T backward; of long rows x, y and dy are read again, from the caches where they fit.
// Source    Milakov and Gimelshein 2018 (arXiv:1805.02867): the sum is scaled when a larger value comes.
#include "common.cuh"
#include "row_reduce.cuh"
#include "column_reduce.cuh"

// The largest of N channels' values so far, and the sum of the exponentials of their distances to it.
template <typename T, int N> struct ExponentialSum {
  using A = typename Sum<T>::type;
  A top[N], sum[N] = {};

  __device__ __forceinline__ ExponentialSum() {
#pragma unroll
    for (int n = 0; n < N; ++n) top[n] = Largest<A>::identity();
  }
  // What is subtracted: 0 while all values are -infinity, whose exponentials are then 0.
  static __device__ __forceinline__ A origin(A top) { return top == Largest<A>::identity() ? A(0) : top; }
  // The sum by a larger `new_top`. A sum of nothing but -infinities and NaNs, whose top is -infinity, stays.
  __device__ __forceinline__ void rescale(const A (&new_top)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (top[n] != Largest<A>::identity()) sum[n] *= exponential<T>(top[n] - new_top[n]);
      top[n] = new_top[n];
    }
  }
  template <int V, int R> __device__ __forceinline__ void add(const RowTile<T, V, R>& tile) {
    A larger[N];
#pragma unroll
    for (int n = 0; n < N; ++n) larger[n] = top[n];
    tile.each([&](unsigned, const auto& pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) larger[v % N] = Largest<A>()(larger[v % N], widen(pack.v[v]));
    });
    rescale(larger);
    tile.each([&](unsigned, const auto& pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v % N] += exponential<T>(widen(pack.v[v]) - origin(top[v % N]));
    });
  }
};

// y of one team's `size` packs. `reduce(values, operation)` reduces each of N numbers over the team.
template <int N, typename T, int V, int R, typename At, typename Reduce>
__device__ __forceinline__ void softmax_of(const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ y, RowTile<T, V, R>& tile,
    unsigned size, const At& at, const Reduce& reduce) {
  using A = typename Sum<T>::type;
  const unsigned turn = R * tile.step;
  ExponentialSum<T, N> own;
  for (unsigned begin = 0; begin < size; begin += turn) {
    tile.size = min_unsigned(turn, size - begin);
    tile.load(x, at, begin);
    own.add(tile);
  }
  A top[N], inverse[N];
#pragma unroll
  for (int n = 0; n < N; ++n) top[n] = own.top[n];
  reduce(top, Largest<A>());
  own.rescale(top);
  reduce(own.sum, Add<A>());
#pragma unroll
  for (int n = 0; n < N; ++n) {
    inverse[n] = A(1) / own.sum[n];
    top[n] = own.origin(top[n]);
  }
  for (unsigned begin = 0; begin < size; begin += turn) {
    if (size > turn) {
      tile.size = min_unsigned(turn, size - begin);
      tile.load(x, at, begin);
    }
    tile.each([&](unsigned j, const auto& pack) {
      Pack<T, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) out.v[v] = narrow<T>(exponential<T>(widen(pack.v[v]) - top[v % N]) * inverse[v % N]);
      y[at(begin + j)] = out;
    });
  }
}

// dx of one team's `size` packs.
template <int N, typename T, int V, int R, typename At, typename Reduce>
__device__ __forceinline__ void softmax_backward_of(const Pack<T, V>* __restrict__ dy, const Pack<T, V>* __restrict__ y,
    Pack<T, V>* __restrict__ dx, RowTile<T, V, R>& y_tile, RowTile<T, V, R>& dy_tile, unsigned size, const At& at,
    const Reduce& reduce) {
  using A = typename Sum<T>::type;
  const unsigned turn = R * y_tile.step;
  const auto load = [&](unsigned begin) {
    y_tile.size = dy_tile.size = min_unsigned(turn, size - begin);
    y_tile.load(y, at, begin);
    dy_tile.load(dy, at, begin);
  };
  A sum[N] = {};
  for (unsigned begin = 0; begin < size; begin += turn) {
    load(begin);
    y_tile.each_with(dy_tile, [&](unsigned, const auto& y_pack, const auto& dy_pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v % N] += widen(y_pack.v[v]) * widen(dy_pack.v[v]);
    });
  }
  reduce(sum, Add<A>());
  for (unsigned begin = 0; begin < size; begin += turn) {
    if (size > turn) load(begin);
    y_tile.each_with(dy_tile, [&](unsigned j, const auto& y_pack, const auto& dy_pack) {
      Pack<T, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) out.v[v] = narrow<T>(widen(y_pack.v[v]) * (widen(dy_pack.v[v]) - sum[v % N]));
      dx[at(begin + j)] = out;
    });
  }
}

template <typename I> struct PackOfRow {  // the offset of pack j of a row
  I first;
  __device__ __forceinline__ I operator()(unsigned j) const { return first + j; }
};

#define ROW_TEAM \
  const unsigned step = Mapping == WARP ? lanes : blockDim.x, row = blockIdx.x * (blockDim.x / step) + threadIdx.x / step; \
  const unsigned size = row < rows ? length : 0u; \
  const PackOfRow<I> at{I(row) * length}; \
  const auto reduce = [&](auto& values, const auto& operation) { reduce_team<Mapping == WARP>(values, operation, lanes); }

// A row for `lanes` threads of a warp (WARP), or for a block (BLOCK).
template <typename T, int V, int R, typename I, int Mapping>
__global__ void __launch_bounds__(512, 2) softmax_rows(
    const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ y, unsigned rows, unsigned length, int lanes) {
  ROW_TEAM;
  RowTile<T, V, R> tile(threadIdx.x % step, step);
  softmax_of<1>(x, y, tile, size, at, reduce);
}

template <typename T, int V, int R, typename I, int Mapping>
__global__ void __launch_bounds__(512, 2) softmax_rows_backward(const Pack<T, V>* __restrict__ dy,
    const Pack<T, V>* __restrict__ y, Pack<T, V>* __restrict__ dx, unsigned rows, unsigned length, int lanes) {
  ROW_TEAM;
  RowTile<T, V, R> y_tile(threadIdx.x % step, step), dy_tile(threadIdx.x % step, step);
  softmax_backward_of<1>(dy, y, dx, y_tile, dy_tile, size, at, reduce);
}

#define COLUMN_TEAM \
  const ColumnBlock block(blockIdx.x, 1, width, depth, columns); \
  const ColumnIndex<I> at(block, depth, columns); \
  const auto reduce = [&](auto& values, const auto& operation) { reduce_columns(values, operation, width, workspace); }

// `width` packs of columns a block.
template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 3) softmax_columns(
    const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ y, unsigned depth, unsigned columns, unsigned width) {
  __shared__ Pack<typename Sum<T>::type, V> workspace[256];
  COLUMN_TEAM;
  RowTile<T, V, R> tile(block.ty, block.step);
  softmax_of<V>(x, y, tile, block.size, at, reduce);
}

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 3) softmax_columns_backward(const Pack<T, V>* __restrict__ dy,
    const Pack<T, V>* __restrict__ y, Pack<T, V>* __restrict__ dx, unsigned depth, unsigned columns, unsigned width) {
  __shared__ Pack<typename Sum<T>::type, V> workspace[256];
  COLUMN_TEAM;
  RowTile<T, V, R> y_tile(block.ty, block.step), dy_tile(block.ty, block.step);
  softmax_backward_of<V>(dy, y, dx, y_tile, dy_tile, block.size, at, reduce);
}
