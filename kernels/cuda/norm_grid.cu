// norm_grid.cu - norms whose statistics take several blocks of a cooperative grid: each array is still read once.
//
// Here are norm_forward (norm.cu), norm_backward (norm_backward.cu, group 1), last_forward (norm_last.cu) and last_backward
// (norm_last_backward.cu) again, with the same equations, layouts, types and NaN rules; apart from them, because the header
// of the grid's barrier takes seconds to compile.
//
// Ways      `parts` blocks hold a row (or a slab of columns), `turn` of these are dealt with at a time. All blocks of a turn
//           meet once they have left what they know of their part in `partial`. A row's blocks each join its parts; columns
//           are so many that each channel's parts are joined once, by a warp somewhere in the grid, and all meet again.
// Thread    the packs of its block's part that fall to it, held in registers, then in shared memory.
// Sums      thread, warp, block, parts; in a fixed order, no atomics.
// Bytes     forward 2 T an element, backward 3 T.
// Source    as there.
#include <cooperative_groups.h>
#include "common.cuh"
#include "rows.cuh"
#include "columns.cuh"
#include "record.cuh"
#include "forward.cuh"
#include "backward.cuh"

#define FORWARD const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas, const void* __restrict__ betas, \
    Pack<T, V>* __restrict__ y, Pair* partial, KEPT
#define BACKWARD const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means, \
    const double* __restrict__ rstds, const void* __restrict__ gammas, Pack<T, V>* __restrict__ dx, \
    void* __restrict__ dgammas, void* __restrict__ dbetas, Pair* sums, Pair* partial, int given
#define ROWS unsigned rows, unsigned segments, unsigned length, unsigned period
#define COLUMNS unsigned samples, unsigned depth, unsigned columns, unsigned wide
#define TURNS unsigned parts, unsigned turn

// ---------------------------------------------------------------------------------------------------------------- rows
template <typename T, int V, int R, typename I, int Own, bool Centred>
__global__ void __launch_bounds__(512, 1) grid_forward(FORWARD, ROWS, unsigned own, TURNS) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char far[];
  __shared__ Moments<A> told[1];
  const unsigned packs = segments * length, share = (packs + parts - 1) / parts, part = blockIdx.x % parts, begin = part * share;
  Held<T, V, R, true> held(threadIdx.x, blockDim.x, reinterpret_cast<Pack<T, V>*>(far));
  for (unsigned before = 0; before < rows; before += turn) {
    const unsigned row = before + blockIdx.x / parts;
    const bool here = row < rows;
    const Row<I> at{rows, row, length};
    held.size = here ? least(share, packs - begin) : 0u;
    held.load(x, at, begin);
    const A pivot[1] = {Centred && here ? widen(x[at(begin)].v[0]) : A(0)};
    A shift[1], delta[1], squares[1];
    measure<Centred, V>(held, A(held.size) * V, pivot, [](auto& v) { sum_block(v); }, shift, delta, squares);
    if (here && threadIdx.x == 0) partial[I(row) * parts + part] = {double(shift[0]) + double(delta[0]), double(squares[0])};
    cooperative_groups::this_grid().sync();
    if (here && threadIdx.x < 32) {
      double mean, var;
      combine<V>(partial + I(row) * parts, parts, 1u, share, packs, mean, var);
      const double rstd = 1.0 / sqrt(var + eps);
      if (threadIdx.x == 0) told[0] = moments_of<A>(mean, rstd);
      if (threadIdx.x == 0 && part == 0) KEEP(row, double(packs) * V, mean, var, rstd);
    }
    __syncthreads();
    Affine<T, V, Own> affine(gammas, betas, given, row, length, period, own, told[0]);
    held.each([&](unsigned j, const Pack<T, V>& pack) { y[at(begin + j)] = affine(begin + j, pack); });
  }
}

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(512, 1) grid_backward(BACKWARD, ROWS, TURNS) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char far[];
  __shared__ Pair told[1];
  const unsigned packs = segments * length, share = (packs + parts - 1) / parts, part = blockIdx.x % parts, begin = part * share;
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(far);
  Held<T, V, R, true> hx(threadIdx.x, blockDim.x, kept);
  Held<T, V, R, true> hg(threadIdx.x, blockDim.x, kept + (share > R * blockDim.x ? share - R * blockDim.x : 0u));
  for (unsigned before = 0; before < rows; before += turn) {
    const unsigned row = before + blockIdx.x / parts;
    const bool here = row < rows;
    const Row<I> at{rows, row, length};
    hx.size = hg.size = here ? least(share, packs - begin) : 0u;
    hx.load(x, at, begin);
    hg.load(dy, at, begin);
    const Moments<A> m = moments_of<A>(means[here ? row : 0u], rstds[here ? row : 0u]);
    const A shift[1] = {m.shift}, gamma[1] = {gamma_of<A>(gammas, given, row % period)};
    A sum[2] = {0, 0};
    hx.each_with(hg, [&](unsigned, const Pack<T, V>& px, const Pack<T, V>& pg) { add(sum, px, pg, shift); });
    sum_block(sum);
    if (here && threadIdx.x == 0) partial[I(row) * parts + part] = {double(sum[0]), double(sum[1])};
    cooperative_groups::this_grid().sync();
    if (here && threadIdx.x < 32) {
      const Pair all = add_parts(partial + I(row) * parts, parts, 1u);
      if (threadIdx.x == 0) told[0] = all;
    }
    __syncthreads();
    const A plain = A(told[0].v[0]), along = (A(told[0].v[1]) - m.delta * plain) * m.rstd;
    if (here && part == 0 && threadIdx.x == 0) {
      if (rows > period) sums[row] = {double(plain), double(along)};
      else write_gradients<A>(dgammas, dbetas, given, row, plain, along);
    }
    const Slope<A> slope[1] = {{m, gamma[0] * plain, gamma[0] * along, A(packs) * V}};
    hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) {
      dx[at(begin + j)] = slopes(slope, gamma, px, pg);
    });
  }
}

// ------------------------------------------------------------------------------------------------------------- columns
// join(partial of the first part, channel, channel of all samples) for each channel of a turn's units, by a warp each.
template <int V, typename I, typename Join>
__device__ __forceinline__ void join_columns(const Pair* partial, COLUMNS, TURNS, unsigned before, const Join& join) {
  const unsigned slabs = (columns + wide - 1) / wide, channels = columns * V, warps = blockDim.x / 32;
  for (unsigned k = blockIdx.x * warps + threadIdx.x / 32; k < turn * wide * V; k += gridDim.x * warps) {
    const unsigned unit = before + k / (wide * V), channel = unit % slabs * wide * V + k % (wide * V);
    if (unit >= samples * slabs || channel >= channels) continue;  // whole warps
    join(partial + I(unit / slabs) * parts * channels + channel, I(unit / slabs) * channels + channel);
  }
}

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) last_grid_forward(FORWARD, COLUMNS, TURNS) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char far[];
  Pack<A, V>* const room = reinterpret_cast<Pack<A, V>*>(far);
  const unsigned part = blockIdx.x % parts, share = (depth + parts - 1) / parts, channels = columns * V;
  const unsigned units = samples * ((columns + wide - 1) / wide), tx = threadIdx.x % wide;
  Held<T, V, R, true> held(threadIdx.x / wide, blockDim.x / wide, reinterpret_cast<Pack<T, V>*>(room + blockDim.x) + tx, wide);
  for (unsigned before = 0; before < units; before += turn) {
    const unsigned unit = before + blockIdx.x / parts;
    const Slab slab(unit, part, parts, wide, depth, columns, unit < units);
    const Column<I> at(slab, depth, columns);
    held.size = slab.size;
    held.load(x, at, 0);
    A pivot[V], shift[V], delta[V], squares[V];
    first_of(x, at, slab, pivot);
    const auto total = [&](auto& v) { sum_columns(v, wide, room); };
    measure<true, V>(held, A(least(share, depth - part * share)), pivot, total, shift, delta, squares);
    if (slab.ty == 0 && slab.size > 0)
#pragma unroll
      for (int v = 0; v < V; ++v)
        partial[(I(slab.sample) * parts + part) * channels + slab.column * V + v] = {
            double(shift[v]) + double(delta[v]), double(squares[v])};
    cooperative_groups::this_grid().sync();
    join_columns<V, I>(partial, samples, depth, columns, wide, parts, turn, before, [&](const Pair* first, I row) {
      double mean, var;
      combine<1>(first, parts, I(channels), share, depth, mean, var);
      if (threadIdx.x % 32 == 0) KEEP(row, double(depth), mean, var, 1.0 / sqrt(var + eps));
    });
    cooperative_groups::this_grid().sync();
    if (slab.size == 0) continue;
    Line<A> lines[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const unsigned channel = slab.column * V + v;
      const I row = I(slab.sample) * channels + channel;
      lines[v] = line_of(gammas, betas, given, channel, moments_of<A>(means[row], rstds[row]));
    }
    held.each([&](unsigned j, const Pack<T, V>& pack) { y[at(j)] = affine(lines, pack); });
  }
}

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) last_grid_backward(BACKWARD, COLUMNS, TURNS) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char far[];
  Pack<A, V>* const room = reinterpret_cast<Pack<A, V>*>(far);
  const unsigned part = blockIdx.x % parts, share = (depth + parts - 1) / parts, channels = columns * V;
  const unsigned units = samples * ((columns + wide - 1) / wide), ty = threadIdx.x / wide, step = blockDim.x / wide;
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(room + blockDim.x) + threadIdx.x % wide;
  Held<T, V, R, true> hx(ty, step, kept, wide), hg(ty, step, kept + (share > R * step ? share - R * step : 0u) * wide, wide);
  for (unsigned before = 0; before < units; before += turn) {
    const unsigned unit = before + blockIdx.x / parts;
    const Slab slab(unit, part, parts, wide, depth, columns, unit < units);
    const Column<I> at(slab, depth, columns);
    hx.size = hg.size = slab.size;
    hx.load(x, at, 0);
    hg.load(dy, at, 0);
    const I row = I(slab.sample) * channels + slab.column * V;
    A shift[V], sum[2 * V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = slab.size > 0 ? A(means[row + v]) : A(0);
    hx.each_with(hg, [&](unsigned, const Pack<T, V>& px, const Pack<T, V>& pg) { add(sum, px, pg, shift); });
    sum_columns(sum, wide, room);
    if (ty == 0 && slab.size > 0)
#pragma unroll
      for (int v = 0; v < V; ++v)
        partial[(I(slab.sample) * parts + part) * channels + slab.column * V + v] =
            known(double(sum[v]), double(sum[V + v]), double(shift[v]), means[row + v], rstds[row + v]);
    cooperative_groups::this_grid().sync();
    join_columns<V, I>(partial, samples, depth, columns, wide, parts, turn, before, [&](const Pair* first, I there) {
      const Pair all = add_parts(first, parts, I(channels));
      if (threadIdx.x % 32 == 0) record<A>(dgammas, dbetas, sums, given, samples, there, all);
    });
    cooperative_groups::this_grid().sync();
    if (slab.size == 0) continue;
    Slope<A> slope[V];
    A gamma[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      gamma[v] = gamma_of<A>(gammas, given, slab.column * V + v);
      const A plain = gamma[v] * A(sums[row + v].v[0]), along = gamma[v] * A(sums[row + v].v[1]);
      slope[v] = {moments_of<A>(means[row + v], rstds[row + v]), plain, along, A(depth)};
    }
    hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) { dx[at(j)] = slopes(slope, gamma, px, pg); });
  }
}
