// local_response_norm.cu - local response normalisation and its gradient.
//
//     y[c] = x[c] d[c]^-beta,    d[c] = k + share * sum(x[j]^2, j from c - before to c + after),    share = alpha / size
//     dx[c] = dy[c] d[c]^-beta - 2 beta share x[c] * sum(g[j], j from c - after to c + before),  g = dy x d^(-beta - 1)
//
// Layout    (outer, channels, inner), contiguous; channels last has inner = 1. Channels outside the array count as 0.
// Types     T any float; computed in Sum<T>, sums in S: double for windows of many channels.
// NaN       spreads to the cells whose window holds it.
// Thread    forward: one cell; it adds up its window, in order of channels. backward: a run of `run` channels at one place. It
//           works out g once for each channel of the run and of the window around it, and keeps the last `size` of them in a
//           ring of its own in shared memory; so threads wait for nobody.
// Bytes     each array once from memory; what windows share comes from the caches.
// Source    functional/local_response_norm.py.
#include "common.cuh"

struct Channels {  // of a window, within the array
  int first, last;

  __device__ __forceinline__ Channels(int c, int before, int after, int channels)
      : first(max(0, c - before)), last(int(min(static_cast<long long>(channels) - 1, static_cast<long long>(c) + after))) {}
};

// d of channel c; `column` is the place's first channel.
template <typename S, typename T, typename I>
__device__ __forceinline__ typename Sum<T>::type denominator(const T* __restrict__ column, int c, int channels, I inner,
    int before, int after, typename Sum<T>::type share, typename Sum<T>::type k) {
  using A = typename Sum<T>::type;
  const Channels window(c, before, after, channels);
  S sum = 0;
#pragma unroll 4
  for (int j = window.first; j <= window.last; ++j) {
    const A v = widen(column[I(j) * inner]);
    sum += S(v * v);
  }
  return share * A(sum) + k;
}

template <typename T, typename S, typename I>
__global__ void __launch_bounds__(256) local_response_norm(const T* __restrict__ x, T* __restrict__ y, I n, I inner,
    int channels, int before, int after, typename Sum<T>::type share, typename Sum<T>::type beta, typename Sum<T>::type k) {
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I row = i / inner, outer = row / I(channels), place = i - row * inner;
    const int c = int(row - outer * I(channels));
    const T* const column = x + outer * I(channels) * inner + place;
    y[i] = narrow<T>(widen(x[i]) * pow(denominator<S>(column, c, channels, inner, before, after, share, k), -beta));
  }
}

// n runs: those of all places of the first `run` channels, then of the next, and so on, for each outer index.
template <typename T, typename S, typename I>
__global__ void __launch_bounds__(256) local_response_norm_backward(const T* __restrict__ dy, const T* __restrict__ x,
    T* __restrict__ dx, I n, I inner, int channels, int before, int after, int size, int run, typename Sum<T>::type share,
    typename Sum<T>::type beta, typename Sum<T>::type k) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(32) unsigned char shared_memory[];
  A* const ring = reinterpret_cast<A*>(shared_memory) + threadIdx.x;  // the g of channel j is number j % size
  const I runs = I((channels + run - 1) / run);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I rest = i / inner, outer = rest / runs, start = outer * I(channels) * inner + (i - rest * inner);
    const int begin = int(rest - outer * runs) * run, end = min(begin + run, channels);
    int next = max(0, begin - after);  // the first channel whose g is not in the ring
    for (int c = begin; c < end; ++c) {
      const Channels window(c, after, before, channels);
      for (; next <= window.last; ++next) {
        const I at = start + I(next) * inner;
        const A d = denominator<S>(x + start, next, channels, inner, before, after, share, k);
        ring[next % size * blockDim.x] = widen(dy[at]) * pow(d, -beta) * widen(x[at]) / d;
      }
      S sum = 0;
      for (int j = window.first; j <= window.last; ++j) sum += S(ring[j % size * blockDim.x]);
      const I at = start + I(c) * inner;
      const A d = denominator<S>(x + start, c, channels, inner, before, after, share, k);
      dx[at] = narrow<T>(widen(dy[at]) * pow(d, -beta) - A(2) * share * beta * widen(x[at]) * A(sum));
    }
  }
}
