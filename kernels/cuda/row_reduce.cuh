// row_reduce.cuh - statistics groups that are rows: where a row's packs are, and sums over them in a fixed order.
//
// Rows      An array is (segments, rows, length) packs of V elements. A row is everything with one value of `row`: with
//           segments = samples it is a channel of batch norm, with segments = 1 it is contiguous (a group, an instance, the
//           last axes).
// Team      The threads that work on one row, or on a part of it: `lanes` neighbours of a warp (a power of two), or a block.
//           Thread `lane` takes the packs lane, lane + step, ...
// Sums      Over a thread, then a warp, a block, and parts, always in this order. All threads of a team get the same bits.
// Mean      Represented as shift + delta. x - shift is exact where x is close to the mean, and delta, a small number, holds
//           what rounding the mean lost. So no digits are lost where the mean is 1e6 times the standard deviation.
#pragma once

// Bits of a kernel's flags: which arrays it has, and how statistics are written. norm_arguments.py has the same numbers.
enum Flags { GAMMA = 1, BETA = 2, DGAMMA = 4, DBETA = 8, HAS_X = 16, CENTRED = 32, RUNNING = 64, UNBIASED = 128 };

enum Mapping { WARP, BLOCK };  // one row for some lanes of a warp, or for a block

template <typename A> struct Moments {  // x - mean = (x - shift) - delta
  A shift, delta, rstd;
};

template <typename A> __device__ __forceinline__ Moments<A> moments_of(double mean, double rstd) {
  const A shift = A(mean);
  return {shift, A(mean - double(shift)), A(rstd)};
}

using Pair = Pack<double, 2>;  // a block's result: mean and sum of squared deviations, or two sums

__device__ __forceinline__ unsigned min_unsigned(unsigned a, unsigned b) { return b < a ? b : a; }

// The offset of pack j of a row, in packs, as type I. There are fewer than 2**31 rows, and fewer than 2**31 packs in a row.
// Segmented: there may be several segments.
template <typename I, bool Segmented = true> struct RowIndex {
  unsigned rows, row;
  Divisor<unsigned> length;

  __device__ __forceinline__ I operator()(unsigned j) const {
    if constexpr (!Segmented) return I(row) * length.number + j;
    const unsigned segment = length.quotient(j);
    return (I(segment) * rows + row) * length.number + (j - segment * length.number);
  }
};

// Operations of a reduction, and what leaves every value as it is.
template <typename A> struct Add {
  static __device__ __forceinline__ A identity() { return A(0); }
  __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
};
template <typename A> struct Largest {  // NaNs are left out
  static __device__ __forceinline__ A identity() { return lowest<A>(); }
  __device__ __forceinline__ A operator()(A a, A b) const { return b > a ? b : a; }
};

// Each of N values reduced over teams of `lanes` threads.
template <int N, typename A, typename Operation>
__device__ __forceinline__ void reduce_lanes(A (&v)[N], const Operation& operation, int lanes = 32) {
  for (int offset = lanes >> 1; offset > 0; offset >>= 1)
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = operation(v[i], __shfl_xor_sync(0xffffffffu, v[i], offset));
}

// Each of N values reduced over the block, whose threads are a multiple of 32.
template <int N, typename A, typename Operation>
__device__ __forceinline__ void reduce_block(A (&v)[N], const Operation& operation) {
  __shared__ A warps[N][32];
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5, number = int(blockDim.x) >> 5;
  reduce_lanes(v, operation);
  __syncthreads();  // other warps may still read earlier results
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < N; ++i) warps[i][warp] = v[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = lane < number ? warps[i][lane] : Operation::identity();
  reduce_lanes(v, operation);
}

template <bool Lanes, int N, typename A, typename Operation>
__device__ __forceinline__ void reduce_team(A (&v)[N], const Operation& operation, int lanes) {
  if constexpr (Lanes) reduce_lanes(v, operation, lanes);
  else reduce_block(v, operation);
}

template <int N, typename A> __device__ __forceinline__ void sum_lanes(A (&v)[N], int lanes = 32) {
  reduce_lanes(v, Add<A>(), lanes);
}
template <int N, typename A> __device__ __forceinline__ void sum_block(A (&v)[N]) { reduce_block(v, Add<A>()); }

// The packs of a row that one thread of a team works on, at most R, in registers.
template <typename T, int V, int R> struct RowTile {
  Pack<T, V> packs[R];
  unsigned lane, step, size;  // step: threads of the team; size: packs of the row, or of its part

  __device__ __forceinline__ RowTile(unsigned lane, unsigned step, unsigned size = 0) : lane(lane), step(step), size(size) {}
  template <typename At> __device__ __forceinline__ void load(const Pack<T, V>* __restrict__ x, const At& at, unsigned begin) {
#pragma unroll
    for (int r = 0; r < R; ++r)  // all at once: R loads in flight
      if (lane + r * step < size) packs[r] = x[at(begin + lane + r * step)];
  }

  // visit(j, pack) for each of the thread's packs; j counts from the beginning of the part.
  template <typename Visit> __device__ __forceinline__ void each(Visit visit) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) visit(lane + r * step, packs[r]);
  }

  // visit(j, pack, the other tile's pack) for two tiles of the same size.
  template <typename Visit> __device__ __forceinline__ void each_with(const RowTile& other, Visit visit) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) visit(lane + r * step, packs[r], other.packs[r]);
  }
};

// The sums of the pairs of a row's parts, `offset` pairs from one to the next, by one whole warp: all lanes get both sums.
template <typename I> __device__ __forceinline__ Pair sum_parts(const Pair* parts, unsigned number, I offset) {
  double sum[2] = {0.0, 0.0};
  for (unsigned k = threadIdx.x & 31; k < number; k += 32) {
    sum[0] += parts[k * offset].v[0];
    sum[1] += parts[k * offset].v[1];
  }
  sum_lanes(sum);
  return {sum[0], sum[1]};
}

// Mean and biased variance of a row from its parts' means and squared deviations (Chan's formula), by one whole warp: all
// lanes get both. A row has `packs` packs, a part `part_size` of them, the last one the rest; no part is empty. The pairs
// of two parts are `offset` apart.
template <int V, typename I>
__device__ __forceinline__ void combine_parts(
    const Pair* parts, unsigned number, I offset, unsigned part_size, unsigned packs, double& mean, double& var) {
  const double all = double(packs) * V;
  double sum[1] = {0.0};
  for (unsigned k = threadIdx.x & 31; k < number; k += 32) {
    const unsigned begin = min_unsigned(k * part_size, packs);
    sum[0] += double(min_unsigned(part_size, packs - begin)) * V * parts[k * offset].v[0];
  }
  sum_lanes(sum);
  mean = sum[0] / all;
  sum[0] = 0.0;
  for (unsigned k = threadIdx.x & 31; k < number; k += 32) {
    const unsigned begin = min_unsigned(k * part_size, packs);
    const double deviation = parts[k * offset].v[0] - mean;
    sum[0] += parts[k * offset].v[1] + double(min_unsigned(part_size, packs - begin)) * V * deviation * deviation;
  }
  sum_lanes(sum);
  var = sum[0] / all;
}
