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

// Each of N packs of values summed over the threads of a block that have the same column. `room`: blockDim.x packs.
template <int N, typename A, int V>
__device__ __forceinline__ void sum_columns(Pack<A, V> (&v)[N], unsigned wide, Pack<A, V>* room) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  A* values = reinterpret_cast<A*>(room);
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < V; ++i)
      for (unsigned apart = 16; apart >= wide; apart >>= 1) v[n].v[i] += __shfl_xor_sync(0xffffffffu, v[n].v[i], int(apart));
    __syncthreads();  // those who still read an earlier sum
    if (lane < wide) room[warp * wide + lane] = v[n];
    __syncthreads();
    for (unsigned c = threadIdx.x; c < wide * V; c += blockDim.x) {
      A sum = values[c];
      for (unsigned w = 1; w < warps; ++w) sum += values[w * wide * V + c];
      values[c] = sum;
    }
    __syncthreads();
    v[n] = room[threadIdx.x % wide];
  }
}

template <typename A, int V> __device__ __forceinline__ Pack<A, V> all_of(A value) {
  Pack<A, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.v[v] = value;
  return pack;
}
