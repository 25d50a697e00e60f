// styles.cu - small correct kernels, one of each style that a library of kernels is written in.
// instance: scale<float, 4, unsigned>
// instance: scale<__half, 8, long long>
// instance: scale<__nv_bfloat16, 2, unsigned>
// instance: scale<double, 1, long long>
// instance: block_sum<float>
// instance: block_sum<double>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <typename T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };
struct Shape { int rows, columns; };
__constant__ float factor[2] = {0.5f, 2.0f};

template <typename T, int V, typename Index>
__global__ void __launch_bounds__(V > 2 ? 256 : 512)
    scale(const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ y, Index n) {
  for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += Index(gridDim.x) * blockDim.x) {
    Pack<T, V> p = x[i];
#pragma unroll
    for (int v = 0; v < V; ++v) p.v[v] = T(static_cast<typename Accumulator<T>::type>(p.v[v]) * factor[1]);
    y[i] = p;
  }
}

__global__ void transpose(const float* x, float* y, Shape shape) {
  __shared__ float tile[16][17];
  int c = blockIdx.x * 16 + threadIdx.x, r = blockIdx.y * 16 + threadIdx.y;
  if (r < shape.rows && c < shape.columns) tile[threadIdx.y][threadIdx.x] = x[r * shape.columns + c];
  __syncthreads();
  c = blockIdx.y * 16 + threadIdx.x, r = blockIdx.x * 16 + threadIdx.y;
  if (r < shape.columns && c < shape.rows) y[r * shape.rows + c] = tile[threadIdx.x][threadIdx.y];
}

// Shuffles in a warp, shared memory between warps, an atomic between blocks. blockDim.x % 32 == 0.
template <typename A> __global__ void block_sum(const A* x, A* total, int n) {
  __shared__ A sums[32], unused;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  (void)unused;
  A sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (warp) return;
  sum = lane < int(blockDim.x >> 5) ? sums[lane] : A(0);
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, o);
  if (lane == 0) atomicAdd(total, sum);
}

extern "C" __global__ void histogram(const unsigned char* x, unsigned* counts, int n, int bins) {
  extern __shared__ __align__(8) unsigned local[];
  for (int b = threadIdx.x; b < bins; b += blockDim.x) local[b] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(local + x[i], 1u);
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += blockDim.x) atomicAdd(counts + b, local[b]);
}

// What the warps and blocks say of x > 0: bits in a warp, any, all; how many in the block; the lane below's value.
__global__ void votes(const float* x, int* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool p = x[i] > 0;
  const unsigned bits = __ballot_sync(0xffffffffu, p), live = __activemask();
  const int any = __any_sync(0xffffffffu, p), all = __all_sync(0xffffffffu, p);
  const int count = __syncthreads_count(p), some = __syncthreads_or(p), each = __syncthreads_and(p);
  const double below = __shfl_up_sync(0xffffffffu, double(x[i]), 1);
  y[i] = __popc(bits & live) + 100 * any + 200 * all + 1000 * count + 100000 * some + 200000 * each +
         (threadIdx.x % 32 && below == double(x[i - 1]) ? 1000000 : 0);
}

// The block that arrives last adds up what all have written.
__global__ void last_block(const float* x, float* part, float* out, unsigned* ticket) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    part[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x != 32) return;
  __threadfence();
  for (int b = 0; b < int(gridDim.x); ++b) out[0] += part[b];
}

__global__ void locked(unsigned* mutex, int* total) {
  if (threadIdx.x % 32) return;
  while (atomicCAS(mutex, 0u, 1u) != 0u) {}
  __threadfence();
  *total += 1;
  __threadfence();
  atomicExch(mutex, 0u);
}
