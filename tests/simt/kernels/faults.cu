// faults.cu - one planted fault a kernel; -DMENDED gives the kernel as it should be. A line that a report may name ends
// in the kernel's name as a comment.
// instance: misaligned<float>
// instance: misaligned<__half>
#include <cooperative_groups.h>
#include <cuda_fp16.h>
#ifdef MENDED
#define FAULT(bad, good) good
#else
#define FAULT(bad, good) bad
#endif
namespace cg = cooperative_groups;
#define I const int i = blockIdx.x * blockDim.x + threadIdx.x

// ---- addresses ----------------------------------------------------------------------------------
__global__ void reads_past_the_end(const float* x, float* y) {
  I;
  y[i] = x[i + FAULT(1, 0)];  // reads_past_the_end
}
__global__ void writes_before_the_start(const float* x, float* y) {
  I;
  y[i - FAULT(1, 0)] = x[i];  // writes_before_the_start
}
__global__ void writes_its_input(float* x, float* y) {
  I;
  FAULT(x, y)[i] = 1;  // writes_its_input
}
__global__ void reads_null(const float* x, float* y) {
  I;
  const float* p = FAULT(nullptr, x);
  y[i] = p[i];  // reads_null
}
template <typename T> __global__ void misaligned(const T* x, T* y) {
  struct alignas(4 * sizeof(T)) Pack { T v[4]; };
  I;
  if (i > 3) return;
  const Pack p = *reinterpret_cast<const Pack*>(x + 4 * i + FAULT(2, 0));  // misaligned
  y[i] = p.v[0];
}
__global__ void shared_index(const float* x, float* y) {
  __shared__ float s[64];
  I;
  s[i + FAULT(1, 0)] = x[i];  // shared_index
  y[i] = s[i + FAULT(1, 0)];
}
__global__ void dynamic_shared_index(const float* x, float* y) {
  extern __shared__ float d[];
  I;
  d[2 * i + FAULT(2, 1)] = x[i];  // dynamic_shared_index
  y[i] = d[2 * i + FAULT(2, 1)];
}
__global__ void shared_alignment(const float* x, float* y) {
#ifdef MENDED
  __shared__ __align__(16) float s[64];
#else
  __shared__ float s[64];
#endif
  I;
  s[i] = x[i];
  __syncthreads();
  const float4 four = reinterpret_cast<const float4*>(s)[i / 4];  // shared_alignment
  y[i] = four.x;
}
__global__ void local_index(const float* x, float* y) {
  I;
  float v[4] = {x[i], 1, 2, 3};
  y[i] = v[i & FAULT(7, 3)];  // local_index
}

// ---- initialisation and order in a block ----------------------------------------------------------
__global__ void uninitialised_shared(const float* x, float* y) {
  __shared__ float s[64];
  I;
  if (i < FAULT(63, 64)) s[i] = x[i];
  __syncthreads();
  y[i] = s[63 - i];  // uninitialised_shared
}
__global__ void missing_barrier(const float* x, float* y) {
  __shared__ float s[64];
  I;
  s[i] = 0;
  __syncthreads();
  s[i] = x[i];  // missing_barrier
  FAULT(, __syncthreads());
  y[i] = s[63 - i];  // missing_barrier
}
__global__ void missing_second_barrier(const float* x, float* y) {
  __shared__ float s[64];
  I;
  for (int k = 0; k < 2; ++k) {
    s[i] = x[i] + k;  // missing_second_barrier
    __syncthreads();
    y[i] = s[63 - i];  // missing_second_barrier
    FAULT(, __syncthreads());
  }
}
__global__ void missing_warp_barrier(const float* x, float* y) {
  __shared__ float s[64];
  I;
  s[i] = 0;
  __syncwarp();
  s[i] = x[i];  // missing_warp_barrier
  FAULT(, __syncwarp());
  y[i] = s[i ^ 31];  // missing_warp_barrier
}
__global__ void scatter(const float* x, float* y) {
  I;
  FAULT(y[i / 4] += x[i], atomicAdd(y + i / 4, x[i]));  // scatter
}
__global__ void divergent_barrier(const float* x, float* y) {
  __shared__ float s[64];
  I;
  s[i] = x[i];
#ifdef MENDED
  __syncthreads();
#else
  if (i < 32) __syncthreads();  // divergent_barrier
  else __syncthreads();         // divergent_barrier
#endif
  y[i] = s[63 - i];
}

// ---- warps --------------------------------------------------------------------------------------
__global__ void different_warp_operations(const float* x, float* y) {
  I;
  if (FAULT(i % 32 < 16, true)) y[i] = __shfl_xor_sync(0xffffffffu, x[i], 1);  // different_warp_operations
  else y[i] = __any_sync(0xffffffffu, x[i] > 0);                               // different_warp_operations
}
__global__ void mask_without_the_lane(const float* x, float* y) {
  I;
  y[i] = __shfl_down_sync(FAULT(0xfffffffeu, 0xffffffffu), x[i], 1);  // mask_without_the_lane
}
__global__ void half_a_warp(const float* x, float* y) {
  I;
  float v = x[i];
  if (i % 32 < 16) v = __shfl_xor_sync(FAULT(0xffffffffu, 0xffffu), v, 1);  // half_a_warp
  __syncthreads();  // half_a_warp
  y[i] = v;
}

// ---- between blocks -----------------------------------------------------------------------------
__global__ void same_cell_from_every_block(const float* x, float* y) {
  I;
  if (threadIdx.x == 0) y[FAULT(0, blockIdx.x)] = x[i];  // same_cell_from_every_block
}
__global__ void missing_grid_barrier(const float* x, float* y) {
  I;
  y[i] = x[i];  // missing_grid_barrier
  FAULT(, cg::this_grid().sync());
  const float v = y[(i + blockDim.x) % (gridDim.x * blockDim.x)];  // missing_grid_barrier
  cg::this_grid().sync();
  y[i] = v;
}
__global__ void missing_release(float* data, unsigned* ready) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    data[0] = 1;  // missing_release
    FAULT(, __threadfence());
    *(volatile unsigned*)ready = 1;
  } else {
    while (*(volatile unsigned*)ready == 0) {}
    __threadfence();
    data[blockIdx.x] = data[0];  // missing_release
  }
}
__global__ void missing_acquire(float* data, unsigned* ready) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    data[0] = 1;  // missing_acquire
    __threadfence();
    atomicExch(ready, 1u);
  } else {
    while (*(volatile unsigned*)ready == 0) {}
    FAULT(, __threadfence());
    data[blockIdx.x] = data[0];  // missing_acquire
  }
}
__global__ void missing_block_barrier(float* part, unsigned* arrived) {  // thread 0 releases what only it has written
  part[blockIdx.x * 32 + threadIdx.x] = 1;  // missing_block_barrier
  FAULT(, __syncthreads());
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1u);
    while (*(volatile unsigned*)arrived < gridDim.x) {}
    __threadfence();
  }
  __syncthreads();
  part[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x] += 1;  // missing_block_barrier
}
__global__ void leaves_before_the_grid_meets(const float* x, float* y) {
  I;
  if (FAULT(blockIdx.x == 1, false)) return;
  cg::this_grid().sync();
  y[i] = x[i];
}
__global__ void nobody_raises_the_flag(float* data, unsigned* ready) {
  if (FAULT(false, blockIdx.x + threadIdx.x == 0)) *(volatile unsigned*)ready = 1;
  while (*(volatile unsigned*)ready == 0) {}  // nobody_raises_the_flag
  data[blockIdx.x * 32 + threadIdx.x] = 1;
}
__global__ void nobody_opens_the_lock(float* data, unsigned* mutex) {
  if (threadIdx.x) return;
  while (atomicCAS(mutex, 0u, 1u) != 0u) {}  // nobody_opens_the_lock
  __threadfence();
  data[0] += 1;
  __threadfence();
  FAULT(, atomicExch(mutex, 0u));
}

// ---- arithmetic and limits ------------------------------------------------------------------------
__global__ void divides_by_zero(const float* x, float* y) {
  I;
  const int n = FAULT(int(x[0]), 3);
  y[i] = 7 / n;  // divides_by_zero
}
__global__ void overflows(const float* x, float* y) {
  I;
  const int n = 1 << FAULT(16, 15);
  y[i] = x[i] + float((n + int(x[0])) * (n + int(x[0])));  // overflows
}
__global__ void shifts_too_far(const float* x, float* y) {
  I;
  y[i] = float(1 << (FAULT(32, 8) + int(x[0])));  // shifts_too_far
}
__global__ void fails_an_assertion(const float* x, float* y) {
  I;
  assert(i < FAULT(63, 64));  // fails_an_assertion
  y[i] = x[i];
}
__global__ void __launch_bounds__(FAULT(32, 64), 1) more_threads_than_bounds(const float* x, float* y)
{  // more_threads_than_bounds
  I;
  y[i] = x[i];
}
__global__ void too_much_shared(const float* x, float* y) {
  __shared__ float s[FAULT(12289, 12288)];  // too_much_shared
  I;
  s[i] = x[i];
  y[i] = s[i];
}
