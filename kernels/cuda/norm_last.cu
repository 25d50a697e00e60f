// norm_last.cu - the forward of batch, instance and group norm where channels come last: statistics go down columns.
//
//   y = (x - mean) * rstd * gamma + beta,    rstd = 1 / sqrt(var + eps)
//
// Layout    contiguous (samples, depth, columns) packs of V channels on pack boundaries. Batch norm has one sample, whose
//           depth is all cells of a channel; in instance and group norm each sample has statistics of its own.
// Types     T float, __half, __nv_bfloat16 with sums and parameters in float, or double with double. mean and rstd are
//           stored as double, running statistics have any floating dtype. I (offsets) unsigned below 2**31 elements, else
//           unsigned long long.
// NaN       what shares statistics with one becomes NaN.
// Thread    packs of one column (columns.cuh), held in registers, then in shared memory.
// Ways      last_forward: all of a column in one block, or in `parts` blocks of a cooperative grid that takes `turn` units
//           at a time, two grid barriers each. Other arrays, and groups: last_moments (a part of a column), last_finish (a
//           warp for each channel or group), last_apply, which reads x again. Given statistics: last_finish, last_apply.
// Bytes     2 T an element, read once and written once; otherwise 3 T, unless x is still in the L2 cache.
// Source    Chan, Golub and LeVeque 1983 (the corrected two-pass variance, and joining parts); the library's portable code
//           (functional/rows.py).
#include <cooperative_groups.h>
#include "common.cuh"
#include "record.cuh"
#include "rows.cuh"
#include "columns.cuh"

#define SHAPE unsigned samples, unsigned depth, unsigned columns, unsigned wide

// What y takes of its column: y = (x - shift) * scale + offset.
template <typename A, int V> struct Affine {
  Pack<A, V> shift, scale, offset;

  __device__ __forceinline__ void choose(const void* gammas, const void* betas, int given, unsigned channel, int v, A delta, A rstd) {
    const A gamma = given & GAMMA ? static_cast<const A*>(gammas)[channel + v] : A(1);
    const A beta = given & BETA ? static_cast<const A*>(betas)[channel + v] : A(0);
    scale.v[v] = rstd * gamma;
    offset.v[v] = beta - delta * scale.v[v];
  }
  __device__ __forceinline__ void know(const void* gammas, const void* betas, int given, unsigned channel, int v, double mean,
      double rstd) {
    shift.v[v] = A(mean);
    choose(gammas, betas, given, channel, v, A(mean - double(shift.v[v])), A(rstd));
  }
  template <typename T> __device__ __forceinline__ Pack<T, V> operator()(const Pack<T, V>& x) const {
    Pack<T, V> y;
#pragma unroll
    for (int v = 0; v < V; ++v) y.v[v] = narrow<T>((widen(x.v[v]) - shift.v[v]) * scale.v[v] + offset.v[v]);
    return y;
  }
};

template <typename T, int V, int R, typename I, int Way>
__global__ void __launch_bounds__(256, 1) last_forward(const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas,
    const void* __restrict__ betas, Pack<T, V>* __restrict__ y, Pair* partial, KEPT, SHAPE, unsigned parts, unsigned turn) {
  using A = typename Sum<T>::type;
  using P = Pack<A, V>;
  extern __shared__ __align__(32) unsigned char far[];
  P* room = reinterpret_cast<P*>(far);
  const unsigned slabs = (columns + wide - 1) / wide, part = blockIdx.x % parts, channels = columns * V;
  const unsigned share = (depth + parts - 1) / parts, cells = least(share, depth - part * share);
  Held<T, V, R, true> held;
  held.far = reinterpret_cast<Pack<T, V>*>(room + blockDim.x) + threadIdx.x % wide;
  held.pitch = wide;

  for (unsigned before = 0; before < samples * slabs; before += turn) {
    const unsigned unit = before + blockIdx.x / parts;
    const Slab slab(unit, part, parts, wide, depth, columns, unit < samples * slabs);
    const Column<I> at(slab, depth, columns);
    held.lane = slab.ty;
    held.step = slab.step;
    held.size = slab.size;
    held.load(x, at, 0);
    P pivot = all_of<A, V>(0), rough[1] = {pivot}, sum[2] = {all_of<A, V>(0), all_of<A, V>(0)};
    const A inverse = A(1) / A(cells);  // times each value: their sum could overflow
    if (slab.size > 0) {  // as in norm.cu: the rough mean is measured from one of the values
      const Pack<T, V> first = x[at(0)];
#pragma unroll
      for (int v = 0; v < V; ++v) pivot.v[v] = widen(first.v[v]);
    }
    held.each([&](unsigned, const Pack<T, V>& pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) rough[0].v[v] += (widen(pack.v[v]) - pivot.v[v]) * inverse;
    });
    sum_columns(rough, wide, room);
#pragma unroll
    for (int v = 0; v < V; ++v) rough[0].v[v] += pivot.v[v];
    held.each([&](unsigned, const Pack<T, V>& pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A away = widen(pack.v[v]) - rough[0].v[v];
        sum[0].v[v] += away;
        sum[1].v[v] += away * away;
      }
    });
    sum_columns(sum, wide, room);

    Affine<A, V> affine;
    affine.shift = rough[0];
    const I first = I(slab.sample) * channels;  // of the sample's channels
    const bool writes = slab.ty == 0 && slab.size > 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const unsigned channel = slab.column * V;
      const A delta = sum[0].v[v] / A(cells), away = sum[1].v[v] - sum[0].v[v] * delta, squares = away < 0 ? A(0) : away;
      const double mean = double(rough[0].v[v]) + double(delta);
      if constexpr (Way == GRID) {
        if (writes) partial[(I(slab.sample) * parts + part) * channels + channel + v] = {mean, double(squares)};
      } else if (slab.size > 0) {
        const A var = squares / A(cells), rstd = A(1) / sqrt(var + A(eps));
        if (writes) KEEP(first + channel + v, double(depth), mean, double(var), double(rstd));
        affine.choose(gammas, betas, given, channel, v, delta, rstd);
      }
    }
    if constexpr (Way == GRID) {
      cooperative_groups::this_grid().sync();
      const unsigned warps = blockDim.x / 32;
      for (unsigned k = blockIdx.x * warps + threadIdx.x / 32; k < turn * wide * V; k += gridDim.x * warps) {
        const unsigned other = before + k / (wide * V), channel = other % slabs * wide * V + k % (wide * V);
        if (other >= samples * slabs || channel >= channels) continue;  // whole warps
        const I row = I(other / slabs) * channels + channel;
        double mean, var;
        combine<1>(partial + I(other / slabs) * parts * channels + channel, parts, I(channels), share, depth, mean, var);
        if (threadIdx.x % 32 == 0) KEEP(row, double(depth), mean, var, 1.0 / sqrt(var + eps));
      }
      cooperative_groups::this_grid().sync();
      if (slab.size > 0)
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const I row = first + slab.column * V + v;
          affine.know(gammas, betas, given, slab.column * V, v, means[row], rstds[row]);
        }
    }
    held.each([&](unsigned j, const Pack<T, V>& pack) { y[at(j)] = affine(pack); });
  }
}

// Of each channel in each part of the depth: its mean, and the squares about it. A thread measures its values from the
// part's first row, so that float32 will do, and joins them R at a time (Chan's formula).
template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 2) last_moments(const Pack<T, V>* __restrict__ x, Pair* __restrict__ partial, SHAPE,
    unsigned parts) {
  using A = typename Sum<T>::type;
  using P = Pack<A, V>;
  __shared__ P room[256];
  const Slab slab(blockIdx.x / parts, blockIdx.x % parts, parts, wide, depth, columns, true);
  const Column<I> at(slab, depth, columns);
  P pivot = all_of<A, V>(0), mean[1] = {all_of<A, V>(0)}, squares[1] = {all_of<A, V>(0)};
  if (slab.size > 0) {
    const Pack<T, V> first = x[at(0)];
#pragma unroll
    for (int v = 0; v < V; ++v) pivot.v[v] = widen(first.v[v]);
  }
  A cells = 0;
  for (unsigned j = slab.ty; j < slab.size; j += R * slab.step) {
    Pack<T, V> packs[R];
    A more = 0;
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (j + r * slab.step < slab.size) {
        packs[r] = x[at(j + r * slab.step)];
        more += A(1);
      }
    const A all = cells + more, ratio = more / all, inverse = A(1) / more;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A here = 0, spread = 0;
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (j + r * slab.step < slab.size) here += widen(packs[r].v[v]) - pivot.v[v];
      here *= inverse;
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (j + r * slab.step < slab.size) {
          const A away = widen(packs[r].v[v]) - pivot.v[v] - here;
          spread += away * away;
        }
      const A away = here - mean[0].v[v];
      mean[0].v[v] += away * ratio;
      squares[0].v[v] += spread + away * away * (cells * ratio);
    }
    cells = all;
  }
  P whole[1];
#pragma unroll
  for (int v = 0; v < V; ++v) whole[0].v[v] = mean[0].v[v] * (cells / A(slab.size > 0 ? slab.size : 1u));
  sum_columns(whole, wide, room);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A away = mean[0].v[v] - whole[0].v[v];
    squares[0].v[v] += cells > 0 ? cells * away * away : A(0);
  }
  sum_columns(squares, wide, room);
  if (slab.ty || !slab.size) return;
#pragma unroll
  for (int v = 0; v < V; ++v)
    partial[I(blockIdx.x % parts + slab.sample * parts) * columns * V + slab.column * V + v] = {
        double(pivot.v[v]) + double(whole[0].v[v]), double(squares[0].v[v])};
}

// Mean and rstd of each group of `own` channels: from last_moments' parts, or (`Served`) from the running ones. Warp: a group.
template <typename I, bool Served>
__global__ void __launch_bounds__(128) last_finish(const Pair* __restrict__ partial, KEPT, unsigned samples, unsigned depth,
    unsigned channels, unsigned own, unsigned parts) {
  const unsigned groups = channels / own, k = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (k >= samples * groups) return;  // whole warps
  if constexpr (Served) {
    const double mean = read_any(running_mean, mean_kind, k), var = read_any(running_var, var_kind, k);
    if (lane == 0) KEEP(k, double(depth), mean, var, 1.0 / sqrt(var + eps));
    return;
  }
  const unsigned share = (depth + parts - 1) / parts;
  const Pair* first = partial + I(k / groups) * parts * channels + k % groups * own;
  const double cells = double(own) * double(depth);
  double mean[1] = {0.0}, var[1] = {0.0};
  for (unsigned i = lane; i < own * parts; i += 32) {
    const Pair part = first[I(i / own) * channels + i % own];
    mean[0] += double(least(share, depth - i / own * share)) * part.v[0];
  }
  sum_lanes(mean);
  mean[0] /= cells;
  for (unsigned i = lane; i < own * parts; i += 32) {
    const Pair part = first[I(i / own) * channels + i % own];
    const double away = part.v[0] - mean[0];
    var[0] += part.v[1] + double(least(share, depth - i / own * share)) * away * away;
  }
  sum_lanes(var);
  var[0] /= cells;
  if (lane == 0) KEEP(k, cells, mean[0], var[0], 1.0 / sqrt(var[0] + eps));
}

// y, where mean and rstd are known. Block: a slab and a part of its depth.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 3) last_apply(const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas,
    const void* __restrict__ betas, Pack<T, V>* __restrict__ y, const double* __restrict__ means,
    const double* __restrict__ rstds, int given, SHAPE, unsigned own, unsigned parts) {
  using A = typename Sum<T>::type;
  const Slab slab(blockIdx.x / parts, blockIdx.x % parts, parts, wide, depth, columns, true);
  if (!slab.size) return;
  const Column<I> at(slab, depth, columns);
  Affine<A, V> affine;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const I row = I(slab.sample) * (columns * V / own) + (slab.column * V + v) / own;
    affine.know(gammas, betas, given, slab.column * V, v, means[row], rstds[row]);
  }
#pragma unroll 4
  for (unsigned j = slab.ty; j < slab.size; j += slab.step) {
    const Pack<T, V> pack = x[at(j)];  // copied: through a reference its values are read singly
    y[at(j)] = affine(pack);
  }
}
