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
// Ways      last_backward (own 1): all of a column in one block, or in `parts` blocks of a cooperative grid that takes
//           `turn` units at a time, two grid barriers each. Other arrays: last_sums (a part of a column), last_backward_finish
//           (a warp for each channel or group), last_backward_apply, which reads x and dy again. Given statistics:
//           last_sums, which then writes dx, and last_backward_finish. With several samples, norm_gradients of
//           norm_backward.cu adds up the channels' `sums`.
// Sums      float within a block, double beyond; in a fixed order (rows.cuh), no atomics.
// Bytes     3 T an element, each array once; otherwise 5 T, unless x and dy are still in the L2 cache.
// Source    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3; Wu and He 2018 (arXiv:1803.08494).
#include <cooperative_groups.h>
#include "common.cuh"
#include "rows.cuh"
#include "columns.cuh"

enum Given { GAMMA = 1, DGAMMA = 2, DBETA = 4, X = 8 };  // bits: arrays that are there

#define ARRAYS const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means, \
    const double* __restrict__ rstds, const void* __restrict__ gammas, Pack<T, V>* __restrict__ dx
#define GRADIENTS void* __restrict__ dgammas, void* __restrict__ dbetas, Pair* sums
#define SHAPE int given, unsigned samples, unsigned depth, unsigned columns, unsigned wide

template <typename A> __device__ __forceinline__ A gamma_of(const void* gammas, int given, unsigned channel) {
  return given & GAMMA ? static_cast<const A*>(gammas)[channel] : A(1);
}

// Sums of a channel of a sample: to be added to other samples', or to its gradients. One thread's business.
template <typename A> __device__ __forceinline__ void record(void* dgammas, void* dbetas, Pair* sums, int given, unsigned samples,
    long long row, double plain, double along) {
  sums[row] = {plain, along};
  if (samples == 1 && given & DGAMMA) static_cast<A*>(dgammas)[row] = A(along);
  if (samples == 1 && given & DBETA) static_cast<A*>(dbetas)[row] = A(plain);
}

// dx of a column: dx = dy * scale - (x - shift) * slope - offset.
template <typename A, int V> struct Slope {
  Pack<A, V> shift, scale, slope, offset;

  // plain, along: the sums of gamma * dy and of that times xhat over the n cells that share statistics
  __device__ __forceinline__ void know(int v, double mean, double rstd, A gamma, double plain, double along, double n) {
    shift.v[v] = A(mean);
    scale.v[v] = A(rstd) * gamma;
    slope.v[v] = A(rstd) * A(rstd) * A(along / n);
    offset.v[v] = A(rstd) * A(plain / n) - A(mean - double(shift.v[v])) * slope.v[v];
  }
  template <typename T>
  __device__ __forceinline__ Pack<T, V> operator()(const Pack<T, V>& x, const Pack<T, V>& dy) const {
    Pack<T, V> dx;
#pragma unroll
    for (int v = 0; v < V; ++v)
      dx.v[v] = narrow<T>(widen(dy.v[v]) * scale.v[v] - ((widen(x.v[v]) - shift.v[v]) * slope.v[v] + offset.v[v]));
    return dx;
  }
};

// sum[0] += dy, sum[1] += dy * (x - shift)
template <typename A, typename T, int V>
__device__ __forceinline__ void add(Pack<A, V> (&sum)[2], const Pack<T, V>& x, const Pack<T, V>& dy, const Pack<A, V>& shift) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sum[0].v[v] += widen(dy.v[v]);
    sum[1].v[v] += widen(dy.v[v]) * (widen(x.v[v]) - shift.v[v]);
  }
}

template <typename T, int V, int R, typename I, int Way>
__global__ void __launch_bounds__(256, 1) last_backward(ARRAYS, GRADIENTS, Pair* partial, SHAPE, unsigned parts, unsigned turn) {
  using A = typename Sum<T>::type;
  using P = Pack<A, V>;
  extern __shared__ __align__(32) unsigned char far[];
  P* room = reinterpret_cast<P*>(far);
  const unsigned slabs = (columns + wide - 1) / wide, part = blockIdx.x % parts, channels = columns * V;
  const unsigned share = (depth + parts - 1) / parts, step = blockDim.x / wide;
  Held<T, V, R, true> hx, hg;
  hx.far = reinterpret_cast<Pack<T, V>*>(room + blockDim.x) + threadIdx.x % wide;
  hg.far = hx.far + (share > R * step ? share - R * step : 0u) * wide;
  hx.pitch = hg.pitch = wide;

  for (unsigned before = 0; before < samples * slabs; before += turn) {
    const unsigned unit = before + blockIdx.x / parts;
    const Slab slab(unit, part, parts, wide, depth, columns, unit < samples * slabs);
    const Column<I> at(slab, depth, columns);
    hx.lane = hg.lane = slab.ty;
    hx.step = hg.step = step;
    hx.size = hg.size = slab.size;
    hx.load(x, at, 0);
    hg.load(dy, at, 0);
    const I row = I(slab.sample) * channels + slab.column * V;
    P shift = all_of<A, V>(0), sum[2] = {all_of<A, V>(0), all_of<A, V>(0)};
    if (slab.size > 0)
#pragma unroll
      for (int v = 0; v < V; ++v) shift.v[v] = A(means[row + v]);
    hx.each_with(hg, [&](unsigned, const Pack<T, V>& px, const Pack<T, V>& pg) { add(sum, px, pg, shift); });
    sum_columns(sum, wide, room);
    if (slab.ty == 0 && slab.size > 0)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const double plain = double(sum[0].v[v]), mean = means[row + v];
        const double along = (double(sum[1].v[v]) - (mean - double(shift.v[v])) * plain) * rstds[row + v];
        if constexpr (Way == GRID) partial[(I(slab.sample) * parts + part) * channels + slab.column * V + v] = {plain, along};
        else record<A>(dgammas, dbetas, sums, given, samples, row + v, plain, along);
      }
    if constexpr (Way == GRID) {
      cooperative_groups::this_grid().sync();
      const unsigned warps = blockDim.x / 32;
      for (unsigned k = blockIdx.x * warps + threadIdx.x / 32; k < turn * wide * V; k += gridDim.x * warps) {
        const unsigned other = before + k / (wide * V), channel = other % slabs * wide * V + k % (wide * V);
        if (other >= samples * slabs || channel >= channels) continue;  // whole warps
        double all[2] = {0.0, 0.0};
        for (unsigned i = threadIdx.x % 32; i < parts; i += 32) {
          const Pair one = partial[(I(other / slabs) * parts + i) * channels + channel];
          all[0] += one.v[0];
          all[1] += one.v[1];
        }
        sum_lanes(all);
        const I there = I(other / slabs) * channels + channel;
        if (threadIdx.x % 32 == 0) record<A>(dgammas, dbetas, sums, given, samples, there, all[0], all[1]);
      }
      cooperative_groups::this_grid().sync();
    } else {
      __syncthreads();  // sums, from this block's first row of threads
    }
    Slope<A, V> slope;
    if (slab.size > 0)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A gamma = gamma_of<A>(gammas, given, slab.column * V + v);
        const Pair all = sums[row + v];
        slope.know(v, means[row + v], rstds[row + v], gamma, double(gamma) * all.v[0], double(gamma) * all.v[1], double(depth));
      }
    hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) { dx[at(j)] = slope(px, pg); });
  }
}

// Of each channel in each part of the depth: the sums of dy and of dy * xhat; `Served`: and dx of given statistics.
template <typename T, int V, typename I, bool Served>
__global__ void __launch_bounds__(256, 2) last_sums(ARRAYS, Pair* __restrict__ partial, SHAPE, unsigned own, unsigned parts) {
  using A = typename Sum<T>::type;
  using P = Pack<A, V>;
  __shared__ P room[256];
  constexpr int N = V > 4 ? 3 : 4;  // packs of each array in flight
  const Slab slab(blockIdx.x / parts, blockIdx.x % parts, parts, wide, depth, columns, true);
  const Column<I> at(slab, depth, columns);
  const I row = I(slab.sample) * (columns * V / own);
  P shift = all_of<A, V>(0), scale = all_of<A, V>(0), total[2] = {all_of<A, V>(0), all_of<A, V>(0)};
  if (slab.size > 0)
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const unsigned channel = slab.column * V + v;
      shift.v[v] = A(means[row + channel / own]);
      if (Served) scale.v[v] = A(rstds[row + channel / own]) * gamma_of<A>(gammas, given, channel);
    }
  for (unsigned j = slab.ty; j < slab.size; j += N * slab.step) {
    Pack<T, V> px[N], pg[N];
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * slab.step < slab.size) {
        pg[k] = dy[at(j + k * slab.step)];
        if (!Served || given & X) px[k] = x[at(j + k * slab.step)];
        else px[k] = pg[k];
      }
    P sum[2] = {all_of<A, V>(0), all_of<A, V>(0)};
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * slab.step < slab.size) {
        add(sum, px[k], pg[k], shift);
        if constexpr (Served) {
          Pack<T, V> out;
#pragma unroll
          for (int v = 0; v < V; ++v) out.v[v] = narrow<T>(widen(pg[k].v[v]) * scale.v[v]);
          dx[at(j + k * slab.step)] = out;
        }
      }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      total[0].v[v] += sum[0].v[v];
      total[1].v[v] += sum[1].v[v];
    }
  }
  sum_columns(total, wide, room);
  if (slab.ty || !slab.size) return;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const I stat = row + (slab.column * V + v) / own;
    const double plain = double(total[0].v[v]), away = means[stat] - double(shift.v[v]);
    partial[I(slab.sample * parts + blockIdx.x % parts) * columns * V + slab.column * V + v] = {
        plain, (double(total[1].v[v]) - away * plain) * rstds[stat]};
  }
}

// The channels' sums from last_sums' parts, and in `told` those of gamma * dy over each group. Warp: a group.
template <typename A, typename I>
__global__ void __launch_bounds__(128) last_backward_finish(const Pair* __restrict__ partial, const void* __restrict__ gammas,
    GRADIENTS, Pair* __restrict__ told, int given, unsigned samples, unsigned channels, unsigned own, unsigned parts) {
  const unsigned groups = channels / own, k = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (k >= samples * groups) return;  // whole warps
  Pair group = {0.0, 0.0};
  for (unsigned c = k % groups * own; c < (k % groups + 1) * own; ++c) {
    double all[2] = {0.0, 0.0};
    for (unsigned i = threadIdx.x % 32; i < parts; i += 32) {
      const Pair one = partial[(I(k / groups) * parts + i) * channels + c];
      all[0] += one.v[0];
      all[1] += one.v[1];
    }
    sum_lanes(all);
    const double gamma = double(gamma_of<A>(gammas, given, c));
    group.v[0] += gamma * all[0];
    group.v[1] += gamma * all[1];
    if (threadIdx.x % 32 == 0) record<A>(dgammas, dbetas, sums, given, samples, I(k / groups) * channels + c, all[0], all[1]);
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
  Slope<A, V> slope;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const unsigned channel = slab.column * V + v;
    const I stat = I(slab.sample) * (columns * V / own) + channel / own;
    const Pair all = told[stat];
    slope.know(v, means[stat], rstds[stat], gamma_of<A>(gammas, given, channel), all.v[0], all.v[1], double(own) * double(depth));
  }
#pragma unroll 2
  for (unsigned j = slab.ty; j < slab.size; j += slab.step) {
    const Pack<T, V> px = x[at(j)], pg = dy[at(j)];  // copied: through a reference their values are read singly
    dx[at(j)] = slope(px, pg);
  }
}
