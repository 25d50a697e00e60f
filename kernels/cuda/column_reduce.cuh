// column_reduce.cuh - statistics groups that are columns, as in channels-last arrays: sums down the columns of
// (samples, depth, channels).
//
// Block     A block has `width` neighbouring packs of columns (a power of two, at most 32), each of V channels, of one sample,
//           and a part of their depth. Thread (tx, ty) = (threadIdx.x % width, threadIdx.x / width) takes the packs of
//           column tx in the rows ty, ty + step, ... of the part.
// Unit      A sample and a range of `width` columns. Units are numbered with the columns innermost.
// Sums      Over a thread, then a warp, a block, and parts, always in this order. All threads of a column get the same bits.
#pragma once

struct ColumnBlock {  // which columns and rows a block, and a thread of it, works on
  unsigned sample, part, column, tx, ty, step, begin, size;  // column: counted in packs; begin, size: the rows of the part

  // `block`: its number; there are `parts` of each unit
  __device__ __forceinline__ ColumnBlock(unsigned block, unsigned parts, unsigned width, unsigned depth, unsigned columns) {
    const unsigned blocks_across = (columns + width - 1) / width, part_size = (depth + parts - 1) / parts;
    const unsigned unit = block / parts;
    part = block % parts;
    sample = unit / blocks_across;
    tx = threadIdx.x % width;
    ty = threadIdx.x / width;
    step = blockDim.x / width;
    column = unit % blocks_across * width + tx;
    begin = part * part_size;
    size = column < columns ? min_unsigned(part_size, depth - begin) : 0u;
  }
};

// The offset, in packs, of row j of a part.
template <typename I> struct ColumnIndex {
  I first;
  unsigned columns;

  __device__ __forceinline__ ColumnIndex(const ColumnBlock& block, unsigned depth, unsigned columns)
      : first((I(block.sample) * depth + block.begin) * columns + block.column), columns(columns) {}
  __device__ __forceinline__ I operator()(unsigned j) const { return first + I(j) * columns; }
};

// Each of M / V packs of values reduced over the threads of a block that have the same column. `workspace`: blockDim.x packs.
template <int V, int M, typename A, typename Operation>
__device__ __forceinline__ void reduce_columns(
    A (&values)[M], const Operation& operation, unsigned width, Pack<A, V>* workspace) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  A* results = reinterpret_cast<A*>(workspace);
#pragma unroll
  for (int m = 0; m < M; m += V) {
    Pack<A, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      pack.v[v] = values[m + v];
      for (unsigned offset = 16; offset >= width; offset >>= 1)
        pack.v[v] = operation(pack.v[v], __shfl_xor_sync(0xffffffffu, pack.v[v], int(offset)));
    }
    __syncthreads();  // other warps may still read earlier results
    if (lane < width) workspace[warp * width + lane] = pack;
    __syncthreads();
    for (unsigned c = threadIdx.x; c < width * V; c += blockDim.x) {
      A result = results[c];
      for (unsigned w = 1; w < warps; ++w) result = operation(result, results[w * width * V + c]);
      results[c] = result;
    }
    __syncthreads();
    pack = workspace[threadIdx.x % width];
#pragma unroll
    for (int v = 0; v < V; ++v) values[m + v] = pack.v[v];
  }
}
template <int V, int M, typename A>
__device__ __forceinline__ void sum_columns(A (&values)[M], unsigned width, Pack<A, V>* workspace) {
  reduce_columns(values, Add<A>(), width, workspace);
}

// The first row of a part, widened: one value of each channel, to be subtracted from the others (compute_statistics).
template <typename T, int V, typename A, typename I>
__device__ __forceinline__ void load_pivot(
    const Pack<T, V>* __restrict__ x, const ColumnIndex<I>& at, const ColumnBlock& block, A (&pivot)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) pivot[v] = 0;
  if (block.size == 0) return;
  const Pack<T, V> first = x[at(0)];
#pragma unroll
  for (int v = 0; v < V; ++v) pivot[v] = widen(first.v[v]);
}
