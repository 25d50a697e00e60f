// small_floats.cu - conversions and arithmetic of the 16-bit floats, element by element.
// instance: widen<__half>
// instance: widen<__nv_bfloat16>
// instance: narrow<__half, float>
// instance: narrow<__half, double>
// instance: narrow<__half, long long>
// instance: narrow<__nv_bfloat16, float>
// instance: narrow<__nv_bfloat16, double>
// instance: narrow<__nv_bfloat16, long long>
// instance: arithmetic<__half>
// instance: arithmetic<__nv_bfloat16>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define EACH for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)

template <typename T> __global__ void widen(const T* x, float* y, int n) {
  EACH y[i] = x[i];
}
template <typename T, typename From> __global__ void narrow(const From* x, T* y, int n) {
  EACH y[i] = T(x[i]);
}
template <typename T> __global__ void arithmetic(const T* a, const T* b, T* y, int n) {  // y is 8 rows of n
  EACH {
    T* out = y + i;
    *out = a[i] + b[i], out += n;
    *out = a[i] - b[i], out += n;
    *out = a[i] * b[i], out += n;
    *out = a[i] / b[i], out += n;
    *out = -a[i], out += n;
    *out = __hmax(a[i], b[i]), out += n;
    *out = __hmin(a[i], b[i]), out += n;
    *out = T((a[i] < b[i]) + 2 * (a[i] == b[i]) + 4 * (a[i] != b[i]) + 8 * (a[i] >= b[i]));
  }
}
