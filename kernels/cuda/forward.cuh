// forward.cuh - y of cells whose statistics are known, and the statistics of the cells that a team holds.
#pragma once

// y = (x - shift) * scale + offset
template <typename A> struct Line {
  A shift, scale, offset;

  Line() = default;
  __device__ __forceinline__ Line(const Moments<A>& m, A gamma, A beta)
      : shift(m.shift), scale(m.rstd * gamma), offset(beta - m.delta * scale) {}
  template <typename T> __device__ __forceinline__ A operator()(T x) const { return (widen(x) - shift) * scale + offset; }
};

template <typename A> __device__ __forceinline__ Line<A> line_of(const void* gammas, const void* betas, int given, unsigned i,
    const Moments<A>& m) {
  return {m, given & GAMMA ? static_cast<const A*>(gammas)[i] : A(1), given & BETA ? static_cast<const A*>(betas)[i] : A(0)};
}

enum Own { ROW, CHANNEL, CELL };  // which parameter a cell has: its row's, its channel's in a group, or one of its own

// y of a row's packs. `first`: the row's first parameter; `own`: packs of a channel.
template <typename T, int V, int Own> struct Affine {
  using A = typename Sum<T>::type;
  const A *gammas, *betas;
  int given;
  unsigned own, first;
  Moments<A> m;
  Line<A> line;

  __device__ __forceinline__ Affine(const void* g, const void* b, int given, unsigned row, unsigned length, unsigned period,
      unsigned own, const Moments<A>& m)
      : gammas(static_cast<const A*>(g)), betas(static_cast<const A*>(b)), given(given), own(own),
        first(row % period * (Own == CHANNEL ? length / own : 1u)), m(m) {
    line = Own == ROW ? line_of(g, b, given, first, m) : Line<A>(m, A(1), A(0));
  }
  __device__ __forceinline__ Pack<T, V> operator()(unsigned j, const Pack<T, V>& x) {
    if constexpr (Own == CHANNEL) line = line_of(gammas, betas, given, first + j / own, m);
    Pack<A, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = line(x.v[v]);
    if constexpr (Own == CELL) {
      if (given & GAMMA) {
        const Pack<A, V> gamma = reinterpret_cast<const Pack<A, V>*>(gammas)[j];
#pragma unroll
        for (int v = 0; v < V; ++v) out.v[v] *= gamma.v[v];
      }
      if (given & BETA) {
        const Pack<A, V> beta = reinterpret_cast<const Pack<A, V>*>(betas)[j];
#pragma unroll
        for (int v = 0; v < V; ++v) out.v[v] += beta.v[v];
      }
    }
    Pack<T, V> y;
#pragma unroll
    for (int v = 0; v < V; ++v) y.v[v] = narrow<T>(out.v[v]);
    return y;
  }
};

// The statistics of what a team holds: of all of it (N 1), or of each of a pack's N channels. mean = shift + delta, and the
// squares about it. `pivot`: one of the values, from which the rough mean is measured: near a large mean, and among
// equals, nothing is rounded. `total` adds up numbers over the team.
template <bool Centred, int V, int N, typename A, typename H, typename Total>
__device__ __forceinline__ void measure(const H& held, A cells, const A (&pivot)[N], const Total& total, A (&shift)[N],
    A (&delta)[N], A (&squares)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) shift[n] = delta[n] = 0;
  if constexpr (Centred) {
    const A inverse = A(1) / cells;  // times each value: their sum could overflow
    held.each([&](unsigned, const auto& pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) shift[v % N] += (widen(pack.v[v]) - pivot[v % N]) * inverse;
    });
    total(shift);
#pragma unroll
    for (int n = 0; n < N; ++n) shift[n] += pivot[n];
  }
  A sum[2 * N] = {};
  held.each([&](unsigned, const auto& pack) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A away = widen(pack.v[v]) - shift[v % N];
      sum[v % N] += away;
      sum[N + v % N] += away * away;
    }
  });
  total(sum);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    squares[n] = sum[N + n];
    if constexpr (Centred) {
      delta[n] = sum[n] / cells;
      squares[n] -= sum[n] * delta[n];
      if (squares[n] < 0) squares[n] = 0;
    }
  }
}

// y of a pack of V channels.
template <typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> affine(const Line<A> (&lines)[V], const Pack<T, V>& x) {
  Pack<T, V> y;
#pragma unroll
  for (int v = 0; v < V; ++v) y.v[v] = narrow<T>(lines[v](x.v[v]));
  return y;
}
