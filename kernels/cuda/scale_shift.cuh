// scale_shift.cuh - y of elements whose statistics are known, and the statistics of the elements that a team works on.
#pragma once

// y = (x - shift) * scale + offset
template <typename A> struct ScaleShift {
  A shift, scale, offset;

  ScaleShift() = default;
  __device__ __forceinline__ ScaleShift(const Moments<A>& m, A gamma, A beta)
      : shift(m.shift), scale(m.rstd * gamma), offset(beta - m.delta * scale) {}
  template <typename T> __device__ __forceinline__ A operator()(T x) const { return (widen(x) - shift) * scale + offset; }
};

template <typename A>
__device__ __forceinline__ ScaleShift<A> scale_shift_of(
    const void* gammas, const void* betas, int flags, unsigned i, const Moments<A>& m) {
  return {m, flags & GAMMA ? static_cast<const A*>(gammas)[i] : A(1), flags & BETA ? static_cast<const A*>(betas)[i] : A(0)};
}

// Whether gamma and beta have one value a row, one a channel (a row being a group of channels), or one an element of a row.
enum ParameterMode { PER_ROW, PER_CHANNEL, PER_ELEMENT };

// y of a row's packs. It loads a row's gamma and beta when it is made, while x is on its way; `set` takes the statistics.
// `first`: index of the row's first parameter; `channel_packs`: packs of a channel.
template <typename T, int V, int ParameterMode> struct RowScaleShift {
  using A = typename Sum<T>::type;
  const A *gammas, *betas;
  int flags;
  Divisor<unsigned> channel_packs;
  unsigned first;
  A gamma = 1, beta = 0;
  Moments<A> m;
  ScaleShift<A> scale_shift;

  __device__ __forceinline__ RowScaleShift(const void* g, const void* b, int flags, unsigned row, unsigned length,
      unsigned period, const Divisor<unsigned>& channel_packs)
      : gammas(static_cast<const A*>(g)),
        betas(static_cast<const A*>(b)),
        flags(flags),
        channel_packs(channel_packs),
        first(row % period * (ParameterMode == PER_CHANNEL ? channel_packs.quotient(length) : 1u)) {
    if constexpr (ParameterMode == PER_ROW) load(first);
  }
  __device__ __forceinline__ void load(unsigned i) {
    if (flags & GAMMA) gamma = gammas[i];
    if (flags & BETA) beta = betas[i];
  }
  __device__ __forceinline__ void set(const Moments<A>& moments) {
    m = moments;
    scale_shift = {m, gamma, beta};
  }
  __device__ __forceinline__ Pack<T, V> operator()(unsigned j, const Pack<T, V>& x) {
    if constexpr (ParameterMode == PER_CHANNEL) {
      load(first + channel_packs.quotient(j));
      scale_shift = {m, gamma, beta};
    }
    Pack<A, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = scale_shift(x.v[v]);
    if constexpr (ParameterMode == PER_ELEMENT) {
      if (flags & GAMMA) {
        const Pack<A, V> gamma = reinterpret_cast<const Pack<A, V>*>(gammas)[j];
#pragma unroll
        for (int v = 0; v < V; ++v) out.v[v] *= gamma.v[v];
      }
      if (flags & BETA) {
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

// Mean (as shift + delta) and sum of squared deviations of a team's elements: of all of them (N 1), or of each of a pack's N
// channels. `pivot`: one of the values. It is subtracted before the first estimate of the mean is summed, so that values
// close to a large mean, or all equal, lose nothing. `sum_over_team` sums an array of numbers over the team.
template <bool Centred, int V, int N, typename A, typename Tile, typename Total>
__device__ __forceinline__ void compute_statistics(
    const Tile& tile, A cells, const A (&pivot)[N], const Total& sum_over_team, A (&shift)[N], A (&delta)[N], A (&squares)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) shift[n] = delta[n] = 0;
  if constexpr (Centred) {
    const A inverse = A(1) / cells;  // times each value: their sum could overflow
    tile.each([&](unsigned, const auto& pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) shift[v % N] += (widen(pack.v[v]) - pivot[v % N]) * inverse;
    });
    sum_over_team(shift);
#pragma unroll
    for (int n = 0; n < N; ++n) shift[n] += pivot[n];
  }
  A sum[2 * N] = {};
  tile.each([&](unsigned, const auto& pack) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A deviation = widen(pack.v[v]) - shift[v % N];
      sum[v % N] += deviation;
      sum[N + v % N] += deviation * deviation;
    }
  });
  sum_over_team(sum);
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

// Mean and squared deviations of each of N channels over the packs that one thread reads, K of them at a time: element v of
// a pack is of channel v % N. What is summed is the distance to `pivot`, the mean of the thread's first packs, so that
// float32 is exact enough; if not Centred, the pivot and the mean are 0.
template <int N, typename A, bool Centred> struct RunningMoments {
  A pivot[N] = {}, sum[N] = {}, squares[N] = {}, cells = 0;  // cells: of each channel

  // Adds the first `number` of K packs, at least one.
  template <int K, typename T, int V>
  __device__ __forceinline__ void add(const Pack<T, V> (&packs)[K], unsigned number) {
    if (Centred && cells == 0) {
      constexpr int FIRST = N == 1 && K > 2 ? 2 : K;  // packs that are enough for it
      A mean[N] = {};
      const A inverse = A(N) / (A(min_unsigned(number, FIRST)) * V);
#pragma unroll
      for (int k = 0; k < FIRST; ++k)
        if (k < number)
#pragma unroll
          for (int v = 0; v < V; ++v) mean[v % N] += (widen(packs[k].v[v]) - widen(packs[0].v[v % N])) * inverse;
#pragma unroll
      for (int n = 0; n < N; ++n) pivot[n] = widen(packs[0].v[n]) + mean[n];
    }
    A more[2 * N] = {};
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k < number)
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A deviation = widen(packs[k].v[v]) - pivot[v % N];
          more[v % N] += deviation;
          more[N + v % N] += deviation * deviation;
        }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      sum[n] += more[n];
      squares[n] += more[N + n];
    }
    cells += A(number) * (V / N);
  }

  // Mean (as a distance to `origin`, one of the values) and squared deviations over the team, which has `all` cells of each
  // channel. `sum_over_team` sums an array of numbers over the team.
  template <typename Total>
  __device__ __forceinline__ void combine(const A (&origin)[N], A all, const Total& sum_over_team, A (&mean)[N], A (&total)[N]) const {
    const A inverse = cells > 0 ? A(1) / cells : A(0), share = cells / all;
    A own[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      own[n] = (pivot[n] - origin[n]) + sum[n] * inverse;
      mean[n] = Centred ? own[n] * share : A(0);
      total[n] = Centred ? squares[n] - sum[n] * (sum[n] * inverse) : squares[n];
    }
    if constexpr (Centred) {
      sum_over_team(mean);
#pragma unroll
      for (int n = 0; n < N; ++n) total[n] += cells * (own[n] - mean[n]) * (own[n] - mean[n]);
    }
    sum_over_team(total);
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (total[n] < 0) total[n] = 0;
  }
};

// y of a pack of V channels.
template <typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> apply_scale_shift(const ScaleShift<A> (&scale_shifts)[V], const Pack<T, V>& x) {
  Pack<T, V> y;
#pragma unroll
  for (int v = 0; v < V; ++v) y.v[v] = narrow<T>(scale_shifts[v](x.v[v]));
  return y;
}
