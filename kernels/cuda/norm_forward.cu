// norm_forward.cu - the forward of batch, group, instance, layer and RMS norm over rows as row_reduce.cuh describes them.
//
//   y = (x - mean) * rstd * gamma + beta,    rstd = 1 / sqrt(var + eps)
//
// Layout    contiguous; x and y in packs of V values, aligned to their size and within one segment.
// Types     T is float, __half or __nv_bfloat16 with sums and parameters in float, or double with double. mean and rstd are
//           written as double, running statistics have any floating dtype. I (offsets) is unsigned below 2**31 elements, else
//           unsigned long long.
// Mode      which parameter an element has (ParameterMode): PER_ROW row % period (batch, instance); PER_CHANNEL, where a row
//           is a group of channels of `channel_packs` packs each; PER_ELEMENT (layer, RMS).
// NaN       A row that has a NaN or an infinity becomes NaN, and so do its statistics.
// Thread    At most R packs of its team's row (row_reduce.cuh), in registers, while a first estimate of the mean, the mean and
//           the squared deviations, and y are computed one after another.
// Kernels   norm_forward: one row in a warp or in a block. Longer rows: norm_moments, then norm_apply, which reads x again. With
//           running statistics: norm_apply alone.
// Bytes     2 T an element: read once, written once. Two launches: 3 T, less what the second finds in the L2 cache; it takes
//           the blocks in the opposite order, so it begins with what was read last.
// Source    Chan, Golub and LeVeque 1983 (the corrected two-pass variance, and combining parts); the library's portable code
//           (functional/norm_math.py).
#include "common.cuh"
#include "row_reduce.cuh"
#include "stats_writer.cuh"
#include "scale_shift.cuh"

#define ARRAYS \
  const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas, const void* __restrict__ betas, Pack<T, V>* __restrict__ y
#define NUMBERS \
  unsigned rows, unsigned segments, unsigned length, DIVISOR(length), unsigned period, unsigned channel_packs, \
      DIVISOR(channel_packs)

template <typename T, int V, int R, typename I, int ParameterMode, bool Centred, int Mapping>
__global__ void __launch_bounds__(512, 1) norm_forward(ARRAYS, STATS_PARAMS, NUMBERS, int lanes) {
  using A = typename Sum<T>::type;
  const unsigned step = Mapping == WARP ? lanes : blockDim.x, packs = segments * length;
  const unsigned row = blockIdx.x * (blockDim.x / step) + threadIdx.x / step;
  const bool active = row < rows;
  const RowIndex<I, ParameterMode == PER_ROW> at{rows, row, LOAD_DIVISOR(length, length)};
  RowTile<T, V, R> tile(threadIdx.x % step, step, active ? packs : 0u);
  tile.load(x, at, 0);
  RowScaleShift<T, V, ParameterMode> apply_scale_shift(
      gammas, betas, flags, row, length, period, LOAD_DIVISOR(channel_packs, channel_packs));
  const A pivot[1] = {Centred && active ? widen(x[at(0)].v[0]) : A(0)}, cells = A(packs) * V;
  A shift[1], delta[1], squares[1];
  const auto sum_over_team = [&](auto& v) { reduce_team<Mapping == WARP>(v, Add<A>(), lanes); };
  compute_statistics<Centred, V>(tile, cells, pivot, sum_over_team, shift, delta, squares);
  const A var = squares[0] / cells;
  const Moments<A> m{shift[0], delta[0], A(1) / sqrt(var + A(eps))};
  apply_scale_shift.set(m);
  tile.each([&](unsigned j, const auto& pack) { y[at(j)] = apply_scale_shift(j, pack); });
  if (active && tile.lane == 0)  // at last: running statistics are loaded here
    STATS_WRITER(row, double(packs) * V, double(m.shift) + double(m.delta), double(var), double(m.rstd));
}

// Mean and squared deviations of each part of a row. One part a block, K packs of a thread at a time.
template <typename T, int V, int K, typename I, bool Centred>
__global__ void __launch_bounds__(256, 4) norm_moments(const Pack<T, V>* __restrict__ x, Pair* __restrict__ partial,
    unsigned rows, unsigned segments, unsigned length, DIVISOR(length), unsigned parts) {
  using A = typename Sum<T>::type;
  const unsigned packs = segments * length, part_size = (packs + parts - 1) / parts, step = blockDim.x;
  const unsigned row = blockIdx.x / parts, part = blockIdx.x % parts, begin = part * part_size;
  const unsigned size = min_unsigned(part_size, packs - begin);
  const RowIndex<I> at{rows, row, LOAD_DIVISOR(length, length)};
  const A origin[1] = {Centred ? widen(x[at(begin)].v[0]) : A(0)};
  RunningMoments<1, A, Centred> running;
  for (unsigned j = threadIdx.x; j < size; j += K * step) {
    Pack<T, V> loaded[K];
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (j + k * step < size) loaded[k] = x[at(begin + j + k * step)];
    running.add(loaded, min_unsigned(unsigned(K), (size - j + step - 1) / step));
  }
  A mean[1], squares[1];
  running.combine(origin, A(size) * V, [](auto& v) { sum_block(v); }, mean, squares);
  if (threadIdx.x == 0)
    partial[I(row) * parts + part] = {double(origin[0]) + double(mean[0]), double(squares[0])};
}

// y from known statistics: those of norm_moments' parts, or (UseRunningStats) the running ones. One part of a row a block.
template <typename T, int V, typename I, int ParameterMode, bool UseRunningStats>
__global__ void __launch_bounds__(512, 2) norm_apply(
    ARRAYS, const Pair* __restrict__ partial, STATS_PARAMS, NUMBERS, unsigned moment_parts, unsigned parts) {
  using A = typename Sum<T>::type;
  __shared__ Moments<A> shared_statistics[1];
  const unsigned packs = segments * length, part_size = (packs + parts - 1) / parts;
  const unsigned block = gridDim.x - 1 - blockIdx.x, row = block / parts, part = block % parts, begin = part * part_size;
  if (threadIdx.x < 32) {
    double mean, var;
    if constexpr (UseRunningStats) {
      mean = read_any(running_mean, mean_kind, row);
      var = read_any(running_var, var_kind, row);
    } else {
      combine_parts<V>(
          partial + I(row) * moment_parts, moment_parts, 1u, (packs + moment_parts - 1) / moment_parts, packs, mean, var);
    }
    if (threadIdx.x == 0) {
      const double rstd = 1.0 / sqrt(var + eps);
      shared_statistics[0] = moments_of<A>(mean, rstd);
      if (part == 0) STATS_WRITER(row, double(packs) * V, mean, var, rstd);
    }
  }
  __syncthreads();
  const RowIndex<I, ParameterMode == PER_ROW> at{rows, row, LOAD_DIVISOR(length, length)};
  RowScaleShift<T, V, ParameterMode> apply_scale_shift(
      gammas, betas, flags, row, length, period, LOAD_DIVISOR(channel_packs, channel_packs));
  apply_scale_shift.set(shared_statistics[0]);
  const unsigned end = min_unsigned(begin + part_size, packs);
#pragma unroll 4
  for (unsigned j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const Pack<T, V> pack = x[at(j)];  // a copy: by reference its values are loaded one by one
    y[at(j)] = apply_scale_shift(j, pack);
  }
}
