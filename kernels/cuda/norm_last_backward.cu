// norm_last_backward.cu - dx, dgamma and dbeta of batch, instance and group norm where channels come last.
//
//   xhat = (x - mean) * rstd    dbeta = sum(dy)    dgamma = sum(dy * xhat)
//   dx = rstd * (gamma * dy - sum(gamma * dy) / n - xhat * sum(gamma * dy * xhat) / n), the sums over the n cells that
//   share mean and rstd; dx = rstd * gamma * dy where these were given (batch norm in evaluation)
//
// Layout    contiguous (samples, depth, columns) packs of V channels on pack boundaries; `own` neighbouring channels of a
//           sample share statistics. Batch norm has one sample, whose depth is all cells of a channel.
// Types     T float, __half, __nv_bfloat16 with parameters and their gradients in float, or double with double. mean and
//           rstd are double. I (offsets) unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through the cells that share statistics, as the equations say.
// Thread    packs of one column (columns.cuh), x and dy held in registers, then in shared memory.
// Ways      last_backward (own 1): all of a column in one block; norm_grid.cu has columns in several. Other arrays:
//           last_sums (a part of a column), last_backward_finish (a warp for each channel or group), last_backward_apply,
//           which reads x and dy again. Given statistics:
//           last_sums, which then writes dx, and last_backward_finish. With several samples, norm_gradients of
//           norm_backward.cu adds up the channels' `sums`.
// Sums      float within a block, double beyond; in a fixed order (rows.cuh), no atomics.
// Bytes     3 T an element, each array once; otherwise 5 T, unless x and dy are still in the L2 cache.
// Source    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3; Wu and He 2018 (arXiv:1803.08494).
#include "common.cuh"
#include "rows.cuh"
#include "columns.cuh"
#include "backward.cuh"

#define ARRAYS const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means, \
    const double* __restrict__ rstds, const void* __restrict__ gammas, Pack<T, V>* __restrict__ dx
#define GRADIENTS void* __restrict__ dgammas, void* __restrict__ dbetas, Pair* __restrict__ sums
#define SHAPE int given, unsigned samples, unsigned depth, unsigned columns, unsigned wide

template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(256, 1) last_backward(ARRAYS, GRADIENTS, SHAPE) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char far[];
  Pack<A, V>* const room = reinterpret_cast<Pack<A, V>*>(far);
  const Slab slab(blockIdx.x, 0, 1, wide, depth, columns, true);
  const Column<I> at(slab, depth, columns);
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(room + blockDim.x) + slab.tx;
  Held<T, V, R, true> hx(slab.ty, slab.step, kept, wide);
  Held<T, V, R, true> hg(slab.ty, slab.step, kept + (depth > R * slab.step ? depth - R * slab.step : 0u) * wide, wide);
  hx.size = hg.size = slab.size;
  hx.load(x, at, 0);
  hg.load(dy, at, 0);
  const I row = I(slab.sample) * columns * V + slab.column * V;
  A shift[V], sum[2 * V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) shift[v] = slab.size > 0 ? A(means[row + v]) : A(0);
  hx.each_with(hg, [&](unsigned, const Pack<T, V>& px, const Pack<T, V>& pg) { add(sum, px, pg, shift); });
  sum_columns(sum, wide, room);
  if (slab.size == 0) return;
  Slope<A> slope[V];
  A gamma[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const Moments<A> m = moments_of<A>(means[row + v], rstds[row + v]);
    const A along = (sum[V + v] - m.delta * sum[v]) * m.rstd;
    if (slab.ty == 0) record<A>(dgammas, dbetas, sums, given, samples, row + v, {double(sum[v]), double(along)});
    gamma[v] = gamma_of<A>(gammas, given, slab.column * V + v);
    slope[v] = {m, gamma[v] * sum[v], gamma[v] * along, A(depth)};
  }
  hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) { dx[at(j)] = slopes(slope, gamma, px, pg); });
}

// Of each channel in each part of the depth: the sums of dy and of dy * xhat; `Served`: and dx of given statistics.
template <typename T, int V, typename I, bool Served>
__global__ void __launch_bounds__(256, 2) last_sums(ARRAYS, Pair* __restrict__ partial, SHAPE, unsigned own, unsigned parts) {
  using A = typename Sum<T>::type;
  __shared__ Pack<A, V> room[256];
  constexpr int K = V > 4 ? 3 : 4;
  const Slab slab(blockIdx.x / parts, blockIdx.x % parts, parts, wide, depth, columns, true);
  const Column<I> at(slab, depth, columns);
  const I row = I(slab.sample) * (columns * V / own);
  A shift[V] = {}, scale[V] = {}, total[2 * V] = {};
  if (slab.size > 0)
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const unsigned channel = slab.column * V + v;
      shift[v] = A(means[row + channel / own]);
      if (Served) scale[v] = A(rstds[row + channel / own]) * gamma_of<A>(gammas, given, channel);
    }
  for (unsigned j = slab.ty; j < slab.size; j += K * slab.step) {
    A sum[2 * V] = {};
    in_flight<K>(x, dy, !Served || given & X, at, j, slab.step, slab.size,
        [&](unsigned i, const Pack<T, V>& px, const Pack<T, V>& pg) {
          add(sum, px, pg, shift);
          if constexpr (Served) dx[at(i)] = scaled(scale, pg);
        });
#pragma unroll
    for (int i = 0; i < 2 * V; ++i) total[i] += sum[i];
  }
  sum_columns(total, wide, room);
  if (slab.ty || !slab.size) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const I stat = row + (slab.column * V + v) / own;
    partial[I(slab.sample * parts + blockIdx.x % parts) * columns * V + slab.column * V + v] =
        known(double(total[v]), double(total[V + v]), double(shift[v]), means[stat], rstds[stat]);
  }
}

// The channels' sums from last_sums' parts, and in `told` those of gamma * dy over each group. Warp: a group.
template <typename A, typename I>
__global__ void __launch_bounds__(128, 1) last_backward_finish(const Pair* __restrict__ partial, const void* __restrict__ gammas,
    GRADIENTS, Pair* __restrict__ told, int given, unsigned samples, unsigned channels, unsigned own, unsigned parts) {
  const unsigned groups = channels / own, k = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (k >= samples * groups) return;  // whole warps
  Pair group = {0.0, 0.0};
  for (unsigned c = k % groups * own; c < (k % groups + 1) * own; ++c) {
    const Pair all = add_parts(partial + I(k / groups) * parts * channels + c, parts, I(channels));
    const double gamma = double(gamma_of<A>(gammas, given, c));
    group.v[0] += gamma * all.v[0];
    group.v[1] += gamma * all.v[1];
    if (threadIdx.x % 32 == 0) record<A>(dgammas, dbetas, sums, given, samples, I(k / groups) * channels + c, all);
  }
  if (threadIdx.x % 32 == 0) told[k] = group;
}

// dx, where the groups' sums are known. Block: a slab and a part of its depth.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 2) last_backward_apply(ARRAYS, const Pair* __restrict__ told, SHAPE, unsigned own,
    unsigned parts) {
  using A = typename Sum<T>::type;
  const Slab slab(blockIdx.x / parts, blockIdx.x % parts, parts, wide, depth, columns, true);
  if (!slab.size) return;
  const Column<I> at(slab, depth, columns);
  Slope<A> slope[V];
  A gamma[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const unsigned channel = slab.column * V + v;
    const I stat = I(slab.sample) * (columns * V / own) + channel / own;
    gamma[v] = gamma_of<A>(gammas, given, channel);
    slope[v] = {moments_of<A>(means[stat], rstds[stat]), A(told[stat].v[0]), A(told[stat].v[1]), A(own) * A(depth)};
  }
#pragma unroll 2
  for (unsigned j = slab.ty; j < slab.size; j += slab.step) {
    const Pack<T, V> px = x[at(j)], pg = dy[at(j)];  // copied: through a reference their values are read singly
    dx[at(j)] = slopes(slope, gamma, px, pg);
  }
}
