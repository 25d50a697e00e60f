// local_response_norm.cu - local response normalisation and its gradient.
//
//     y[c] = x[c] d[c]^-beta,    d[c] = k + share * sum(x[j]^2, j from c - before to c + after),    share = alpha / size
//     dx[c] = dy[c] d[c]^-beta - 2 beta share x[c] * sum(g[j], j from c - after to c + before),  g = dy x d^(-beta - 1)
//
// Layout    (outer, channels, inner), contiguous; channels last has inner = 1. Channels outside the array count as 0.
// Types     T any float; computed in Sum<T>, sums in S: double for windows of many channels.
// NaN       spreads to the cells whose window holds it.
// Thread    narrow windows, whose size is known when it is compiled: N channels of V neighbouring places (V = 1 in channels
//           last). It loads them and what their windows need around them at once, and stores N packs. Wide windows:
//           forward, one cell, whose window it adds up in order of channels; backward, a run of `run` channels at one place:
//           it works out g once for each channel of the run and of the window around it, and keeps the last `size` of them
//           in a ring of its own in shared memory; so threads wait for nobody.
// Bytes     each array once from memory; what windows share comes from the caches.
// Source    functional/local_response_norm.py.
#include "common.cuh"

// sqrt(v) for elements of type T: of 16 bits by the device's own instruction.
template <typename T, typename A> __device__ __forceinline__ A square_root(A v) {
#ifndef SIMT_HOST
  if constexpr (sizeof(T) == 2) {
    asm("sqrt.approx.ftz.f32 %0, %0;" : "+f"(v));
    return v;
  }
#endif
  return sqrt(v);
}

// d^-beta and d^(-beta - 1).
template <typename T, bool ThreeQuarters> struct Powers {
  using A = typename Sum<T>::type;
  A power, next;

  __device__ __forceinline__ Powers(A d, A beta) {
    if constexpr (ThreeQuarters) {
      const A root = rsqrt(d);
      power = root * square_root<T>(root);
      next = power * (root * root);
    } else {
      if constexpr (sizeof(T) == 2) power = d > 0 ? __powf(d, -beta) : pow(d, -beta);
      else power = pow(d, -beta);
      next = ratio<T>(power, d);
    }
  }
};

#define PARAMETERS typename Sum<T>::type share, typename Sum<T>::type beta, typename Sum<T>::type k

// ------------------------------------------------------------------------------------------------------ narrow windows
// Which N channels, from `begin` on, and which packs of places a thread takes. Channel c is at `column` + c * inner.
template <int N, typename I> struct Run {
  I column, inner;
  int begin, channels;

  __device__ __forceinline__ Run(I i, const Divisor<I>& inner_of, const Divisor<I>& runs_of, int channels)
      : inner(inner_of.number), channels(channels) {
    const I rest = inner_of.quotient(i), outer = runs_of.quotient(rest);
    begin = int(rest - outer * runs_of.number) * N;
    column = outer * I(channels) * inner + (i - rest * inner);
  }
  __device__ __forceinline__ bool has(int c) const { return unsigned(c) < unsigned(channels); }
  // Packs of M channels from `first` on, 0 outside the array.
  template <typename P, int M> __device__ __forceinline__ void load(P (&packs)[M], const P* __restrict__ x, int first) const {
#pragma unroll
    for (int j = 0; j < M; ++j) {
      packs[j] = P{};
      if (has(first + j)) packs[j] = x[column + I(first + j) * inner];
    }
  }
};
#define RUN \
  const I i = I(blockIdx.x) * blockDim.x + threadIdx.x; \
  if (i >= n) return; \
  const Run<N, I> run(i, LOAD_DIVISOR(inner, inner), LOAD_DIVISOR(runs, runs), channels);
#define RUN_ARGUMENTS I n, I inner, DIVISOR(inner), I runs, DIVISOR(runs), int channels

// d of M channels from the squares of their windows of Size.
template <int Size, typename A, int M>
__device__ __forceinline__ void denominators(A (&d)[M], const A (&squares)[M + Size - 1], A share, A k) {
#pragma unroll
  for (int c = 0; c < M; ++c) {
    A sum = 0;
#pragma unroll
    for (int j = 0; j < Size; ++j) sum += squares[c + j];
    d[c] = share * sum + k;
  }
}

template <typename T, int Size, int N, int V, bool ThreeQuarters, typename I>
__global__ void __launch_bounds__(256, 3)
    local_response_norm(const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ y, RUN_ARGUMENTS, PARAMETERS) {
  using A = typename Sum<T>::type;
  constexpr int BEFORE = Size / 2;
  RUN;
  Pack<T, V> in[N + Size - 1], out[N];
  run.load(in, x, run.begin - BEFORE);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    A squares[N + Size - 1], d[N];
#pragma unroll
    for (int j = 0; j < N + Size - 1; ++j) squares[j] = widen(in[j].v[v]) * widen(in[j].v[v]);
    denominators<Size>(d, squares, share, k);
#pragma unroll
    for (int c = 0; c < N; ++c)
      out[c].v[v] = narrow<T>(widen(in[c + BEFORE].v[v]) * Powers<T, ThreeQuarters>(d[c], beta).power);
  }
#pragma unroll
  for (int c = 0; c < N; ++c)
    if (run.has(run.begin + c)) y[run.column + I(run.begin + c) * inner] = out[c];
}

template <typename T, int Size, int N, int V, bool ThreeQuarters, typename I>
__global__ void __launch_bounds__(256, 2) local_response_norm_backward(const Pack<T, V>* __restrict__ dy,
    const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ dx, RUN_ARGUMENTS, PARAMETERS) {
  using A = typename Sum<T>::type;
  constexpr int AFTER = (Size - 1) / 2, M = N + Size - 1;  // M channels have a g that the N need
  RUN;
  Pack<T, V> in[M + Size - 1], gradient[M], out[N];
  run.load(in, x, run.begin - (Size - 1));
  run.load(gradient, dy, run.begin - AFTER);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    A squares[M + Size - 1], d[M], g[M], direct[N];
#pragma unroll
    for (int j = 0; j < M + Size - 1; ++j) squares[j] = widen(in[j].v[v]) * widen(in[j].v[v]);
    denominators<Size>(d, squares, share, k);
#pragma unroll
    for (int j = 0; j < M; ++j) {
      const Powers<T, ThreeQuarters> d_to(d[j], beta);
      const A own = widen(gradient[j].v[v]);
      g[j] = run.has(run.begin - AFTER + j) ? own * d_to.next * widen(in[j + Size / 2].v[v]) : A(0);
      if (j >= AFTER && j - AFTER < N) direct[j - AFTER] = own * d_to.power;
    }
#pragma unroll
    for (int c = 0; c < N; ++c) {
      A sum = 0;
#pragma unroll
      for (int j = 0; j < Size; ++j) sum += g[c + j];
      out[c].v[v] = narrow<T>(direct[c] - A(2) * share * beta * widen(in[c + Size - 1].v[v]) * sum);
    }
  }
#pragma unroll
  for (int c = 0; c < N; ++c)
    if (run.has(run.begin + c)) dx[run.column + I(run.begin + c) * inner] = out[c];
}

// -------------------------------------------------------------------------------------------------------- wide windows
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

template <typename T, typename S, bool ThreeQuarters, typename I>
__global__ void __launch_bounds__(256) wide_local_response_norm(const T* __restrict__ x, T* __restrict__ y, I n, I inner,
    int channels, int before, int after, PARAMETERS) {
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I row = i / inner, outer = row / I(channels), place = i - row * inner;
    const int c = int(row - outer * I(channels));
    const T* const column = x + outer * I(channels) * inner + place;
    const auto d = denominator<S>(column, c, channels, inner, before, after, share, k);
    y[i] = narrow<T>(widen(x[i]) * Powers<T, ThreeQuarters>(d, beta).power);
  }
}

// n runs: those of all places of the first `run` channels, then of the next, and so on, for each outer index.
template <typename T, typename S, bool ThreeQuarters, typename I>
__global__ void __launch_bounds__(256) wide_local_response_norm_backward(const T* __restrict__ dy, const T* __restrict__ x,
    T* __restrict__ dx, I n, I inner, int channels, int before, int after, int size, int run, PARAMETERS) {
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
        const Powers<T, ThreeQuarters> d_to(denominator<S>(x + start, next, channels, inner, before, after, share, k), beta);
        ring[next % size * blockDim.x] = widen(dy[at]) * d_to.next * widen(x[at]);
      }
      S sum = 0;
      for (int j = window.first; j <= window.last; ++j) sum += S(ring[j % size * blockDim.x]);
      const I at = start + I(c) * inner;
      const Powers<T, ThreeQuarters> d_to(denominator<S>(x + start, c, channels, inner, before, after, share, k), beta);
      dx[at] = narrow<T>(widen(dy[at]) * d_to.power - A(2) * share * beta * widen(x[at]) * A(sum));
    }
  }
}
