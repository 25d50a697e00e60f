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
// Ways      norm_backward (group 1): a row in a warp, in a block, or in `parts` blocks of a cooperative grid that takes
//           `turn` rows at a time, one grid barrier each. group_norm_backward: a group in a block. Other rows: norm_sums,
//           then norm_backward_apply, which reads x and dy again. Given statistics: norm_sums alone, which then writes
//           dx. Where a channel has several rows, norm_gradients adds up what these left in `sums`.
// Sums      float within a thread's few packs or a block, double beyond; in a fixed order (rows.cuh), no atomics.
// Bytes     3 T an element, each array once; two launches 5 T, unless x and dy are still in the L2 cache.
// Source    Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3; Wu and He 2018 (arXiv:1803.08494).
#include <cooperative_groups.h>
#include "common.cuh"
#include "rows.cuh"

enum Given { GAMMA = 1, DGAMMA = 2, DBETA = 4, X = 8 };  // bits: arrays that are there

#define ARRAYS const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means,   \
    const double* __restrict__ rstds, const void* __restrict__ gammas, Pack<T, V>* __restrict__ dx,                       \
    void* __restrict__ dgammas, void* __restrict__ dbetas, Pair* sums
#define NUMBERS int given, unsigned rows, unsigned segments, unsigned length, unsigned period, unsigned group

template <typename A> __device__ __forceinline__ Moments<A> moments_of(const double* means, const double* rstds, long long i) {
  const A shift = A(means[i]);
  return {shift, A(means[i] - double(shift)), A(rstds[i])};
}

template <typename A> __device__ __forceinline__ A gamma_of(const void* gammas, int given, long long i) {
  return given & GAMMA ? static_cast<const A*>(gammas)[i] : A(1);
}

// dgamma and dbeta of a channel, by one thread.
template <typename A>
__device__ __forceinline__ void write_gradients(void* dgammas, void* dbetas, int given, long long i, double along, double plain) {
  if (given & DGAMMA) static_cast<A*>(dgammas)[i] = A(along);
  if (given & DBETA) static_cast<A*>(dbetas)[i] = A(plain);
}

// dx = scale * dy - (x - shift) * slope - offset, all over the cells that share statistics.
template <typename A> struct Slope {
  A scale, slope, offset, shift;

  // plain, along: sums of gamma * dy, and of that times xhat, over n cells
  __device__ __forceinline__ Slope(const Moments<A>& m, A gamma, A plain, A along, A n)
      : scale(gamma), slope(m.rstd * (along / n)), offset(plain / n - m.delta * slope), shift(m.shift), rstd(m.rstd) {}
  template <typename T, int V>
  __device__ __forceinline__ Pack<T, V> operator()(const Pack<T, V>& x, const Pack<T, V>& dy) const {
    Pack<T, V> dx;
#pragma unroll
    for (int v = 0; v < V; ++v)
      dx.v[v] = narrow<T>((scale * widen(dy.v[v]) - ((widen(x.v[v]) - shift) * slope + offset)) * rstd);
    return dx;
  }

 private:
  A rstd;
};

// sum[0] += dy, sum[1] += dy * (x - shift)
template <typename A, typename T, int V>
__device__ __forceinline__ void add(A (&sum)[2], const Pack<T, V>& x, const Pack<T, V>& dy, A shift) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sum[0] += widen(dy.v[v]);
    sum[1] += widen(dy.v[v]) * (widen(x.v[v]) - shift);
  }
}

template <typename T, int V, int R, typename I, int Way>
__global__ void __launch_bounds__(512, 1) norm_backward(ARRAYS, Pair* partial, NUMBERS, int lanes, unsigned parts, unsigned turn) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(16) unsigned char far[];
  __shared__ A told[2];
  const unsigned step = Way == TEAM ? lanes : blockDim.x, packs = segments * length, share = (packs + parts - 1) / parts;
  const unsigned team = Way == TEAM ? blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes : blockIdx.x;
  const unsigned part = Way == GRID ? team % parts : 0u, begin = part * share;
  Held<T, V, R, Way != TEAM> hx, hg;
  hx.lane = hg.lane = threadIdx.x % step;
  hx.step = hg.step = step;
  hx.far = reinterpret_cast<Pack<T, V>*>(far);
  hg.far = hx.far + (share > R * step ? share - R * step : 0u);

  for (unsigned before = 0; before < rows; before += turn) {
    const unsigned row = before + (Way == GRID ? team / parts : team);
    const bool here = row < rows;
    const Row<I> at{rows, row, length};
    hx.size = hg.size = here ? least(share, packs - begin) : 0u;
    hx.load(x, at, begin);
    hg.load(dy, at, begin);
    const Moments<A> m = moments_of<A>(means, rstds, here ? row : 0u);
    A sum[2] = {0, 0};
    hx.each_with(hg, [&](unsigned, const Pack<T, V>& px, const Pack<T, V>& pg) { add(sum, px, pg, m.shift); });
    sum_team<Way == TEAM>(sum, lanes);
    if constexpr (Way == GRID) {
      if (here && threadIdx.x == 0) partial[I(row) * parts + part] = {double(sum[0]), double(sum[1])};
      cooperative_groups::this_grid().sync();
      if (here && threadIdx.x < 32) {
        double all[2] = {0.0, 0.0};
        for (unsigned k = threadIdx.x; k < parts; k += 32) {
          all[0] += partial[I(row) * parts + k].v[0];
          all[1] += partial[I(row) * parts + k].v[1];
        }
        sum_lanes(all);
        if (threadIdx.x == 0) told[0] = A(all[0]), told[1] = A(all[1]);
      }
      __syncthreads();
      sum[0] = told[0];
      sum[1] = told[1];
    }
    const A gamma = gamma_of<A>(gammas, given, row % period), along = (sum[1] - m.delta * sum[0]) * m.rstd;
    if (here && part == 0 && hx.lane == 0) {
      if (rows > period) sums[row] = {double(sum[0]), double(along)};
      else write_gradients<A>(dgammas, dbetas, given, row, along, sum[0]);
    }
    const Slope<A> slope(m, gamma, gamma * sum[0], gamma * along, A(packs) * V);
    hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) { dx[at(begin + j)] = slope(px, pg); });
  }
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
  Held<T, V, R, true> hx, hg;
  hx.lane = hg.lane = threadIdx.x;
  hx.step = hg.step = step;
  hx.size = hg.size = slots;
  Pack<A, 2>* runs = reinterpret_cast<Pack<A, 2>*>(far);  // the sums of each
  hx.far = reinterpret_cast<Pack<T, V>*>(far + (slots / lanes * sizeof(Pack<A, 2>) + 15) / 16 * 16);
  hg.far = hx.far + kept;
  hx.load(x, at, 0);
  hg.load(dy, at, 0);
  const Moments<A> m = moments_of<A>(means, rstds, blockIdx.x);
  hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) {
    A sum[2] = {0, 0};
    if (at.filled(j)) add(sum, px, pg, m.shift);
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
    else write_gradients<A>(dgammas, dbetas, given, row + c, along, sum[0]);
  }
  sum_block(all);
  hx.each_with(hg, [&](unsigned j, const Pack<T, V>& px, const Pack<T, V>& pg) {
    const A gamma = gamma_of<A>(gammas, given, (row + at.channel(j)) % period);
    const Slope<A> slope(m, gamma, all[0], all[1], A(group) * A(length) * V);
    if (at.filled(j)) dx[at(j)] = slope(px, pg);
  });
}

// Of each part of a row: the sums of dy and of dy * xhat; `Served`: and dx of given statistics. Block: one part.
template <typename T, int V, typename I, bool Served>
__global__ void __launch_bounds__(256, 2) norm_sums(ARRAYS, NUMBERS, unsigned parts, unsigned first) {
  using A = typename Sum<T>::type;
  constexpr int N = 4;  // packs of each array in flight
  const unsigned packs = segments * length, share = (packs + parts - 1) / parts;
  const unsigned row = first + blockIdx.x / parts, part = blockIdx.x % parts, begin = part * share;
  const unsigned end = least(begin + share, packs), step = blockDim.x;
  const Row<I> at{rows, row, length};
  const Moments<A> m = moments_of<A>(means, rstds, row / group);
  const A scale = m.rstd * gamma_of<A>(gammas, given, row % period);
  double total[2] = {0.0, 0.0};
  for (unsigned j = begin + threadIdx.x; j < end; j += N * step) {
    Pack<T, V> px[N], pg[N];
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * step < end) {
        pg[k] = dy[at(j + k * step)];
        if (!Served || given & X) px[k] = x[at(j + k * step)];
        else px[k] = pg[k];
      }
    A sum[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * step < end) {
        add(sum, px[k], pg[k], m.shift);
        if constexpr (Served) {
          Pack<T, V> out;
#pragma unroll
          for (int v = 0; v < V; ++v) out.v[v] = narrow<T>(widen(pg[k].v[v]) * scale);
          dx[at(j + k * step)] = out;
        }
      }
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
    double all[4] = {0.0, 0.0, 0.0, 0.0};  // of the cells that share statistics, and of the row
    for (unsigned k = threadIdx.x; k < group * parts; k += 32) {
      const unsigned other = alike + k / parts;
      const Pair sum = sums[I(alike) * parts + k];
      const double gamma = double(gamma_of<A>(gammas, given, other % period));
      all[0] += gamma * sum.v[0];
      all[1] += gamma * sum.v[1];
      all[2] += other == row ? sum.v[0] : 0.0;
      all[3] += other == row ? sum.v[1] : 0.0;
    }
    sum_lanes(all);
    if (threadIdx.x == 0) {
      told[0] = A(all[0]);
      told[1] = A(all[1]);
      if (part == 0 && rows <= period) write_gradients<A>(dgammas, dbetas, given, row, all[3], all[2]);
    }
  }
  __syncthreads();
  const Row<I> at{rows, row, length};
  const Moments<A> m = moments_of<A>(means, rstds, row / group);
  const Slope<A> slope(m, gamma_of<A>(gammas, given, row % period), told[0], told[1], A(group) * A(packs) * V);
  const unsigned end = least(begin + share, packs);
#pragma unroll 4
  for (unsigned j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const Pack<T, V> px = x[at(j)], pg = dy[at(j)];  // copied: through a reference their values are read singly
    dx[at(j)] = slope(px, pg);
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
  if (threadIdx.x % 32 == 0) write_gradients<A>(dgammas, dbetas, given, channel, all[1], all[0]);
}
