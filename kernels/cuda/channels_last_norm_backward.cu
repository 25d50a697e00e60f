// channels_last_norm_backward.cu - dx, dgamma and dbeta of batch, instance and group norm where channels are the last axis.
//
//   xhat = (x - mean) * rstd    dbeta = sum(dy)    dgamma = sum(dy * xhat)
//   dx = rstd * (gamma * dy - sum(gamma * dy) / n - xhat * sum(gamma * dy * xhat) / n), the sums over the n elements that
//   share mean and rstd; dx = rstd * gamma * dy where running statistics were used (batch norm in evaluation)
//
// Layout    contiguous (samples, depth, columns) packs of V channels, aligned to their size; `group_channels` neighbouring
//           channels of a sample share statistics. Batch norm has one sample, whose depth is all elements of a channel.
// Types     T is float, __half or __nv_bfloat16 with parameters and their gradients in float, or double with double. mean
//           and rstd are double. I (offsets) is unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through the elements that share statistics, as the equations say.
// Thread    Packs of one column (column_reduce.cuh).
// Kernels   channels_last_backward (group_channels 1): all of a column in the registers of one block. Other arrays:
//           channels_last_sums (a part of a column), channels_last_backward_finish (a warp for each channel or group),
//           channels_last_backward_apply, which reads x and dy again. With running statistics: channels_last_sums, which then
//           writes dx, and channels_last_backward_finish. With several samples, parameter_gradients of norm_backward.cu
//           adds up the channels' `sums`.
// Sums      float within a block, double beyond; in a fixed order (row_reduce.cuh), no atomics.
// Bytes     3 T an element, each array once; otherwise 5 T, less what the last launch finds in the L2 cache; it takes the
//           blocks in the opposite order, so it begins with what was read last.
// Source    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3; Wu and He 2018 (arXiv:1803.08494).
#include "common.cuh"
#include "row_reduce.cuh"
#include "column_reduce.cuh"
#include "norm_gradient.cuh"

#define ARRAYS \
  const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means, \
      const double* __restrict__ rstds, const void* __restrict__ gammas, Pack<T, V>* __restrict__ dx
#define GRADIENTS void* __restrict__ dgammas, void* __restrict__ dbetas, Pair* __restrict__ sums
#define SHAPE int flags, unsigned samples, unsigned depth, unsigned columns, unsigned width

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) channels_last_backward(ARRAYS, GRADIENTS, SHAPE) {
  using A = typename Sum<T>::type;
  __shared__ Pack<A, V> workspace[256];
  const ColumnBlock block(blockIdx.x, 1, width, depth, columns);
  const ColumnIndex<I> at(block, depth, columns);
  RowTile<T, V, R> x_tile(block.ty, block.step, block.size), dy_tile(block.ty, block.step, block.size);
  x_tile.load(x, at, 0);
  dy_tile.load(dy, at, 0);
  const I row = I(block.sample) * columns * V + block.column * V;
  A shift[V], sum[2 * V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) shift[v] = block.size > 0 ? A(means[row + v]) : A(0);
  x_tile.each_with(
      dy_tile, [&](unsigned, const auto& x_pack, const auto& dy_pack) { add_products(sum, x_pack, dy_pack, shift); });
  sum_columns(sum, width, workspace);
  if (block.size == 0) return;
  NormGradient<A> gradient[V];
  A gamma[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const Moments<A> m = moments_of<A>(means[row + v], rstds[row + v]);
    const A sum_dy_xhat = (sum[V + v] - m.delta * sum[v]) * m.rstd;
    if (block.ty == 0) write_sums<A>(dgammas, dbetas, sums, flags, samples, row + v, {double(sum[v]), double(sum_dy_xhat)});
    gamma[v] = gamma_of<A>(gammas, flags, block.column * V + v);
    gradient[v] = {m, gamma[v] * sum[v], gamma[v] * sum_dy_xhat, A(depth)};
  }
  x_tile.each_with(dy_tile, [&](unsigned j, const auto& x_pack, const auto& dy_pack) {
    dx[at(j)] = input_gradient(gradient, gamma, x_pack, dy_pack);
  });
}

// Sums of dy and of dy * xhat of each channel in each part of the depth; with UseRunningStats also dx.
template <typename T, int V, typename I, bool UseRunningStats>
__global__ void __launch_bounds__(256, 2)
    channels_last_sums(ARRAYS, Pair* __restrict__ partial, SHAPE, unsigned group_channels, unsigned parts) {
  using A = typename Sum<T>::type;
  __shared__ Pack<A, V> workspace[256];
  constexpr int K = 4;
  const ColumnBlock block(blockIdx.x, parts, width, depth, columns);
  const ColumnIndex<I> at(block, depth, columns);
  const I row = I(block.sample) * (columns * V / group_channels);
  A shift[V] = {}, scale[V] = {}, total[2 * V] = {};
  if (block.size > 0)
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const unsigned channel = block.column * V + v;
      shift[v] = A(means[row + channel / group_channels]);
      if (UseRunningStats) scale[v] = A(rstds[row + channel / group_channels]) * gamma_of<A>(gammas, flags, channel);
    }
  for (unsigned j = block.ty; j < block.size; j += K * block.step) {
    A sum[2 * V] = {};
    for_each_prefetched<K>(x, dy, !UseRunningStats || flags & HAS_X, at, j, block.step, block.size,
        [&](unsigned i, const auto& x_pack, const auto& dy_pack) {
          add_products(sum, x_pack, dy_pack, shift);
          if constexpr (UseRunningStats) dx[at(i)] = scaled_gradient(scale, dy_pack);
        });
#pragma unroll
    for (int i = 0; i < 2 * V; ++i) total[i] += sum[i];
  }
  sum_columns(total, width, workspace);
  if (block.ty || !block.size) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const I statistic = row + (block.column * V + v) / group_channels;
    partial[I(block.sample * parts + block.part) * columns * V + block.column * V + v] =
        finish_sums(double(total[v]), double(total[V + v]), double(shift[v]), means[statistic], rstds[statistic]);
  }
}

// The channels' sums from channels_last_sums' parts, and in `group_sums` those of gamma * dy and gamma * dy * xhat over each
// group. One group a warp.
template <typename A, typename I>
__global__ void __launch_bounds__(128, 1) channels_last_backward_finish(const Pair* __restrict__ partial,
    const void* __restrict__ gammas, GRADIENTS, Pair* __restrict__ group_sums, int flags, unsigned samples, unsigned channels,
    unsigned group_channels, unsigned parts) {
  const unsigned groups = channels / group_channels, k = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (k >= samples * groups) return;  // whole warps
  Pair group_total = {0.0, 0.0};
  for (unsigned c = k % groups * group_channels; c < (k % groups + 1) * group_channels; ++c) {
    const Pair totals = sum_parts(partial + I(k / groups) * parts * channels + c, parts, I(channels));
    const double gamma = double(gamma_of<A>(gammas, flags, c));
    group_total.v[0] += gamma * totals.v[0];
    group_total.v[1] += gamma * totals.v[1];
    if (threadIdx.x % 32 == 0) write_sums<A>(dgammas, dbetas, sums, flags, samples, I(k / groups) * channels + c, totals);
  }
  if (threadIdx.x % 32 == 0) group_sums[k] = group_total;
}

// dx from known group sums. One range of columns and a part of its depth a block.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 2)
    channels_last_backward_apply(ARRAYS, const Pair* __restrict__ group_sums, SHAPE, unsigned group_channels, unsigned parts) {
  using A = typename Sum<T>::type;
  __shared__ A shared_terms[5][256];  // of the block's channels, of which a thread computes one
  const ColumnBlock block(gridDim.x - 1 - blockIdx.x, parts, width, depth, columns);
  const unsigned own = (block.column - block.tx) * V + threadIdx.x;
  const bool has_channel = threadIdx.x < width * V;
  if (has_channel && own < columns * V) {
    const I statistic = I(block.sample) * (columns * V / group_channels) + own / group_channels;
    const NormGradient<A> terms(moments_of<A>(means[statistic], rstds[statistic]), A(group_sums[statistic].v[0]),
        A(group_sums[statistic].v[1]), A(group_channels) * A(depth));
    shared_terms[0][threadIdx.x] = terms.shift;
    shared_terms[1][threadIdx.x] = terms.rstd;
    shared_terms[2][threadIdx.x] = terms.slope;
    shared_terms[3][threadIdx.x] = terms.offset;
    shared_terms[4][threadIdx.x] = gamma_of<A>(gammas, flags, own);
  }
  __syncthreads();
  if (!block.size) return;
  const ColumnIndex<I> at(block, depth, columns);
  NormGradient<A> gradient[V];
  A gamma[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const unsigned c = block.tx * V + v;
    gradient[v].shift = shared_terms[0][c];
    gradient[v].rstd = shared_terms[1][c];
    gradient[v].slope = shared_terms[2][c];
    gradient[v].offset = shared_terms[3][c];
    gamma[v] = shared_terms[4][c];
  }
#pragma unroll 2
  for (unsigned j = block.ty; j < block.size; j += block.step) {
    const Pack<T, V> x_pack = x[at(j)], dy_pack = dy[at(j)];  // a copy: by reference their values are loaded one by one
    dx[at(j)] = input_gradient(gradient, gamma, x_pack, dy_pack);
  }
}
