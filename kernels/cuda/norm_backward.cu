// norm_backward.cu - dx, dgamma and dbeta of the norms with one parameter a channel: batch, instance and group norm.
//
//   xhat = (x - mean) * rstd    dbeta = sum(dy)    dgamma = sum(dy * xhat)
//   dx = rstd * (gamma * dy - sum(gamma * dy) / n - xhat * sum(gamma * dy * xhat) / n), the sums over the n elements that
//   share mean and rstd; dx = rstd * gamma * dy where running statistics were used (batch norm in evaluation)
//
// Layout    rows as in row_reduce.cuh, one channel each (of one sample, in instance and group norm): row r has parameter
//           r % period and statistics r / group. x, dy and dx in packs of V values, aligned to their size.
// Types     T is float, __half or __nv_bfloat16 with parameters and their gradients in float, or double with double. mean
//           and rstd are double. I (offsets) is unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through the elements that share statistics, as the equations say.
// Thread    At most R packs of x and of dy of its team's row (row_reduce.cuh), in registers.
// Kernels   norm_backward (group 1): one row in a warp or in a block. group_norm_backward: one group in a block. Longer rows:
//           norm_sums, then norm_backward_apply, which reads x and dy again. With running statistics: norm_sums alone, which
//           then writes dx. Where a channel has several rows, parameter_gradients adds up the rows' `sums`.
// Sums      float within a thread's few packs or a block, double beyond; in a fixed order (row_reduce.cuh), no atomics.
// Bytes     3 T an element, each array once. Two launches: 5 T, less what the second finds in the L2 cache; it takes the
//           blocks in the opposite order, so it begins with what was read last.
// Source    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3; Wu and He 2018 (arXiv:1803.08494).
#include "common.cuh"
#include "row_reduce.cuh"
#include "norm_gradient.cuh"

#define ARRAYS \
  const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means, \
      const double* __restrict__ rstds, const void* __restrict__ gammas, Pack<T, V>* __restrict__ dx, \
      void* __restrict__ dgammas, void* __restrict__ dbetas, Pair* sums
#define NUMBERS \
  int flags, unsigned rows, unsigned segments, unsigned length, DIVISOR(length), unsigned period, unsigned group

template <typename T, int V, int R, typename I, int Mapping>
__global__ void __launch_bounds__(512, 1) norm_backward(ARRAYS, NUMBERS, int lanes) {
  using A = typename Sum<T>::type;
  const unsigned step = Mapping == WARP ? lanes : blockDim.x, lane = threadIdx.x % step, packs = segments * length;
  const unsigned row = blockIdx.x * (blockDim.x / step) + threadIdx.x / step;
  const bool active = row < rows;
  const RowIndex<I> at{rows, row, LOAD_DIVISOR(length, length)};
  RowTile<T, V, R> x_tile(lane, step, active ? packs : 0u), dy_tile(lane, step, x_tile.size);
  x_tile.load(x, at, 0);
  dy_tile.load(dy, at, 0);
  const Moments<A> m = moments_of<A>(means[active ? row : 0u], rstds[active ? row : 0u]);
  const A shift[1] = {m.shift}, gamma[1] = {gamma_of<A>(gammas, flags, row % period)};
  A sum[2] = {0, 0};
  x_tile.each_with(
      dy_tile, [&](unsigned, const auto& x_pack, const auto& dy_pack) { add_products(sum, x_pack, dy_pack, shift); });
  reduce_team<Mapping == WARP>(sum, Add<A>(), lanes);
  const A sum_dy = sum[0], sum_dy_xhat = (sum[1] - m.delta * sum_dy) * m.rstd;
  if (active && lane == 0) {
    if (rows > period) sums[row] = {double(sum_dy), double(sum_dy_xhat)};
    else write_gradients<A>(dgammas, dbetas, flags, row, sum_dy, sum_dy_xhat);
  }
  const NormGradient<A> gradient[1] = {{m, gamma[0] * sum_dy, gamma[0] * sum_dy_xhat, A(packs) * V}};
  x_tile.each_with(dy_tile, [&](unsigned j, const auto& x_pack, const auto& dy_pack) {
    dx[at(j)] = input_gradient(gradient, gamma, x_pack, dy_pack);
  });
}

// The offset of slot j of a group. Each channel has whole runs of `lanes` slots; its last run may have unused slots, whose
// offset is that of another slot.
template <typename I> struct ChannelRuns {
  I begin;
  unsigned channels, length, lanes, lane_bits;  // lanes: 2**lane_bits
  Divisor<unsigned> runs_per_channel;

  __device__ __forceinline__ unsigned run(unsigned j) const { return j >> lane_bits; }
  __device__ __forceinline__ unsigned channel(unsigned j) const {
    return min_unsigned(runs_per_channel.quotient(run(j)), channels - 1);
  }
  __device__ __forceinline__ unsigned pack(unsigned j) const {
    const unsigned runs_before = runs_per_channel.quotient(run(j)) * runs_per_channel.number;
    return ((run(j) - runs_before) << lane_bits) + (j & (lanes - 1));
  }
  __device__ __forceinline__ bool filled(unsigned j) const {
    return run(j) < channels * runs_per_channel.number && pack(j) < length;
  }
  __device__ __forceinline__ I operator()(unsigned j) const {
    return begin + channel(j) * length + min_unsigned(pack(j), length - 1);
  }
};

// A group of channels a block. `slots`: the slots of a group, a multiple of 32.
template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(512, 2) group_norm_backward(
    ARRAYS, NUMBERS, int lanes, unsigned slots, unsigned lane_bits, DIVISOR(runs)) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const unsigned runs_per_channel = (length + lanes - 1) / lanes, row = blockIdx.x * group;  // the first channel
  const unsigned first_channel = row % period;  // the period is a multiple of the group
  const ChannelRuns<I> at{
      I(row) * length, group, length, unsigned(lanes), lane_bits, LOAD_DIVISOR(runs, runs_per_channel)};
  Pack<A, 2>* const runs = reinterpret_cast<Pack<A, 2>*>(shared_memory);  // the sums of each run
  RowTile<T, V, R> x_tile(threadIdx.x, blockDim.x, slots), dy_tile(threadIdx.x, blockDim.x, slots);
  x_tile.load(x, at, 0);
  dy_tile.load(dy, at, 0);
  const Moments<A> m = moments_of<A>(means[blockIdx.x], rstds[blockIdx.x]);
  const A shift[1] = {m.shift};
  x_tile.each_with(dy_tile, [&](unsigned j, const auto& x_pack, const auto& dy_pack) {
    A sum[2] = {0, 0};
    if (at.filled(j)) add_products(sum, x_pack, dy_pack, shift);
    sum_lanes(sum, lanes);
    if (j % lanes == 0) runs[at.run(j)] = {sum[0], sum[1]};
  });
  __syncthreads();
  A totals[2] = {0, 0};
  for (unsigned c = threadIdx.x / 32; c < group; c += blockDim.x / 32) {
    A sum[2] = {0, 0};
    for (unsigned k = threadIdx.x % 32; k < runs_per_channel; k += 32) {
      sum[0] += runs[c * runs_per_channel + k].v[0];
      sum[1] += runs[c * runs_per_channel + k].v[1];
    }
    sum_lanes(sum);
    if (threadIdx.x % 32) continue;
    const A gamma = gamma_of<A>(gammas, flags, first_channel + c), sum_dy_xhat = (sum[1] - m.delta * sum[0]) * m.rstd;
    totals[0] += gamma * sum[0];
    totals[1] += gamma * sum_dy_xhat;
    if (rows > period) sums[row + c] = {double(sum[0]), double(sum_dy_xhat)};
    else write_gradients<A>(dgammas, dbetas, flags, row + c, sum[0], sum_dy_xhat);
  }
  sum_block(totals);
  const NormGradient<A> gradient[1] = {{m, totals[0], totals[1], A(group) * A(length) * V}};
  x_tile.each_with(dy_tile, [&](unsigned j, const auto& x_pack, const auto& dy_pack) {
    const A gamma[1] = {gamma_of<A>(gammas, flags, first_channel + at.channel(j))};
    if (at.filled(j)) dx[at(j)] = input_gradient(gradient, gamma, x_pack, dy_pack);
  });
}

// Sums of dy and of dy * xhat of each part of a row. With UseRunningStats it writes dx too, which then depends on no sum,
// so norm_backward_apply is not launched. One part a block.
template <typename T, int V, typename I, bool UseRunningStats>
__global__ void __launch_bounds__(256, 2) norm_sums(ARRAYS, NUMBERS, unsigned parts) {
  using A = typename Sum<T>::type;
  constexpr int K = 4;
  const unsigned packs = segments * length, part_size = (packs + parts - 1) / parts;
  const unsigned row = blockIdx.x / parts, part = blockIdx.x % parts, begin = part * part_size;
  const unsigned end = min_unsigned(begin + part_size, packs), step = blockDim.x;
  const RowIndex<I> at{rows, row, LOAD_DIVISOR(length, length)};
  const Moments<A> m = moments_of<A>(means[row / group], rstds[row / group]);
  const A shift[1] = {m.shift}, scale[1] = {m.rstd * gamma_of<A>(gammas, flags, row % period)};
  double total[2] = {0.0, 0.0};
  for (unsigned j = begin + threadIdx.x; j < end; j += K * step) {
    A sum[2] = {0, 0};
    for_each_prefetched<K>(
        x, dy, !UseRunningStats || flags & HAS_X, at, j, step, end, [&](unsigned i, const auto& x_pack, const auto& dy_pack) {
          add_products(sum, x_pack, dy_pack, shift);
          if constexpr (UseRunningStats) dx[at(i)] = scaled_gradient(scale, dy_pack);
        });
    total[0] += double(sum[0]);
    total[1] += double(sum[1]);
  }
  sum_block(total);
  if (threadIdx.x == 0) sums[I(row) * parts + part] = {total[0], (total[1] - double(m.delta) * total[0]) * double(m.rstd)};
}

// dx from norm_sums' parts, and dgamma and dbeta of a channel that is one row. One of `stream` parts of a row a block.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 4)
    norm_backward_apply(ARRAYS, NUMBERS, unsigned parts, unsigned stream) {
  using A = typename Sum<T>::type;
  __shared__ A shared_sums[2];
  const unsigned packs = segments * length, part_size = (packs + stream - 1) / stream;
  const unsigned block = gridDim.x - 1 - blockIdx.x, row = block / stream, part = block % stream, begin = part * part_size;
  const unsigned first_of_group = row - row % group;
  if (threadIdx.x < 32) {
    double totals[2] = {0.0, 0.0};  // of the elements that share statistics
    for (unsigned k = threadIdx.x; k < group * parts; k += 32) {
      const double gamma = double(gamma_of<A>(gammas, flags, (first_of_group + k / parts) % period));
      totals[0] += gamma * sums[I(first_of_group) * parts + k].v[0];
      totals[1] += gamma * sums[I(first_of_group) * parts + k].v[1];
    }
    sum_lanes(totals);
    if (threadIdx.x == 0) shared_sums[0] = A(totals[0]), shared_sums[1] = A(totals[1]);
    if (part == 0 && rows <= period) {
      const Pair channel_sums = sum_parts(sums + I(row) * parts, parts, 1u);
      if (threadIdx.x == 0) write_gradients<A>(dgammas, dbetas, flags, row, channel_sums.v[0], channel_sums.v[1]);
    }
  }
  __syncthreads();
  const RowIndex<I> at{rows, row, LOAD_DIVISOR(length, length)};
  const A gamma[1] = {gamma_of<A>(gammas, flags, row % period)};
  const NormGradient<A> gradient[1] = {
      {moments_of<A>(means[row / group], rstds[row / group]), shared_sums[0], shared_sums[1], A(group) * A(packs) * V}};
  const unsigned end = min_unsigned(begin + part_size, packs);
#pragma unroll 4
  for (unsigned j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const Pack<T, V> x_pack = x[at(j)], dy_pack = dy[at(j)];  // a copy: by reference their values are loaded one by one
    dx[at(j)] = input_gradient(gradient, gamma, x_pack, dy_pack);
  }
}

// dgamma and dbeta of each channel, from the sums of its `number` rows, `parts` of each. One channel a warp.
template <typename A, typename I>
__global__ void __launch_bounds__(128) parameter_gradients(const Pair* __restrict__ sums, void* __restrict__ dgammas,
    void* __restrict__ dbetas, int flags, unsigned channels, unsigned number, unsigned parts) {
  const unsigned channel = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (channel >= channels) return;  // whole warps
  double totals[2] = {0.0, 0.0};
  for (unsigned k = threadIdx.x % 32; k < number * parts; k += 32) {
    const Pair sum = sums[(I(k / parts) * channels + channel) * parts + k % parts];
    totals[0] += sum.v[0];
    totals[1] += sum.v[1];
  }
  sum_lanes(totals);
  if (threadIdx.x % 32 == 0) write_gradients<A>(dgammas, dbetas, flags, channel, totals[0], totals[1]);
}
