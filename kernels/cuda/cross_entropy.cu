// cross_entropy.cu - the softmax cross-entropy of rows of scores and its gradient, one launch each.
//
// Layout    x and dx (rows, length) packs of V scores, labels (rows).
// Types     T any float; computed in A = Sum<T>, sums of a block's row and of losses in double. L any integer. I (offsets) unsigned below 2**31 scores.
// Sums      Of each row `top`, the largest score, and `rest`, the sum of exp(x - top) but for one score that equals top: the
//           loss is log1p(rest) + top - score, and digits of a confident one are not lost. A thread's sum, then a team's
//           (row_reduce.cuh), a block's, and at last all blocks in a fixed order.
// NaN       A row with a NaN, or whose largest score is infinite, gives NaN; so does a label out of range, whose row of dx is
//           NaN as well.
// Thread    forward: lanes of a warp or a block work on a row, R packs at a time; a block takes `turns` rows of each of its
//           teams, stores the sum of their losses, and the block that ends last adds these up. `ended` counts the blocks,
//           from 0. backward: a team takes R packs a thread of a row.
// Bytes     forward: x once; backward: x and dx once.
// Source    functional/losses.py; Milakov and Gimelshein 2018 (arXiv:1805.02867): the sum is scaled when a larger score comes.
#include "common.cuh"
#include "row_reduce.cuh"

template <typename L> __device__ __forceinline__ bool in_range(L label, unsigned classes) {
  return label >= L(0) && static_cast<unsigned long long>(label) < classes;
}

template <typename A, int Mapping> struct RowSum {  // what a row's sum is kept in
  using type = double;
};
template <typename A> struct RowSum<A, WARP> {
  using type = A;
};

// tops and rests have a number a row; losses one a block.
template <typename T, typename L, int V, int R, typename I, int Mapping>
__global__ void __launch_bounds__(512, 2) cross_entropy(const Pack<T, V>* __restrict__ x, const L* __restrict__ labels,
    typename Sum<T>::type* __restrict__ tops, typename Sum<T>::type* __restrict__ rests, double* losses, T* __restrict__ loss,
    unsigned* ended, unsigned rows, unsigned length, int lanes, unsigned turns) {
  using A = typename Sum<T>::type;
  using S = typename RowSum<A, Mapping>::type;
  __shared__ bool last;
  const unsigned step = Mapping == WARP ? lanes : blockDim.x, teams = blockDim.x / step, team = threadIdx.x / step;
  RowTile<T, V, R> tile(threadIdx.x % step, step);
  double row_losses[1] = {0.0};
  for (unsigned turn = 0; turn < turns; ++turn) {
    const unsigned row = (blockIdx.x * turns + turn) * teams + team, size = row < rows ? length : 0u;
    const Pack<T, V>* const packs = x + I(row) * length;
    const L label = row < rows ? labels[row] : L(0);
    A top[1] = {Largest<A>::identity()};
    S sums[2] = {0, 0};  // the exponentials of smaller scores, and the number of those that equal top
    const auto rescale = [&](A old_top, A new_top) {
      if (new_top > old_top) sums[0] = (sums[0] + sums[1]) * S(exponential<T>(old_top - new_top)), sums[1] = 0;
    };
    for (unsigned begin = 0; begin < size; begin += R * step) {
      tile.size = min_unsigned(R * step, size - begin);
      tile.load(packs, [](unsigned j) { return j; }, begin);
      const A old_top = top[0];
      tile.each([&](unsigned, const auto& pack) {
#pragma unroll
        for (int v = 0; v < V; ++v) top[0] = Largest<A>()(top[0], widen(pack.v[v]));
      });
      if (begin) rescale(old_top, top[0]);
      A sum = 0;
      unsigned equal = 0;
      tile.each([&](unsigned, const auto& pack) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A value = widen(pack.v[v]);
          if (value == top[0]) ++equal;
          else sum += exponential<T>(value - top[0]);
        }
      });
      sums[0] += S(sum);
      sums[1] += S(equal);
    }
    A score = A(nan(""));
    if (row < rows && in_range(label, length * V)) score = widen(reinterpret_cast<const T*>(packs)[label]);
    const A own_top = top[0];
    reduce_team<Mapping == WARP>(top, Largest<A>(), lanes);
    rescale(own_top, top[0]);
    reduce_team<Mapping == WARP>(sums, Add<S>(), lanes);
    if (tile.lane == 0 && row < rows) {
      const A rest = A(sums[0] + (sums[1] - S(1))) + (top[0] - top[0]);  // NaN where the largest is infinite
      tops[row] = top[0];
      rests[row] = rest;
      row_losses[0] += double(log1p(rest) + (top[0] - score));
    }
  }
  sum_block(row_losses);
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = row_losses[0];
    __threadfence();  // the block's sum is there before it counts as ended
    last = atomicAdd(ended, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  double sum[1] = {0.0};
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) sum[0] += __ldcg(losses + block);
  sum_block(sum);
  if (threadIdx.x == 0) *loss = narrow<T>(A(sum[0] / rows));
}

// A team takes one of the `pieces` of a row, R packs a thread.
template <typename T, typename L, int V, int R, typename I>
__global__ void __launch_bounds__(256) cross_entropy_backward(const Pack<T, V>* __restrict__ x, const L* __restrict__ labels,
    const typename Sum<T>::type* __restrict__ tops, const typename Sum<T>::type* __restrict__ rests,
    const typename Sum<T>::type* __restrict__ dy, Pack<T, V>* __restrict__ dx, unsigned rows, unsigned length, int lanes,
    unsigned pieces) {
  using A = typename Sum<T>::type;
  const I team = I(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
  const unsigned row = unsigned(team / pieces), begin = unsigned(team - I(row) * pieces) * R * lanes;
  if (row >= rows) return;
  RowTile<T, V, R> tile(threadIdx.x % lanes, lanes, min_unsigned(R * lanes, length - begin));
  const auto at = [&](unsigned j) { return I(row) * length + j; };
  tile.load(x, at, begin);
  const A top = tops[row], rest = rests[row];
  const L label = labels[row];
  const bool known = in_range(label, length * V);
  const A scale = known ? *dy / A(rows) / (A(1) + rest) : A(nan(""));
  const int own = known ? int(label) - int(begin * V) : -1;
  tile.each([&](unsigned j, const auto& pack) {
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A power = exponential<T>(widen(pack.v[v]) - top);
      // at the label softmax - 1 = -(the other exponentials) / sum, both terms of that being 0 or more
      out.v[v] = narrow<T>((int(j * V) + v == own ? (power - A(1)) - rest : power) * scale);
    }
    dx[at(begin + j)] = out;
  });
}
