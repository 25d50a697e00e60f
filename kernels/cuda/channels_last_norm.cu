// channels_last_norm.cu - the forward of batch, instance and group norm where channels are the last axis.
//
//   y = (x - mean) * rstd * gamma + beta,    rstd = 1 / sqrt(var + eps)
//
// Layout    contiguous (samples, depth, columns) packs of V channels, aligned to their size; `group_channels` neighbouring
//           channels of a sample share statistics. Batch norm has one sample, whose depth is all elements of a channel.
// Types     T is float, __half or __nv_bfloat16 with sums and parameters in float, or double with double. mean and rstd are
//           written as double, running statistics have any floating dtype. I (offsets) is unsigned below 2**31 elements, else
//           unsigned long long.
// NaN       A group that has a NaN or an infinity becomes NaN, and so do its statistics.
// Thread    Packs of one column (column_reduce.cuh).
// Kernels   channels_last_forward (group_channels 1): all of a column in the registers of one block. Other arrays:
//           channels_last_moments (a part of a column), channels_last_finish (a warp for each channel or group),
//           channels_last_apply, which reads x again. With running statistics: the latter two.
// Sums      float within a block, double beyond; in a fixed order, no atomics.
// Bytes     2 T an element, read once and written once; otherwise 3 T, less what the last launch finds in the L2 cache; it
//           takes the blocks in the opposite order, so it begins with what was read last.
// Source    Chan, Golub and LeVeque 1983 (the corrected two-pass variance, and combining parts); the library's portable code
//           (functional/norm_math.py).
#include "common.cuh"
#include "row_reduce.cuh"
#include "column_reduce.cuh"
#include "stats_writer.cuh"
#include "scale_shift.cuh"

#define ARRAYS \
  const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas, const void* __restrict__ betas, Pack<T, V>* __restrict__ y
#define SHAPE unsigned samples, unsigned depth, unsigned columns, unsigned width

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) channels_last_forward(ARRAYS, STATS_PARAMS, SHAPE) {
  using A = typename Sum<T>::type;
  __shared__ Pack<A, V> workspace[256];
  const ColumnBlock block(blockIdx.x, 1, width, depth, columns);
  const ColumnIndex<I> at(block, depth, columns);
  RowTile<T, V, R> tile(block.ty, block.step, block.size);
  tile.load(x, at, 0);
  A pivot[V], shift[V], delta[V], squares[V];
  load_pivot(x, at, block, pivot);
  const auto sum_over_team = [&](auto& v) { sum_columns(v, width, workspace); };
  compute_statistics<true, V>(tile, A(depth), pivot, sum_over_team, shift, delta, squares);
  if (block.size == 0) return;
  ScaleShift<A> scale_shifts[V];
  double mean = 0, var = 0;  // of the channel whose statistics this thread writes: a column has at least 8 threads
#pragma unroll
  for (unsigned v = 0; v < V; ++v) {
    const A square = squares[v] / A(depth), rstd = A(1) / sqrt(square + A(eps));
    mean = block.ty == v ? double(shift[v]) + double(delta[v]) : mean;
    var = block.ty == v ? double(square) : var;
    scale_shifts[v] = scale_shift_of(gammas, betas, flags, block.column * V + v, Moments<A>{shift[v], delta[v], rstd});
  }
  if (block.ty < V)  // one call: unrolled over the channels it takes compilers minutes
    STATS_WRITER((I(block.sample) * columns + block.column) * V + block.ty, double(depth), mean, var,
        double(A(1) / sqrt(A(var) + A(eps))));
  tile.each([&](unsigned j, const auto& pack) { y[at(j)] = apply_scale_shift(scale_shifts, pack); });
}

// Mean and squared deviations of each channel in each part of the depth.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 3)
    channels_last_moments(const Pack<T, V>* __restrict__ x, Pair* __restrict__ partial, SHAPE, unsigned parts) {
  using A = typename Sum<T>::type;
  __shared__ Pack<A, V> workspace[256];
  constexpr int K = V > 4 && Infinity<T>::value == 0x7f80 ? 3 : 4;  // the compiler stores bfloat16 widened
  const ColumnBlock block(blockIdx.x, parts, width, depth, columns);
  const ColumnIndex<I> at(block, depth, columns);
  RunningMoments<V, A, true> running;
  for (unsigned j = block.ty; j < block.size; j += K * block.step) {
    Pack<T, V> packs[K];
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (j + k * block.step < block.size) packs[k] = x[at(j + k * block.step)];
    running.add(packs, min_unsigned(unsigned(K), (block.size - j + block.step - 1) / block.step));
  }
  A origin[V], mean[V], squares[V];
  load_pivot(x, at, block, origin);
  const auto sum_over_team = [&](auto& v) { sum_columns(v, width, workspace); };
  running.combine(origin, A(block.size), sum_over_team, mean, squares);
  if (block.ty || !block.size) return;
#pragma unroll
  for (int v = 0; v < V; ++v)
    partial[I(block.sample * parts + block.part) * columns * V + block.column * V + v] = {
        double(origin[v]) + double(mean[v]), double(squares[v])};
}

// Mean and rstd of each group of `group_channels` channels: from channels_last_moments' parts, or (UseRunningStats)
// from the running ones. One group a warp.
template <typename I, bool UseRunningStats>
__global__ void __launch_bounds__(128) channels_last_finish(const Pair* __restrict__ partial, STATS_PARAMS, unsigned samples,
    unsigned depth, unsigned channels, unsigned group_channels, unsigned parts) {
  const unsigned groups = channels / group_channels, k = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32,
                 lane = threadIdx.x % 32;
  if (k >= samples * groups) return;  // whole warps
  if constexpr (UseRunningStats) {
    const double mean = read_any(running_mean, mean_kind, k), var = read_any(running_var, var_kind, k);
    if (lane == 0) STATS_WRITER(k, double(depth), mean, var, 1.0 / sqrt(var + eps));
    return;
  }
  const unsigned part_size = (depth + parts - 1) / parts;
  const Pair* first = partial + I(k / groups) * parts * channels + k % groups * group_channels;
  const double cells = double(group_channels) * double(depth);
  double mean[1] = {0.0}, var[1] = {0.0};
  for (unsigned i = lane; i < group_channels * parts; i += 32) {
    const Pair part = first[I(i / group_channels) * channels + i % group_channels];
    mean[0] += double(min_unsigned(part_size, depth - i / group_channels * part_size)) * part.v[0];
  }
  sum_lanes(mean);
  mean[0] /= cells;
  for (unsigned i = lane; i < group_channels * parts; i += 32) {
    const Pair part = first[I(i / group_channels) * channels + i % group_channels];
    const double deviation = part.v[0] - mean[0];
    var[0] += part.v[1] + double(min_unsigned(part_size, depth - i / group_channels * part_size)) * deviation * deviation;
  }
  sum_lanes(var);
  var[0] /= cells;
  if (lane == 0) STATS_WRITER(k, cells, mean[0], var[0], 1.0 / sqrt(var[0] + eps));
}

// y from known mean and rstd. One range of columns and a part of its depth a block.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 4) channels_last_apply(ARRAYS, const double* __restrict__ means,
    const double* __restrict__ rstds, int flags, SHAPE, unsigned group_channels, unsigned parts) {
  using A = typename Sum<T>::type;
  __shared__ A shared_terms[3][256];  // of the block's channels, of which a thread computes one
  const ColumnBlock block(gridDim.x - 1 - blockIdx.x, parts, width, depth, columns);
  const unsigned own = (block.column - block.tx) * V + threadIdx.x;
  const bool has_channel = threadIdx.x < width * V;
  if (has_channel && own < columns * V) {
    const I row = I(block.sample) * (columns * V / group_channels) + own / group_channels;
    const ScaleShift<A> terms = scale_shift_of(gammas, betas, flags, own, moments_of<A>(means[row], rstds[row]));
    shared_terms[0][threadIdx.x] = terms.shift;
    shared_terms[1][threadIdx.x] = terms.scale;
    shared_terms[2][threadIdx.x] = terms.offset;
  }
  __syncthreads();
  if (!block.size) return;
  const ColumnIndex<I> at(block, depth, columns);
  ScaleShift<A> scale_shifts[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const unsigned c = block.tx * V + v;
    scale_shifts[v].shift = shared_terms[0][c];
    scale_shifts[v].scale = shared_terms[1][c];
    scale_shifts[v].offset = shared_terms[2][c];
  }
#pragma unroll 4
  for (unsigned j = block.ty; j < block.size; j += block.step) {
    const Pack<T, V> pack = x[at(j)];  // a copy: by reference its values are loaded one by one
    y[at(j)] = apply_scale_shift(scale_shifts, pack);
  }
}
