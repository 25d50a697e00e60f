// rows.cuh - the rows of a norm: where a row's packs lie, and sums over them in a fixed order.
//
// Rows      an array is (segments, rows, length) packs of V elements, and a row is what is left when `row` is fixed: with
//           segments = samples it is a channel of batch norm, with segments = 1 what lies together (a group, an instance,
//           the last axes).
// Team      the threads that have a row: `lanes` neighbours of a warp (a power of two), a block, or the blocks of a
//           cooperative grid. Thread `lane` takes the packs lane, lane + step, ...
// Sums      thread, warp, block, parts, always in that order; all threads of a team get the same bits.
// Mean      is kept as shift + delta: x - shift is exact where x is close to the mean, and what rounding the mean lost is
//           put right in small numbers. So nothing is lost where the mean is 1e6 times the standard deviation.
#pragma once

// Bits of what a kernel is given: arrays that are there, and how statistics are kept. norm_arrays.py has them too.
enum Given { GAMMA = 1, BETA = 2, DGAMMA = 4, DBETA = 8, X = 16, CENTRED = 32, RUNNING = 64, UNBIASED = 128 };

enum Way { TEAM, BLOCK };  // of a kernel's rows: each in lanes of a warp, or in a block

template <typename A> struct Moments {  // x - mean = (x - shift) - delta
  A shift, delta, rstd;
};

template <typename A> __device__ __forceinline__ Moments<A> moments_of(double mean, double rstd) {
  const A shift = A(mean);
  return {shift, A(mean - double(shift)), A(rstd)};
}

using Pair = Pack<double, 2>;  // what a block tells the others: mean and squares, or two sums

__device__ __forceinline__ unsigned least(unsigned a, unsigned b) { return b < a ? b : a; }

// The offset of pack j of a row, in packs: of type I. There are fewer than 2**31 rows, and packs in a row.
template <typename I> struct Row {
  unsigned rows, row, length;

  __device__ __forceinline__ I operator()(unsigned j) const {
    const unsigned segment = j < length ? 0u : j / length;
    return (I(segment) * rows + row) * length + (j - segment * length);
  }
};

// Each of N values summed over teams of `lanes` threads.
template <int N, typename A> __device__ __forceinline__ void sum_lanes(A (&v)[N], int lanes = 32) {
  for (int apart = lanes >> 1; apart > 0; apart >>= 1)
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], apart);
}

// Each of N values summed over the block, whose threads are a multiple of 32.
template <int N, typename A> __device__ __forceinline__ void sum_block(A (&v)[N]) {
  __shared__ A warps[N][32];
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5, number = int(blockDim.x) >> 5;
  sum_lanes(v);
  __syncthreads();  // those who still read an earlier sum
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < N; ++i) warps[i][warp] = v[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = lane < number ? warps[i][lane] : A(0);
  sum_lanes(v);
}

template <bool Lanes, int N, typename A> __device__ __forceinline__ void sum_team(A (&v)[N], int lanes) {
  if constexpr (Lanes) sum_lanes(v, lanes);
  else sum_block(v);
}

// The packs of a row that a thread holds: R in registers, the rest in shared memory, `pitch` apart.
template <typename T, int V, int R, bool Shared> struct Held {
  Pack<T, V> near[R];
  Pack<T, V>* far;
  unsigned lane, step, pitch, size = 0;

  __device__ __forceinline__ Held(unsigned lane, unsigned step, Pack<T, V>* far = nullptr, unsigned pitch = 1)
      : far(far), lane(lane), step(step), pitch(pitch) {}
  template <typename At> __device__ __forceinline__ void load(const Pack<T, V>* __restrict__ x, const At& at, unsigned begin) {
#pragma unroll
    for (int r = 0; r < R; ++r)  // all at once: R loads in flight
      if (lane + r * step < size) near[r] = x[at(begin + lane + r * step)];
    if constexpr (Shared)
#pragma unroll 4
      for (unsigned j = lane + R * step; j < size; j += step) far[(j - R * step) * pitch] = x[at(begin + j)];
  }

  // visit(j, pack) for each pack held; j counts from the part's beginning.
  template <typename Visit> __device__ __forceinline__ void each(Visit visit) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) visit(lane + r * step, near[r]);
    if constexpr (Shared)
      for (unsigned j = lane + R * step; j < size; j += step) {
        const Pack<T, V> pack = far[(j - R * step) * pitch];  // copied: through a reference nvcc reads halves singly
        visit(j, pack);
      }
  }

  // visit(j, pack, other's pack); both hold the same.
  template <typename Visit> __device__ __forceinline__ void each_with(const Held& other, Visit visit) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) visit(lane + r * step, near[r], other.near[r]);
    if constexpr (Shared)
      for (unsigned j = lane + R * step; j < size; j += step) {
        const Pack<T, V> pack = far[(j - R * step) * pitch], others = other.far[(j - R * step) * pitch];
        visit(j, pack, others);
      }
  }
};

// The pairs of a row's parts, `apart` from one to the next, added up by one whole warp: all lanes get both sums.
template <typename I> __device__ __forceinline__ Pair add_parts(const Pair* parts, unsigned number, I apart) {
  double sum[2] = {0.0, 0.0};
  for (unsigned k = threadIdx.x & 31; k < number; k += 32) {
    sum[0] += parts[k * apart].v[0];
    sum[1] += parts[k * apart].v[1];
  }
  sum_lanes(sum);
  return {sum[0], sum[1]};
}

// Mean and mean square distance of a row, from those of its parts (Chan's formula), by one whole warp: all lanes get both.
// `share`: of a row's `packs` what a part has, but the last; none is empty. `apart`: from one part to the next.
template <int V, typename I>
__device__ __forceinline__ void combine(const Pair* parts, unsigned number, I apart, unsigned share, unsigned packs, double& mean,
    double& var) {
  const double all = double(packs) * V;
  double sum[1] = {0.0};
  for (unsigned k = threadIdx.x & 31; k < number; k += 32) {
    const unsigned begin = least(k * share, packs);
    sum[0] += double(least(share, packs - begin)) * V * parts[k * apart].v[0];
  }
  sum_lanes(sum);
  mean = sum[0] / all;
  sum[0] = 0.0;
  for (unsigned k = threadIdx.x & 31; k < number; k += 32) {
    const unsigned begin = least(k * share, packs);
    const double away = parts[k * apart].v[0] - mean;
    sum[0] += parts[k * apart].v[1] + double(least(share, packs - begin)) * V * away * away;
  }
  sum_lanes(sum);
  var = sum[0] / all;
}
