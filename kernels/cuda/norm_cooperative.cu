// norm_cooperative.cu - norms whose statistics groups take several blocks of a cooperative grid: each array is still read
// once.
//
// These are norm_forward (norm_forward.cu), norm_backward (norm_backward.cu, group 1), channels_last_forward
// (channels_last_norm.cu) and channels_last_backward (channels_last_norm_backward.cu) for several blocks, with the same
// equations, layouts, types and NaN rules. They have a file of their own because the header of the grid's barrier takes
// seconds to compile.
//
// Blocks    `parts` blocks work on one row (or on one range of columns), and `wave` rows are processed at a time. Each block
//           writes the statistics of its part to `partial`; then all blocks wait at a grid barrier. Every block of a row then
//           combines that row's parts. Columns are so many that each channel's parts are combined once, by one warp somewhere
//           in the grid, followed by a second barrier.
// Thread    The packs of its block's part that are its own, in registers and then in shared memory.
// Sums      Over a thread, a warp, a block, and parts; in a fixed order, no atomics.
// Bytes     forward 2 T an element, backward 3 T.
// Source    as in those files.
#include <cooperative_groups.h>
#include "common.cuh"
#include "row_reduce.cuh"
#include "column_reduce.cuh"
#include "stats_writer.cuh"
#include "scale_shift.cuh"
#include "norm_gradient.cuh"

#define FORWARD \
  const Pack<T, V>*__restrict__ x, const void *__restrict__ gammas, const void *__restrict__ betas, Pack<T, V>*__restrict__ y, \
      Pair *partial, STATS_PARAMS
#define BACKWARD \
  const Pack<T, V>*__restrict__ x, const Pack<T, V>*__restrict__ dy, const double *__restrict__ means, \
      const double *__restrict__ rstds, const void *__restrict__ gammas, Pack<T, V>*__restrict__ dx, \
      void *__restrict__ dgammas, void *__restrict__ dbetas, Pair *sums, Pair *partial, int flags
#define ROWS unsigned rows, unsigned segments, unsigned length, unsigned period
#define COLUMNS unsigned samples, unsigned depth, unsigned columns, unsigned width
#define WAVES unsigned parts, unsigned wave

// ---------------------------------------------------------------------------------------------------------------- rows
template <typename T, int V, int R, typename I, int ParameterMode, bool Centred>
__global__ void __launch_bounds__(512, 1) cooperative_forward(FORWARD, ROWS, unsigned channel_packs, WAVES) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char shared_memory[];
  __shared__ Moments<A> shared_statistics[1];
  const unsigned packs = segments * length, part_size = (packs + parts - 1) / parts, part = blockIdx.x % parts,
                 begin = part * part_size;
  RowTile<T, V, R, true> tile(threadIdx.x, blockDim.x, reinterpret_cast<Pack<T, V>*>(shared_memory));
  for (unsigned wave_start = 0; wave_start < rows; wave_start += wave) {
    const unsigned row = wave_start + blockIdx.x / parts;
    const bool active = row < rows;
    const RowIndex<I> at{rows, row, length};
    tile.size = active ? min_unsigned(part_size, packs - begin) : 0u;
    tile.load(x, at, begin);
    const A pivot[1] = {Centred && active ? widen(x[at(begin)].v[0]) : A(0)};
    A shift[1], delta[1], squares[1];
    compute_statistics<Centred, V>(tile, A(tile.size) * V, pivot, [](auto& v) { sum_block(v); }, shift, delta, squares);
    if (active && threadIdx.x == 0) partial[I(row) * parts + part] = {double(shift[0]) + double(delta[0]), double(squares[0])};
    cooperative_groups::this_grid().sync();
    if (active && threadIdx.x < 32) {
      double mean, var;
      combine_parts<V>(partial + I(row) * parts, parts, 1u, part_size, packs, mean, var);
      const double rstd = 1.0 / sqrt(var + eps);
      if (threadIdx.x == 0) shared_statistics[0] = moments_of<A>(mean, rstd);
      if (threadIdx.x == 0 && part == 0) STATS_WRITER(row, double(packs) * V, mean, var, rstd);
    }
    __syncthreads();
    RowScaleShift<T, V, ParameterMode> apply_scale_shift(
        gammas, betas, flags, row, length, period, channel_packs, shared_statistics[0]);
    tile.each([&](unsigned j, const auto& pack) { y[at(begin + j)] = apply_scale_shift(begin + j, pack); });
  }
}

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(512, 1) cooperative_backward(BACKWARD, ROWS, WAVES) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char shared_memory[];
  __shared__ Pair shared_sums[1];
  const unsigned packs = segments * length, part_size = (packs + parts - 1) / parts, part = blockIdx.x % parts,
                 begin = part * part_size;
  Pack<T, V>* const shared_packs = reinterpret_cast<Pack<T, V>*>(shared_memory);
  RowTile<T, V, R, true> x_tile(threadIdx.x, blockDim.x, shared_packs);
  RowTile<T, V, R, true> dy_tile(
      threadIdx.x, blockDim.x, shared_packs + (part_size > R * blockDim.x ? part_size - R * blockDim.x : 0u));
  for (unsigned wave_start = 0; wave_start < rows; wave_start += wave) {
    const unsigned row = wave_start + blockIdx.x / parts;
    const bool active = row < rows;
    const RowIndex<I> at{rows, row, length};
    x_tile.size = dy_tile.size = active ? min_unsigned(part_size, packs - begin) : 0u;
    x_tile.load(x, at, begin);
    dy_tile.load(dy, at, begin);
    const Moments<A> m = moments_of<A>(means[active ? row : 0u], rstds[active ? row : 0u]);
    const A shift[1] = {m.shift}, gamma[1] = {gamma_of<A>(gammas, flags, row % period)};
    A sum[2] = {0, 0};
    x_tile.each_with(
        dy_tile, [&](unsigned, const auto& x_pack, const auto& dy_pack) { add_products(sum, x_pack, dy_pack, shift); });
    sum_block(sum);
    if (active && threadIdx.x == 0) partial[I(row) * parts + part] = {double(sum[0]), double(sum[1])};
    cooperative_groups::this_grid().sync();
    if (active && threadIdx.x < 32) {
      const Pair totals = sum_parts(partial + I(row) * parts, parts, 1u);
      if (threadIdx.x == 0) shared_sums[0] = totals;
    }
    __syncthreads();
    const A sum_dy = A(shared_sums[0].v[0]), sum_dy_xhat = (A(shared_sums[0].v[1]) - m.delta * sum_dy) * m.rstd;
    if (active && part == 0 && threadIdx.x == 0) {
      if (rows > period) sums[row] = {double(sum_dy), double(sum_dy_xhat)};
      else write_gradients<A>(dgammas, dbetas, flags, row, sum_dy, sum_dy_xhat);
    }
    const NormGradient<A> gradient[1] = {{m, gamma[0] * sum_dy, gamma[0] * sum_dy_xhat, A(packs) * V}};
    x_tile.each_with(dy_tile, [&](unsigned j, const auto& x_pack, const auto& dy_pack) {
      dx[at(begin + j)] = input_gradient(gradient, gamma, x_pack, dy_pack);
    });
  }
}

// ------------------------------------------------------------------------------------------------------------- columns
// combine_channel(partial of the first part, index of the channel) for each channel of a wave's units, by one warp each.
template <int V, typename I, typename Combine>
__device__ __forceinline__ void combine_columns(
    const Pair* partial, COLUMNS, WAVES, unsigned wave_start, const Combine& combine_channel) {
  const unsigned blocks_across = (columns + width - 1) / width, channels = columns * V, warps = blockDim.x / 32;
  for (unsigned k = blockIdx.x * warps + threadIdx.x / 32; k < wave * width * V; k += gridDim.x * warps) {
    const unsigned unit = wave_start + k / (width * V), channel = unit % blocks_across * width * V + k % (width * V);
    if (unit >= samples * blocks_across || channel >= channels) continue;  // whole warps
    combine_channel(
        partial + I(unit / blocks_across) * parts * channels + channel, I(unit / blocks_across) * channels + channel);
  }
}

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) cooperative_channels_last_forward(FORWARD, COLUMNS, WAVES) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char shared_memory[];
  Pack<A, V>* const workspace = reinterpret_cast<Pack<A, V>*>(shared_memory);
  const unsigned part = blockIdx.x % parts, part_size = (depth + parts - 1) / parts, channels = columns * V;
  const unsigned units = samples * ((columns + width - 1) / width), tx = threadIdx.x % width;
  RowTile<T, V, R, true> tile(
      threadIdx.x / width, blockDim.x / width, reinterpret_cast<Pack<T, V>*>(workspace + blockDim.x) + tx, width);
  for (unsigned wave_start = 0; wave_start < units; wave_start += wave) {
    const unsigned unit = wave_start + blockIdx.x / parts;
    const ColumnBlock block(unit, part, parts, width, depth, columns, unit < units);
    const ColumnIndex<I> at(block, depth, columns);
    tile.size = block.size;
    tile.load(x, at, 0);
    A pivot[V], shift[V], delta[V], squares[V];
    load_pivot(x, at, block, pivot);
    const auto sum_over_team = [&](auto& v) { sum_columns(v, width, workspace); };
    compute_statistics<true, V>(
        tile, A(min_unsigned(part_size, depth - part * part_size)), pivot, sum_over_team, shift, delta, squares);
    if (block.ty == 0 && block.size > 0)
#pragma unroll
      for (int v = 0; v < V; ++v)
        partial[(I(block.sample) * parts + part) * channels + block.column * V + v] = {
            double(shift[v]) + double(delta[v]), double(squares[v])};
    cooperative_groups::this_grid().sync();
    combine_columns<V, I>(partial, samples, depth, columns, width, parts, wave, wave_start, [&](const Pair* first, I row) {
      double mean, var;
      combine_parts<1>(first, parts, I(channels), part_size, depth, mean, var);
      if (threadIdx.x % 32 == 0) STATS_WRITER(row, double(depth), mean, var, 1.0 / sqrt(var + eps));
    });
    cooperative_groups::this_grid().sync();
    if (block.size == 0) continue;
    ScaleShift<A> scale_shifts[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const unsigned channel = block.column * V + v;
      const I row = I(block.sample) * channels + channel;
      scale_shifts[v] = scale_shift_of(gammas, betas, flags, channel, moments_of<A>(means[row], rstds[row]));
    }
    tile.each([&](unsigned j, const auto& pack) { y[at(j)] = apply_scale_shift(scale_shifts, pack); });
  }
}

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) cooperative_channels_last_backward(BACKWARD, COLUMNS, WAVES) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char shared_memory[];
  Pack<A, V>* const workspace = reinterpret_cast<Pack<A, V>*>(shared_memory);
  const unsigned part = blockIdx.x % parts, part_size = (depth + parts - 1) / parts, channels = columns * V;
  const unsigned units = samples * ((columns + width - 1) / width), ty = threadIdx.x / width, step = blockDim.x / width;
  Pack<T, V>* const shared_packs = reinterpret_cast<Pack<T, V>*>(workspace + blockDim.x) + threadIdx.x % width;
  RowTile<T, V, R, true> x_tile(ty, step, shared_packs, width),
      dy_tile(ty, step, shared_packs + (part_size > R * step ? part_size - R * step : 0u) * width, width);
  for (unsigned wave_start = 0; wave_start < units; wave_start += wave) {
    const unsigned unit = wave_start + blockIdx.x / parts;
    const ColumnBlock block(unit, part, parts, width, depth, columns, unit < units);
    const ColumnIndex<I> at(block, depth, columns);
    x_tile.size = dy_tile.size = block.size;
    x_tile.load(x, at, 0);
    dy_tile.load(dy, at, 0);
    const I row = I(block.sample) * channels + block.column * V;
    A shift[V], sum[2 * V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = block.size > 0 ? A(means[row + v]) : A(0);
    x_tile.each_with(
        dy_tile, [&](unsigned, const auto& x_pack, const auto& dy_pack) { add_products(sum, x_pack, dy_pack, shift); });
    sum_columns(sum, width, workspace);
    if (ty == 0 && block.size > 0)
#pragma unroll
      for (int v = 0; v < V; ++v)
        partial[(I(block.sample) * parts + part) * channels + block.column * V + v] =
            finish_sums(double(sum[v]), double(sum[V + v]), double(shift[v]), means[row + v], rstds[row + v]);
    cooperative_groups::this_grid().sync();
    combine_columns<V, I>(
        partial, samples, depth, columns, width, parts, wave, wave_start, [&](const Pair* first, I row_index) {
          const Pair totals = sum_parts(first, parts, I(channels));
          if (threadIdx.x % 32 == 0) write_sums<A>(dgammas, dbetas, sums, flags, samples, row_index, totals);
        });
    cooperative_groups::this_grid().sync();
    if (block.size == 0) continue;
    NormGradient<A> gradient[V];
    A gamma[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      gamma[v] = gamma_of<A>(gammas, flags, block.column * V + v);
      const A sum_gamma_dy = gamma[v] * A(sums[row + v].v[0]), sum_gamma_dy_xhat = gamma[v] * A(sums[row + v].v[1]);
      gradient[v] = {moments_of<A>(means[row + v], rstds[row + v]), sum_gamma_dy, sum_gamma_dy_xhat, A(depth)};
    }
    x_tile.each_with(dy_tile, [&](unsigned j, const auto& x_pack, const auto& dy_pack) {
      dx[at(j)] = input_gradient(gradient, gamma, x_pack, dy_pack);
    });
  }
}
