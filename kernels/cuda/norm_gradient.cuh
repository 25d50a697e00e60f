// norm_gradient.cuh - dx of elements, and the sums over elements that dx, dgamma and dbeta need.
//
//   dx = rstd * (gamma * dy - sum(gamma * dy) / n - xhat * sum(gamma * dy * xhat) / n)
#pragma once

template <typename A> __device__ __forceinline__ A gamma_of(const void* gammas, int flags, unsigned i) {
  return flags & GAMMA ? static_cast<const A*>(gammas)[i] : A(1);
}

// Writes dgamma and dbeta of channel i from the sums of dy and of dy * xhat. Called by one thread a channel.
template <typename A>
__device__ __forceinline__ void write_gradients(
    void* dgammas, void* dbetas, int flags, unsigned i, double sum_dy, double sum_dy_xhat) {
  if (flags & DGAMMA) static_cast<A*>(dgammas)[i] = A(sum_dy_xhat);
  if (flags & DBETA) static_cast<A*>(dbetas)[i] = A(sum_dy);
}

// dx = (gamma * dy - (x - shift) * slope - offset) * rstd
template <typename A> struct NormGradient {
  A shift, rstd, slope, offset;

  NormGradient() = default;
  // The sums of gamma * dy and of gamma * dy * xhat are those over the n elements that share statistics.
  __device__ __forceinline__ NormGradient(const Moments<A>& m, A sum_gamma_dy, A sum_gamma_dy_xhat, A n)
      : shift(m.shift), rstd(m.rstd), slope(m.rstd * (sum_gamma_dy_xhat / n)),
        offset(sum_gamma_dy / n - m.delta * slope) {}
  template <typename T> __device__ __forceinline__ T operator()(T x, A gamma_dy) const {
    return narrow<T>((gamma_dy - ((widen(x) - shift) * slope + offset)) * rstd);
  }
};

// dx of a pack whose elements have N (1 or V) channels.
template <int N, typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> input_gradient(
    const NormGradient<A> (&gradient)[N], const A (&gamma)[N], const Pack<T, V>& x, const Pack<T, V>& dy) {
  Pack<T, V> dx;
#pragma unroll
  for (int v = 0; v < V; ++v) dx.v[v] = gradient[v % N](x.v[v], gamma[v % N] * widen(dy.v[v]));
  return dx;
}

// dx of a pack where running statistics were used: scale = rstd * gamma.
template <int N, typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> scaled_gradient(const A (&scale)[N], const Pack<T, V>& dy) {
  Pack<T, V> dx;
#pragma unroll
  for (int v = 0; v < V; ++v) dx.v[v] = narrow<T>(widen(dy.v[v]) * scale[v % N]);
  return dx;
}

// sum[n] += dy, sum[N + n] += dy * (x - shift), over all elements (N 1) or for each of a pack's N channels
template <int N, typename A, typename T, int V>
__device__ __forceinline__ void add_products(A (&sum)[2 * N], const Pack<T, V>& x, const Pack<T, V>& dy, const A (&shift)[N]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sum[v % N] += widen(dy.v[v]);
    sum[N + v % N] += widen(dy.v[v]) * (widen(x.v[v]) - shift[v % N]);
  }
}

// visit(position, x, dy) for K packs of each, at positions j, j + step, ... below `end`. All loads are issued before the
// first use. Without `needs_x`, dy is passed in x's place.
template <int K, typename T, int V, typename At, typename Visit>
__device__ __forceinline__ void for_each_prefetched(const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy,
    bool needs_x, const At& at, unsigned j, unsigned step, unsigned end, const Visit& visit) {
  Pack<T, V> x_pack[K], dy_pack[K];
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (j + k * step < end) {
      dy_pack[k] = dy[at(j + k * step)];
      if (needs_x) x_pack[k] = x[at(j + k * step)];
      else x_pack[k] = dy_pack[k];
    }
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (j + k * step < end) visit(j + k * step, x_pack[k], dy_pack[k]);
}

// The sums of dy and of dy * xhat, from the sums of dy and of dy * (x - shift).
__device__ __forceinline__ Pair finish_sums(double sum_dy, double sum_dy_shifted, double shift, double mean, double rstd) {
  return {sum_dy, (sum_dy_shifted - (mean - shift) * sum_dy) * rstd};
}

// Writes the sums of one channel of one sample and, where there is one sample, its dgamma and dbeta. Called by one thread.
template <typename A>
__device__ __forceinline__ void write_sums(
    void* dgammas, void* dbetas, Pair* sums, int flags, unsigned samples, long long row, const Pair& totals) {
  sums[row] = totals;
  if (samples == 1) write_gradients<A>(dgammas, dbetas, flags, unsigned(row), totals.v[0], totals.v[1]);
}
