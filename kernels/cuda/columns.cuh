// columns.cuh - norms of arrays whose channels come last: sums down the columns of (samples, depth, channels).
//
// Slab      a block has `wide` neighbouring packs of columns (a power of two, at most 32), each of V channels, of one sample,
//           and a part of their depth. Thread (tx, ty) = (threadIdx.x % wide, threadIdx.x / wide) takes the packs of
//           column tx in the rows ty, ty + step, ... of the part.
// Unit      a sample and a slab. Units are numbered with the slabs innermost.
// Sums      thread, warp, block, parts, always in that order; all threads of a column get the same bits.
#pragma once

struct Slab {  // of a block
  unsigned sample, column, tx, ty, step, begin, size;  // column: in packs; begin, size: rows of the part

  // unit: sample and slab; `here`: whether there is such a unit
  __device__ __forceinline__ Slab(unsigned unit, unsigned part, unsigned parts, unsigned wide, unsigned depth, unsigned columns,
      bool here) {
    const unsigned slabs = (columns + wide - 1) / wide, share = (depth + parts - 1) / parts;
    sample = unit / slabs;
    tx = threadIdx.x % wide;
    ty = threadIdx.x / wide;
    step = blockDim.x / wide;
    column = unit % slabs * wide + tx;
    begin = part * share;
    size = here && column < columns ? least(share, depth - begin) : 0u;
  }
};

// The offset, in packs, of row j of a part.
template <typename I> struct Column {
  I first;
  unsigned columns;

  __device__ __forceinline__ Column(const Slab& slab, unsigned depth, unsigned columns)
      : first((I(slab.sample) * depth + slab.begin) * columns + slab.column), columns(columns) {}
  __device__ __forceinline__ I operator()(unsigned j) const { return first + I(j) * columns; }
};

// Each of M / V packs of values summed over the threads of a block that have the same column. `room`: blockDim.x packs.
template <int V, int M, typename A>
__device__ __forceinline__ void sum_columns(A (&values)[M], unsigned wide, Pack<A, V>* room) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  A* sums = reinterpret_cast<A*>(room);
#pragma unroll
  for (int m = 0; m < M; m += V) {
    Pack<A, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      pack.v[v] = values[m + v];
      for (unsigned apart = 16; apart >= wide; apart >>= 1) pack.v[v] += __shfl_xor_sync(0xffffffffu, pack.v[v], int(apart));
    }
    __syncthreads();  // those who still read an earlier sum
    if (lane < wide) room[warp * wide + lane] = pack;
    __syncthreads();
    for (unsigned c = threadIdx.x; c < wide * V; c += blockDim.x) {
      A sum = sums[c];
      for (unsigned w = 1; w < warps; ++w) sum += sums[w * wide * V + c];
      sums[c] = sum;
    }
    __syncthreads();
    pack = room[threadIdx.x % wide];
#pragma unroll
    for (int v = 0; v < V; ++v) values[m + v] = pack.v[v];
  }
}

// The first row of a part, widened: a value of each channel from which others are measured.
template <typename T, int V, typename A, typename I>
__device__ __forceinline__ void first_of(const Pack<T, V>* __restrict__ x, const Column<I>& at, const Slab& slab, A (&pivot)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) pivot[v] = 0;
  if (slab.size == 0) return;
  const Pack<T, V> first = x[at(0)];
#pragma unroll
  for (int v = 0; v < V; ++v) pivot[v] = widen(first.v[v]);
}
