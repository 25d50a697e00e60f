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
// Thread    The packs of its team's row that are its part (row_reduce.cuh), in registers and then in shared memory, while a
//           first estimate of the mean, the mean and the squared deviations, and y are computed one after another.
// Kernels   norm_forward: one row in a warp or in a block. norm_cooperative.cu: one row in several blocks. Rows that do not
//           fit: norm_moments, then norm_apply, which reads x again. With running statistics: norm_apply alone.
// Bytes     2 T an element: read once, written once. Two launches: 3 T, unless x is still in the L2 cache.
// Source    Chan, Golub and LeVeque 1983 (the corrected two-pass variance, and combining parts); the library's portable code
//           (functional/norm_math.py).
#include "common.cuh"
#include "row_reduce.cuh"
#include "stats_writer.cuh"
#include "scale_shift.cuh"

#define ARRAYS \
  const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas, const void* __restrict__ betas, Pack<T, V>* __restrict__ y
#define NUMBERS unsigned rows, unsigned segments, unsigned length, unsigned period, unsigned channel_packs

template <typename T, int V, int R, typename I, int ParameterMode, bool Centred, int Mapping>
__global__ void __launch_bounds__(512, 1) norm_forward(ARRAYS, STATS_PARAMS, NUMBERS, int lanes) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const unsigned step = Mapping == WARP ? lanes : blockDim.x, packs = segments * length;
  const unsigned row = blockIdx.x * (blockDim.x / step) + threadIdx.x / step;
  const bool active = row < rows;
  const RowIndex<I> at{rows, row, length};
  RowTile<T, V, R, Mapping == BLOCK> tile(threadIdx.x % step, step, reinterpret_cast<Pack<T, V>*>(shared_memory));
  tile.size = active ? packs : 0u;
  tile.load(x, at, 0);
  const A pivot[1] = {Centred && active ? widen(x[at(0)].v[0]) : A(0)}, cells = A(packs) * V;
  A shift[1], delta[1], squares[1];
  const auto sum_over_team = [&](auto& v) { sum_team<Mapping == WARP>(v, lanes); };
  compute_statistics<Centred, V>(tile, cells, pivot, sum_over_team, shift, delta, squares);
  const A var = squares[0] / cells;
  const Moments<A> m{shift[0], delta[0], A(1) / sqrt(var + A(eps))};
  if (active && tile.lane == 0)
    STATS_WRITER(row, double(packs) * V, double(m.shift) + double(m.delta), double(var), double(m.rstd));
  RowScaleShift<T, V, ParameterMode> apply_scale_shift(gammas, betas, flags, row, length, period, channel_packs, m);
  tile.each([&](unsigned j, const auto& pack) { y[at(j)] = apply_scale_shift(j, pack); });
}

// Mean and squared deviations of each part of a row. One part a block, in tiles that fit its registers.
template <typename T, int V, int R, typename I, bool Centred>
__global__ void __launch_bounds__(512, 1) norm_moments(const Pack<T, V>* __restrict__ x, Pair* __restrict__ partial,
    unsigned rows, unsigned segments, unsigned length, unsigned parts, unsigned first) {
  using A = typename Sum<T>::type;
  const unsigned packs = segments * length, part_size = (packs + parts - 1) / parts, tile_packs = R * blockDim.x;
  const unsigned row = first + blockIdx.x / parts, part = blockIdx.x % parts, begin = part * part_size;
  const unsigned size = min_unsigned(part_size, packs - begin);
  const RowIndex<I> at{rows, row, length};
  const A pivot[1] = {widen(x[at(begin)].v[0])};
  RowTile<T, V, R, false> tile(threadIdx.x, blockDim.x);
  double mean = 0.0, squares = 0.0, cells = 0.0;
  for (unsigned done = 0; done < size; done += tile_packs) {
    tile.size = min_unsigned(tile_packs, size - done);
    tile.load(x, at, begin + done);
    A shift[1], delta[1], more[1];
    compute_statistics<Centred, V>(tile, A(tile.size) * V, pivot, [](auto& v) { sum_block(v); }, shift, delta, more);
    if (threadIdx.x == 0) {  // Chan's formula for two
      const double count = double(tile.size) * V, deviation = double(shift[0]) + double(delta[0]) - mean;
      cells += count;
      mean += deviation * (count / cells);
      squares += double(more[0]) + deviation * deviation * count * ((cells - count) / cells);
    }
  }
  if (threadIdx.x == 0) partial[I(row) * parts + part] = {mean, squares};
}

// y from known statistics: those of norm_moments' parts, or (UseRunningStats) the running ones. One part of a row a block.
template <typename T, int V, typename I, int ParameterMode, bool UseRunningStats>
__global__ void __launch_bounds__(512, 2) norm_apply(
    ARRAYS, const Pair* __restrict__ partial, STATS_PARAMS, NUMBERS, unsigned moment_parts, unsigned parts, unsigned first) {
  using A = typename Sum<T>::type;
  __shared__ Moments<A> shared_statistics[1];
  const unsigned packs = segments * length, part_size = (packs + parts - 1) / parts;
  const unsigned row = first + blockIdx.x / parts, part = blockIdx.x % parts, begin = part * part_size;
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
  const RowIndex<I> at{rows, row, length};
  RowScaleShift<T, V, ParameterMode> apply_scale_shift(
      gammas, betas, flags, row, length, period, channel_packs, shared_statistics[0]);
  const unsigned end = min_unsigned(begin + part_size, packs);
#pragma unroll 4
  for (unsigned j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const Pack<T, V> pack = x[at(j)];  // a copy: by reference its values are loaded one by one
    y[at(j)] = apply_scale_shift(j, pack);
  }
}
