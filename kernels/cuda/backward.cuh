// backward.cuh - dx of cells, and the sums over cells that it, dgamma and dbeta are made of.
//
//   dx = rstd * (gamma * dy - sum(gamma * dy) / n - xhat * sum(gamma * dy * xhat) / n)
#pragma once

template <typename A> __device__ __forceinline__ A gamma_of(const void* gammas, int given, unsigned i) {
  return given & GAMMA ? static_cast<const A*>(gammas)[i] : A(1);
}

// dgamma and dbeta of a channel: one thread's business. along, plain: the sums of dy * xhat and of dy.
template <typename A>
__device__ __forceinline__ void write_gradients(void* dgammas, void* dbetas, int given, unsigned i, double plain, double along) {
  if (given & DGAMMA) static_cast<A*>(dgammas)[i] = A(along);
  if (given & DBETA) static_cast<A*>(dbetas)[i] = A(plain);
}

// dx = (gamma * dy - (x - shift) * slope - offset) * rstd
template <typename A> struct Slope {
  A shift, rstd, slope, offset;

  Slope() = default;
  // plain, along: the sums of gamma * dy and of that times xhat over the n cells that share statistics
  __device__ __forceinline__ Slope(const Moments<A>& m, A plain, A along, A n)
      : shift(m.shift), rstd(m.rstd), slope(m.rstd * (along / n)), offset(plain / n - m.delta * slope) {}
  template <typename T> __device__ __forceinline__ T operator()(T x, A h) const {  // h: gamma * dy
    return narrow<T>((h - ((widen(x) - shift) * slope + offset)) * rstd);
  }
};

// dx of a pack whose cells have N (1 or V) channels.
template <int N, typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> slopes(const Slope<A> (&slope)[N], const A (&gamma)[N], const Pack<T, V>& x,
    const Pack<T, V>& dy) {
  Pack<T, V> dx;
#pragma unroll
  for (int v = 0; v < V; ++v) dx.v[v] = slope[v % N](x.v[v], gamma[v % N] * widen(dy.v[v]));
  return dx;
}

// dx of a pack where statistics were given: scale = rstd * gamma.
template <int N, typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> scaled(const A (&scale)[N], const Pack<T, V>& dy) {
  Pack<T, V> dx;
#pragma unroll
  for (int v = 0; v < V; ++v) dx.v[v] = narrow<T>(widen(dy.v[v]) * scale[v % N]);
  return dx;
}

// sum[n] += dy, sum[N + n] += dy * (x - shift), of all cells (N 1) or of each of a pack's N channels
template <int N, typename A, typename T, int V>
__device__ __forceinline__ void add(A (&sum)[2 * N], const Pack<T, V>& x, const Pack<T, V>& dy, const A (&shift)[N]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sum[v % N] += widen(dy.v[v]);
    sum[N + v % N] += widen(dy.v[v]) * (widen(x.v[v]) - shift[v % N]);
  }
}

// K packs of x and dy, so many in flight: visit(offset, x, dy) for each of positions j, j + step, ... below `end`. Where x
// is not `needed`, dy stands for it.
template <int K, typename T, int V, typename At, typename Visit>
__device__ __forceinline__ void in_flight(const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, bool needed,
    const At& at, unsigned j, unsigned step, unsigned end, const Visit& visit) {
  Pack<T, V> px[K], pg[K];
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (j + k * step < end) {
      pg[k] = dy[at(j + k * step)];
      if (needed) px[k] = x[at(j + k * step)];
      else px[k] = pg[k];
    }
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (j + k * step < end) visit(j + k * step, px[k], pg[k]);
}

// Where channels come last: the sums of dy and of dy * xhat, from that of dy * (x - shift).
__device__ __forceinline__ Pair known(double plain, double away, double shift, double mean, double rstd) {
  return {plain, (away - (mean - shift) * plain) * rstd};
}

// The sums of a channel of a sample: to be added to other samples', or its gradients. One thread's business.
template <typename A> __device__ __forceinline__ void record(void* dgammas, void* dbetas, Pair* sums, int given, unsigned samples,
    long long row, const Pair& all) {
  sums[row] = all;
  if (samples == 1) write_gradients<A>(dgammas, dbetas, given, unsigned(row), all.v[0], all.v[1]);
}
