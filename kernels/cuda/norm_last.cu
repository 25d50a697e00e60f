// norm_last.cu - the forward of batch, instance and group norm where channels come last: statistics go down columns.
//
//   y = (x - mean) * rstd * gamma + beta,    rstd = 1 / sqrt(var + eps)
//
// Layout    contiguous (samples, depth, columns) packs of V channels on pack boundaries. Batch norm has one sample, whose
//           depth is all cells of a channel; in instance and group norm each sample has statistics of its own.
// Types     T float, __half, __nv_bfloat16 with sums and parameters in float, or double with double. mean and rstd are
//           stored as double, running statistics have any floating dtype. I (offsets) unsigned below 2**31 elements, else
//           unsigned long long.
// NaN       what shares statistics with one, or with an infinity, becomes NaN, and so do these.
// Thread    packs of one column (columns.cuh), held in registers, then in shared memory.
// Ways      last_forward: all of a column in one block; norm_grid.cu has columns in several. Other arrays, and groups:
//           last_moments (a part of a column), last_finish (a warp for each channel or group), last_apply, which reads x
//           again. Given statistics: last_finish, last_apply.
// Bytes     2 T an element, read once and written once; otherwise 3 T, unless x is still in the L2 cache.
// Source    Chan, Golub and LeVeque 1983 (the corrected two-pass variance, and joining parts); the library's portable code
//           (functional/rows.py).
#include "common.cuh"
#include "rows.cuh"
#include "columns.cuh"
#include "record.cuh"
#include "forward.cuh"

#define ARRAYS const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas, const void* __restrict__ betas, \
    Pack<T, V>* __restrict__ y
#define SHAPE unsigned samples, unsigned depth, unsigned columns, unsigned wide

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) last_forward(ARRAYS, KEPT, SHAPE) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char far[];
  Pack<A, V>* const room = reinterpret_cast<Pack<A, V>*>(far);
  const Slab slab(blockIdx.x, 0, 1, wide, depth, columns, true);
  const Column<I> at(slab, depth, columns);
  Held<T, V, R, true> held(slab.ty, slab.step, reinterpret_cast<Pack<T, V>*>(room + blockDim.x) + slab.tx, wide);
  held.size = slab.size;
  held.load(x, at, 0);
  A pivot[V], shift[V], delta[V], squares[V];
  first_of(x, at, slab, pivot);
  const auto total = [&](auto& v) { sum_columns(v, wide, room); };
  measure<true, V>(held, A(depth), pivot, total, shift, delta, squares);
  if (slab.size == 0) return;
  Line<A> lines[V];
  double mean = 0, var = 0;  // of the channel that this thread keeps: a column has 8 threads at least
#pragma unroll
  for (unsigned v = 0; v < V; ++v) {
    const A square = squares[v] / A(depth), rstd = A(1) / sqrt(square + A(eps));
    mean = slab.ty == v ? double(shift[v]) + double(delta[v]) : mean;
    var = slab.ty == v ? double(square) : var;
    lines[v] = line_of(gammas, betas, given, slab.column * V + v, Moments<A>{shift[v], delta[v], rstd});
  }
  if (slab.ty < V)  // once: unrolled over the channels this takes compilers minutes
    KEEP((I(slab.sample) * columns + slab.column) * V + slab.ty, double(depth), mean, var, double(A(1) / sqrt(A(var) + A(eps))));
  held.each([&](unsigned j, const Pack<T, V>& pack) { y[at(j)] = affine(lines, pack); });
}

// Of each channel in each part of the depth: its mean, and the squares about it. A thread measures its values from the
// part's first row, so that float32 will do, and joins them R at a time (Chan's formula).
template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 2) last_moments(const Pack<T, V>* __restrict__ x, Pair* __restrict__ partial, SHAPE,
    unsigned parts) {
  using A = typename Sum<T>::type;
  __shared__ Pack<A, V> room[256];
  const Slab slab(blockIdx.x / parts, blockIdx.x % parts, parts, wide, depth, columns, true);
  const Column<I> at(slab, depth, columns);
  A pivot[V], mean[V] = {}, squares[V] = {}, whole[V], cells = 0;
  first_of(x, at, slab, pivot);
  for (unsigned j = slab.ty; j < slab.size; j += R * slab.step) {
    const unsigned rows = least(unsigned(R), (slab.size - j + slab.step - 1) / slab.step);
    Pack<T, V> packs[R];
#pragma unroll
    for (unsigned r = 0; r < R; ++r) packs[r] = x[at(r < rows ? j + r * slab.step : j)];
    const A more = A(rows), all = cells + more, ratio = more / all, inverse = A(1) / more;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      // Chosen, not branched on: with branches compilers took minutes.
      A here = 0, spread = 0, away[R];
#pragma unroll
      for (unsigned r = 0; r < R; ++r) {
        away[r] = widen(packs[r].v[v]) - pivot[v];
        here += r < rows ? away[r] : A(0);
      }
      here *= inverse;
#pragma unroll
      for (unsigned r = 0; r < R; ++r) spread += r < rows ? (away[r] - here) * (away[r] - here) : A(0);
      const A apart = here - mean[v];
      mean[v] += apart * ratio;
      squares[v] += spread + apart * apart * (cells * ratio);
    }
    cells = all;
  }
#pragma unroll
  for (int v = 0; v < V; ++v) whole[v] = mean[v] * (cells / A(slab.size > 0 ? slab.size : 1u));
  sum_columns(whole, wide, room);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A away = mean[v] - whole[v];
    squares[v] += cells > 0 ? cells * away * away : A(0);
  }
  sum_columns(squares, wide, room);
  if (slab.ty || !slab.size) return;
#pragma unroll
  for (int v = 0; v < V; ++v)
    partial[I(blockIdx.x % parts + slab.sample * parts) * columns * V + slab.column * V + v] = {
        double(pivot[v]) + double(whole[v]), double(squares[v])};
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
__global__ void __launch_bounds__(256, 3) last_apply(ARRAYS, const double* __restrict__ means, const double* __restrict__ rstds,
    int given, SHAPE, unsigned own, unsigned parts) {
  using A = typename Sum<T>::type;
  const Slab slab(blockIdx.x / parts, blockIdx.x % parts, parts, wide, depth, columns, true);
  if (!slab.size) return;
  const Column<I> at(slab, depth, columns);
  Line<A> lines[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const unsigned channel = slab.column * V + v;
    const I row = I(slab.sample) * (columns * V / own) + channel / own;
    lines[v] = line_of(gammas, betas, given, channel, moments_of<A>(means[row], rstds[row]));
  }
#pragma unroll 4
  for (unsigned j = slab.ty; j < slab.size; j += slab.step) {
    const Pack<T, V> pack = x[at(j)];  // copied: through a reference its values are read singly
    y[at(j)] = affine(lines, pack);
  }
}
