// norm_backward.cu - dx, dgamma and dbeta of the norms with one parameter a channel: batch, instance and group norm.
//
//   xhat = (x - mean) * rstd    dbeta = sum(dy)    dgamma = sum(dy * xhat)
//   dx = rstd * (gamma * dy - sum(gamma * dy) / n - xhat * sum(gamma * dy * xhat) / n), the sums over the n cells that
//   share mean and rstd; dx = rstd * gamma * dy where these were given (batch norm in evaluation)
//
// Layout    rows as rows.cuh has them, one channel each (of a sample, in instance and group norm): row r has parameter
//           r % period and statistics r / group. x, dy and dx in packs of V values that lie on pack boundaries.
// Types     T float, __half, __nv_bfloat16 with parameters and their gradients in float, or double with double. mean and
//           rstd are double. I (offsets) unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through the cells that share statistics, as the equations say.
// Thread    the packs of its team's row that fall to it (rows.cuh), x and dy held in registers, then in shared memory.
// Ways      norm_backward (group 1): a row in a warp or in a block; norm_grid.cu has rows in several blocks.
//           group_norm_backward: a group in a block. Other rows: norm_sums, then norm_backward_apply, which reads x and dy
//           again. Given statistics: norm_sums alone, which then writes dx. Where a channel has several rows,
//           norm_gradients adds up what these left in `sums`.
// Sums      float within a thread's few packs or a block, double beyond; in a fixed order (rows.cuh), no atomics.
// Bytes     3 T an element, each array once; two launches 5 T, unless x and dy are still in the L2 cache.
// Source    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3; Wu and He 2018 (arXiv:1803.08494).
#include "common.cuh"
#include "rows.cuh"
#include "backward.cuh"

#define ARRAYS const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means,   \
    const double* __restrict__ rstds, const void* __restrict__ gammas, Pack<T, V>* __restrict__ dx,                       \
    void* __restrict__ dgammas, void* __restrict__ dbetas, Pair* sums
#define NUMBERS int given, unsigned rows, unsigned segments, unsigned length, unsigned period, unsigned group

template <typename T, int V, int R, typename I, int Way>
__global__ void __launch_bounds__(512, 1) norm_backward(ARRAYS, NUMBERS, int lanes) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(16) unsigned char far[];
  const unsigned step = Way == TEAM ? lanes : blockDim.x, lane = threadIdx.x % step, packs = segments * length;
  const unsigned row = blockIdx.x * (blockDim.x / step) + threadIdx.x / step;
  const bool here = row < rows;
  const Row<I> at{rows, row, length};
  Pack<T, V>* const kept = reinterpret_cast<Pack<T, V>*>(far);
  Held<T, V, R, Way == BLOCK> hx(lane, step, kept), hg(lane, step, kept + (packs > R * step ? packs - R * step : 0u));
  hx.size = hg.size = here ? packs : 0u;
  hx.load(x, at, 0);
  hg.load(dy, at, 0);
  const Moments<A> m = moments_of<A>(means[here ? row : 0u], rstds[here ? row : 0u]);
  const A shift[1] = {m.shift}, gamma[1] = {gamma_of<A>(gammas, given, row % period)};
  A sum[2] = {0, 0};
  hx.each_with(hg, [&](unsigned, const Pack<T, V>& px, const Pack<T, V>& pg) { add(sum, px, pg, shift); });
  sum_team<Way == TEAM>(sum, lanes);
  const A plain = sum[0], along = (sum[1] - m.delta * plain) * m.rstd;
  if (here && lane == 0) {
    if (rows > period) sums[row] = {double(plain), double(along)};
    else write_gradients<A>(dgammas, dbetas, given, row, plain, along);
  }
  const Slope<A> slope[1] = {{m, gamma[0] * plain, gamma[0] * along, A(packs) * V}};
  hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) { dx[at(j)] = slopes(slope, gamma, px, pg); });
}

// The offset of slot j of a group: each channel fills whole runs of `lanes` slots, the last of them in part. Where a slot
// is empty, the offset is another's.
template <typename I> struct Runs {
  I begin;
  unsigned channels, length, lanes, each;  // each: runs of a channel

  __device__ __forceinline__ unsigned run(unsigned j) const { return j / lanes; }
  __device__ __forceinline__ unsigned channel(unsigned j) const { return least(run(j) / each, channels - 1); }
  __device__ __forceinline__ unsigned pack(unsigned j) const { return run(j) % each * lanes + j % lanes; }
  __device__ __forceinline__ bool filled(unsigned j) const { return run(j) < channels * each && pack(j) < length; }
  __device__ __forceinline__ I operator()(unsigned j) const { return begin + channel(j) * length + least(pack(j), length - 1); }
};

// Block: a group of channels. `slots`: of a group, a multiple of 32.
template <typename T, int V, int R, typename I>
__global__ void __launch_bounds__(512, 1) group_norm_backward(ARRAYS, NUMBERS, int lanes, unsigned slots) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(16) unsigned char far[];
  const unsigned each = (length + lanes - 1) / lanes, row = blockIdx.x * group;  // the first channel
  const unsigned step = blockDim.x, kept = slots > R * step ? slots - R * step : 0u;
  const Runs<I> at{I(row) * length, group, length, unsigned(lanes), each};
  Pack<A, 2>* const runs = reinterpret_cast<Pack<A, 2>*>(far);  // the sums of each
  Pack<T, V>* const packs = reinterpret_cast<Pack<T, V>*>(far + (slots / lanes * sizeof(Pack<A, 2>) + 15) / 16 * 16);
  Held<T, V, R, true> hx(threadIdx.x, step, packs), hg(threadIdx.x, step, packs + kept);
  hx.size = hg.size = slots;
  hx.load(x, at, 0);
  hg.load(dy, at, 0);
  const Moments<A> m = moments_of<A>(means[blockIdx.x], rstds[blockIdx.x]);
  const A shift[1] = {m.shift};
  hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) {
    A sum[2] = {0, 0};
    if (at.filled(j)) add(sum, px, pg, shift);
    sum_lanes(sum, lanes);
    if (j % lanes == 0) runs[at.run(j)] = {sum[0], sum[1]};
  });
  __syncthreads();
  A all[2] = {0, 0};
  for (unsigned c = threadIdx.x / 32; c < group; c += step / 32) {
    A sum[2] = {0, 0};
    for (unsigned k = threadIdx.x % 32; k < each; k += 32) {
      sum[0] += runs[c * each + k].v[0];
      sum[1] += runs[c * each + k].v[1];
    }
    sum_lanes(sum);
    if (threadIdx.x % 32) continue;
    const A gamma = gamma_of<A>(gammas, given, (row + c) % period), along = (sum[1] - m.delta * sum[0]) * m.rstd;
    all[0] += gamma * sum[0];
    all[1] += gamma * along;
    if (rows > period) sums[row + c] = {double(sum[0]), double(along)};
    else write_gradients<A>(dgammas, dbetas, given, row + c, sum[0], along);
  }
  sum_block(all);
  const Slope<A> slope[1] = {{m, all[0], all[1], A(group) * A(length) * V}};
  hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) {
    const A gamma[1] = {gamma_of<A>(gammas, given, (row + at.channel(j)) % period)};
    if (at.filled(j)) dx[at(j)] = slopes(slope, gamma, px, pg);
  });
}

// Of each part of a row: the sums of dy and of dy * xhat; `Served`: and dx of given statistics. Block: one part.
template <typename T, int V, typename I, bool Served>
__global__ void __launch_bounds__(256, 2) norm_sums(ARRAYS, NUMBERS, unsigned parts, unsigned first) {
  using A = typename Sum<T>::type;
  constexpr int K = 4;
  const unsigned packs = segments * length, share = (packs + parts - 1) / parts;
  const unsigned row = first + blockIdx.x / parts, part = blockIdx.x % parts, begin = part * share;
  const unsigned end = least(begin + share, packs), step = blockDim.x;
  const Row<I> at{rows, row, length};
  const Moments<A> m = moments_of<A>(means[row / group], rstds[row / group]);
  const A shift[1] = {m.shift}, scale[1] = {m.rstd * gamma_of<A>(gammas, given, row % period)};
  double total[2] = {0.0, 0.0};
  for (unsigned j = begin + threadIdx.x; j < end; j += K * step) {
    A sum[2] = {0, 0};
    in_flight<K>(x, dy, !Served || given & X, at, j, step, end, [&](unsigned i, const Pack<T, V>& px, const Pack<T, V>& pg) {
      add(sum, px, pg, shift);
      if constexpr (Served) dx[at(i)] = scaled(scale, pg);
    });
    total[0] += double(sum[0]);
    total[1] += double(sum[1]);
  }
  sum_block(total);
  if (threadIdx.x == 0) sums[I(row) * parts + part] = {total[0], (total[1] - double(m.delta) * total[0]) * double(m.rstd)};
}

// dx from norm_sums' parts, and dgamma and dbeta of a channel that is one row. Block: one of `stream` parts of a row.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 4) norm_backward_apply(ARRAYS, NUMBERS, unsigned parts, unsigned stream, unsigned first) {
  using A = typename Sum<T>::type;
  __shared__ A told[2];
  const unsigned packs = segments * length, share = (packs + stream - 1) / stream;
  const unsigned row = first + blockIdx.x / stream, part = blockIdx.x % stream, begin = part * share, alike = row - row % group;
  if (threadIdx.x < 32) {
    double all[2] = {0.0, 0.0};  // of the cells that share statistics
    for (unsigned k = threadIdx.x; k < group * parts; k += 32) {
      const double gamma = double(gamma_of<A>(gammas, given, (alike + k / parts) % period));
      all[0] += gamma * sums[I(alike) * parts + k].v[0];
      all[1] += gamma * sums[I(alike) * parts + k].v[1];
    }
    sum_lanes(all);
    if (threadIdx.x == 0) told[0] = A(all[0]), told[1] = A(all[1]);
    if (part == 0 && rows <= period) {
      const Pair own = add_parts(sums + I(row) * parts, parts, 1u);
      if (threadIdx.x == 0) write_gradients<A>(dgammas, dbetas, given, row, own.v[0], own.v[1]);
    }
  }
  __syncthreads();
  const Row<I> at{rows, row, length};
  const A gamma[1] = {gamma_of<A>(gammas, given, row % period)};
  const Slope<A> slope[1] = {{moments_of<A>(means[row / group], rstds[row / group]), told[0], told[1], A(group) * A(packs) * V}};
  const unsigned end = least(begin + share, packs);
#pragma unroll 4
  for (unsigned j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const Pack<T, V> px = x[at(j)], pg = dy[at(j)];  // copied: through a reference their values are read singly
    dx[at(j)] = slopes(slope, gamma, px, pg);
  }
}

// dgamma and dbeta of each channel, from the sums of its `number` rows, `parts` of each. Warp: one channel.
template <typename A, typename I>
__global__ void __launch_bounds__(128) norm_gradients(const Pair* __restrict__ sums, void* __restrict__ dgammas,
    void* __restrict__ dbetas, int given, unsigned channels, unsigned number, unsigned parts) {
  const unsigned channel = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (channel >= channels) return;  // whole warps
  double all[2] = {0.0, 0.0};
  for (unsigned k = threadIdx.x % 32; k < number * parts; k += 32) {
    const Pair sum = sums[(I(k / parts) * channels + channel) * parts + k % parts];
    all[0] += sum.v[0];
    all[1] += sum.v[1];
  }
  sum_lanes(all);
  if (threadIdx.x % 32 == 0) write_gradients<A>(dgammas, dbetas, given, channel, all[0], all[1]);
}
