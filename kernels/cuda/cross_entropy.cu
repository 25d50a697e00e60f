// cross_entropy.cu - the softmax cross-entropy of rows of scores and its gradient, one launch each.
//
// Layout    x and dx (rows, classes), labels (rows).
// Types     T any float; computed in A = Sum<T>, sums in double. L any integer.
// Sums      Of each row `top`, the largest score, and `rest`, the sum of exp(x - top) over the others: the loss is
//           log1p(rest) + top - score, and digits of a confident one are not lost. A thread's sum, then a block's
//           (row_reduce.cuh), and at last all rows in a fixed order: the bits depend on the shapes alone.
// NaN       A row with a NaN, or whose largest score is infinite, gives NaN; so does a label out of range, whose row of dx is
//           NaN as well.
// Thread    forward: W warps a row; every row's loss is stored, and the block that ends last adds them up. `ended`
//           counts the blocks, from 0. backward: a warp takes `piece` packs of a row.
// Bytes     forward: x twice, the second time from the caches; backward: x and dx once.
// Source    functional/losses.py.
#include "common.cuh"
#include "row_reduce.cuh"

// Whether the i-th score is larger than the largest so far, NaNs being largest of all.
template <typename A> __device__ __forceinline__ bool beats(A v, int i, A top, int at) {
  const bool nan = v != v, top_nan = top != top;
  return nan ? !top_nan || i < at : !top_nan && (v > top || (v == top && i < at));
}

// The largest score of a row and its first position, of all threads of the row: W warps, the threads' own at first. Between
// two calls there must be a barrier: sum_block has one.
template <int W, typename A> __device__ __forceinline__ void largest_of(A& top, int& at) {
#pragma unroll
  for (int by = 16; by; by /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, top, by);
    const int there = __shfl_xor_sync(0xffffffffu, at, by);
    if (beats(other, there, top, at)) top = other, at = there;
  }
  if constexpr (W > 1) {
    __shared__ A tops[W];
    __shared__ int places[W];
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top, places[threadIdx.x / 32] = at;
    __syncthreads();
    top = tops[0], at = places[0];
#pragma unroll
    for (int w = 1; w < W; ++w)
      if (beats(tops[w], places[w], top, at)) top = tops[w], at = places[w];
  }
}

// W warps a row, 8 / W rows a block of 256 threads. tops and rests have a number a row; losses a double.
template <typename T, typename L, int W, typename I>
__global__ void __launch_bounds__(256) cross_entropy(const T* __restrict__ x, const L* __restrict__ labels,
    typename Sum<T>::type* __restrict__ tops, typename Sum<T>::type* __restrict__ rests, double* losses, T* __restrict__ loss,
    unsigned* ended, int rows, int classes) {
  using A = typename Sum<T>::type;
  constexpr int TEAMS = 8 / W, STEP = 32 * W;
  __shared__ bool last;
  const int team = W > 1 ? 0 : int(threadIdx.x) / 32, t = int(threadIdx.x) % STEP;
  for (int first = int(blockIdx.x) * TEAMS; first < rows; first += int(gridDim.x) * TEAMS) {
    const int row = min(first + team, rows - 1);  // the last block's other warps repeat the last row
    const T* const scores = x + I(row) * classes;
    A top = A(widen(lowest<T>()));
    int at = classes;
#pragma unroll 4
    for (int k = t; k < classes; k += STEP) {
      const A v = widen(scores[k]);
      if (beats(v, k, top, at)) top = v, at = k;
    }
    largest_of<W>(top, at);
    double sum[1] = {0.0};
#pragma unroll 4
    for (int k = t; k < classes; k += STEP) sum[0] += k == at ? 0.0 : double(exp(widen(scores[k]) - top));
    if constexpr (W > 1) sum_block(sum);
    else sum_lanes(sum);
    if (t == 0 && first + team < rows) {
      const double rest = sum[0] + double(top - top);  // NaN where the largest is NaN or infinite
      const L label = labels[row];
      const bool known = label >= L(0) && static_cast<unsigned long long>(label) < static_cast<unsigned long long>(classes);
      tops[row] = top;
      rests[row] = A(rest);
      losses[row] = known ? log1p(rest) + double(top - widen(scores[label])) : nan("");
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // the block's losses are there before it counts as ended
    last = atomicAdd(ended, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  double sum[1] = {0.0};
  for (int row = int(threadIdx.x); row < rows; row += int(blockDim.x)) sum[0] += __ldcg(losses + row);
  sum_block(sum);
  if (threadIdx.x == 0) *loss = narrow<T>(A(sum[0] / rows));
}

// A warp takes `piece` scores of a row, a multiple of 32; units = rows * the pieces of a row.
template <typename T, typename L, typename I>
__global__ void __launch_bounds__(256, 2) cross_entropy_backward(const T* __restrict__ x, const L* __restrict__ labels,
    const typename Sum<T>::type* __restrict__ tops, const typename Sum<T>::type* __restrict__ rests,
    const typename Sum<T>::type* __restrict__ dy, T* __restrict__ dx, int rows, int classes, int piece, I units) {
  using A = typename Sum<T>::type;
  const I pieces = (classes + piece - 1) / piece, warps = I(gridDim.x) * (blockDim.x / 32);
  const A factor = *dy / A(rows);
  for (I unit = I(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; unit < units; unit += warps) {
    const I row = unit / pieces;
    const int begin = int(unit - row * pieces) * piece, end = min(begin + piece, classes);
    const A top = tops[row], rest = rests[row];
    const L label = labels[row];
    const bool known = label >= L(0) && static_cast<unsigned long long>(label) < static_cast<unsigned long long>(classes);
    const A scale = known ? factor / (A(1) + rest) : A(nan(""));
    const int own = known ? int(label) : -1;
#pragma unroll 4
    for (int k = begin + int(threadIdx.x % 32); k < end; k += 32) {
      const A power = exp(widen(x[row * classes + k]) - top);
      // at the label softmax - 1 = -(the other exponentials) / sum, both terms of that being 0 or more
      dx[row * classes + k] = narrow<T>((k == own ? (power - A(1)) - rest : power) * scale);
    }
  }
}
