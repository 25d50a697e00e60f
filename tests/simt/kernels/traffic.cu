// traffic.cu - access patterns whose traffic is known: b[...] from a[...], n steps in a grid-stride loop.
// instance: copy<float>
// instance: copy<double>
// instance: copy<unsigned char>
// instance: copy<__half>
// instance: copy<float4>
// instance: copy_hinted<float4>
// instance: twice<Pack<__half, 8>>
#include <cuda_fp16.h>

template <typename T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };
#define LOOP for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)

template <typename T> __global__ void copy(const T* a, T* b, int n) {
  LOOP b[i] = a[i];
}
template <typename T> __global__ void copy_hinted(const T* __restrict__ a, T* b, int n) {
  LOOP __stcs(b + i, __ldg(a + i));
}
template <typename P> __global__ void twice(const P* a, P* b, int n) {
  LOOP {
    P p = a[i], q;
    for (int k = 0; k < 8; ++k) q.v[k] = __half(2.f * float(p.v[k]));
    b[i] = q;
  }
}
__global__ void members(const float4* a, float4* b, int n) {
  LOOP {
    const float4 v = a[i];
    float4 o;
    o.x = 2 * v.x, o.y = 2 * v.y, o.z = v.z, o.w = v.w;
    b[i] = o;
  }
}
__global__ void four_scalars(const float* a, float* b, int n) {
  LOOP for (int k = 0; k < 4; ++k) b[4 * i + k] = a[4 * i + k] + 1;
}
__global__ void every_other(const float* a, float* b, int n) {
  LOOP b[i] = a[2 * i];
}
__global__ void column(const float* a, float* b, int n) {
  LOOP b[i] = a[i % 64 * 64 + i / 64];
}
__global__ void broadcast(const float* a, float* b, int n) {
  LOOP b[i] = a[blockIdx.x];
}
__global__ void reversed_in_shared(const float* a, float* b, int n) {
  __shared__ float s[256];
  const int start = blockIdx.x * 256;
  s[threadIdx.x] = a[start + threadIdx.x];
  __syncthreads();
  b[start + threadIdx.x] = s[255 - threadIdx.x];
}
__global__ void thrice(const float* a, float* b, int n) {
  for (int p = 0; p < 3; ++p) LOOP b[i] = p ? b[i] + a[i] : a[i];
}
__global__ void ragged(const float* a, float* b, int n) {  // lane t reads t % 4 + 1 rows, twice over
  float s = 0;
  const int t = threadIdx.x;
  for (int p = 0; p < 2; ++p)
    for (int r = 0; r <= t % 4; ++r) s += a[(p * 4 + r) * 32 + t];
  b[t] = s;
}
// A gather with divergent lanes: the gradient of a 3 x 3 max pool of stride 2 and padding 1 over planes of h x w cells.
__global__ void gather(const float* dy, const unsigned char* argmax, float* dx, int n, int h, int w, int oh, int ow) {
  LOOP {
    const int x = i % w + 1, y = i / w % h + 1, plane = i / (w * h) * oh * ow;
    float sum = 0;
    for (int r = y < 3 ? 0 : (y - 3) / 2 + 1; r < min(y / 2 + 1, oh); ++r)
      for (int c = x < 3 ? 0 : (x - 3) / 2 + 1; c < min(x / 2 + 1, ow); ++c) {
        const int o = plane + r * ow + c;
        if (argmax[o] == (y - 2 * r) * 3 + x - 2 * c) sum += dy[o];
      }
    dx[i] = sum;
  }
}
