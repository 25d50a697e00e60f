// norm.cu - the forward of batch, group, instance, layer and RMS norm over rows that lie as rows.cuh says.
//
//   y = (x - mean) * rstd * gamma + beta,    rstd = 1 / sqrt(var + eps)
//
// Layout    contiguous; x and y in packs of V values that lie on pack boundaries and within a segment.
// Types     T float, __half, __nv_bfloat16 with sums and parameters in float, or double with double. mean and rstd are
//           stored as double, running statistics have any floating dtype. I (offsets) unsigned below 2**31 elements, else
//           unsigned long long.
// Own       which parameter a cell has: ROW its row's (row % period: batch, instance); CHANNEL its channel's, a row being
//           a group of channels of `own` packs each; CELL one of its own.
// NaN       a row that holds one becomes NaN.
// Thread    the packs of its team's row that fall to it (rows.cuh): held in registers, then in shared memory, while the
//           row's rough mean, its mean and squares about that, and y are worked out one after another.
// Ways      norm_forward: a row in a warp, in a block, or in `parts` blocks of a cooperative grid that takes `turn` rows at
//           a time, one grid barrier each. Rows that do not fit: norm_moments, then norm_apply, which reads x again.
// Bytes     2 T an element, read once and written once; two launches 3 T, unless x is still in the L2 cache.
// Source    Chan, Golub and LeVeque 1983 (the corrected two-pass variance, and joining parts); the library's portable code
//           (functional/rows.py).
#include <cooperative_groups.h>
#include "common.cuh"
#include "record.cuh"
#include "rows.cuh"

enum Own { ROW, CHANNEL, CELL };
#define ARRAYS const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas, const void* __restrict__ betas, \
    Pack<T, V>* __restrict__ y, Pair* partial
#define NUMBERS unsigned rows, unsigned segments, unsigned length, unsigned period, unsigned own

// y of a row's packs.
template <typename T, int V, int Own> struct Affine {
  using A = typename Sum<T>::type;
  const A *gammas, *betas;
  int given;
  unsigned own, first;  // first: the row's first parameter
  Moments<A> m;
  A scale, offset;  // of the row

  __device__ __forceinline__ Affine(const void* g, const void* b, int given, unsigned row, unsigned length, unsigned period,
      unsigned own, Moments<A> m)
      : gammas(static_cast<const A*>(g)), betas(static_cast<const A*>(b)), given(given), own(own),
        first(row % period * (Own == CHANNEL ? length / own : 1u)), m(m) {
    if constexpr (Own == ROW) choose(first);
    else scale = m.rstd, offset = -m.delta * m.rstd;
  }
  __device__ __forceinline__ void choose(unsigned parameter) {
    scale = given & GAMMA ? m.rstd * gammas[parameter] : m.rstd;
    offset = (given & BETA ? betas[parameter] : A(0)) - m.delta * scale;
  }
  __device__ __forceinline__ Pack<T, V> operator()(unsigned j, const Pack<T, V>& x) {
    Pack<A, V> out;
    if constexpr (Own == CHANNEL) choose(first + j / own);
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = (widen(x.v[v]) - m.shift) * scale + offset;
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

// shift, delta and the squares about the mean of what a team holds. The rough mean is measured from `pivot`, one of the
// row's values: near a large mean, and in a row of equals, nothing is rounded.
template <bool Lanes, bool Centred, typename A, int V, typename H>
__device__ __forceinline__ A measure(const H& held, int lanes, A pivot, A& shift, A& delta) {
  const A cells = A(held.size) * V;
  shift = delta = 0;
  if constexpr (Centred) {
    A rough[1] = {0};
    const A inverse = A(1) / cells;  // times each value: their sum could overflow
    held.each([&](unsigned, const auto& pack) {
#pragma unroll
      for (int v = 0; v < V; ++v) rough[0] += (widen(pack.v[v]) - pivot) * inverse;
    });
    sum_team<Lanes>(rough, lanes);
    shift = pivot + rough[0];
  }
  A sum[2] = {0, 0};
  held.each([&](unsigned, const auto& pack) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A away = widen(pack.v[v]) - shift;
      sum[0] += away;
      sum[1] += away * away;
    }
  });
  sum_team<Lanes>(sum, lanes);
  if constexpr (!Centred) return sum[1];
  delta = sum[0] / cells;
  const A squares = sum[1] - sum[0] * delta;
  return squares < 0 ? A(0) : squares;
}

template <typename T, int V, int R, typename I, int Own, bool Centred, int Way>
__global__ void __launch_bounds__(512, 1) norm_forward(ARRAYS, KEPT, NUMBERS, int lanes, unsigned parts, unsigned turn) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(16) unsigned char far[];
  __shared__ Moments<A> told[1];
  const unsigned step = Way == TEAM ? lanes : blockDim.x, packs = segments * length, share = (packs + parts - 1) / parts;
  const unsigned team = Way == TEAM ? blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes : blockIdx.x;
  const unsigned part = Way == GRID ? team % parts : 0u, begin = part * share;
  Held<T, V, R, Way != TEAM> held;
  held.far = reinterpret_cast<Pack<T, V>*>(far);
  held.lane = threadIdx.x % step;
  held.step = step;

  for (unsigned before = 0; before < rows; before += turn) {
    const unsigned row = before + (Way == GRID ? team / parts : team);
    const bool here = row < rows;
    const Row<I> at{rows, row, length};
    held.size = here ? least(share, packs - begin) : 0u;
    held.load(x, at, begin);
    const A pivot = Centred && held.size ? widen(x[at(begin)].v[0]) : A(0);
    Moments<A> m;
    const A squares = measure<Way == TEAM, Centred, A, V>(held, lanes, pivot, m.shift, m.delta);
    if constexpr (Way == GRID) {
      if (here && threadIdx.x == 0) partial[I(row) * parts + part] = {double(m.shift) + double(m.delta), double(squares)};
      cooperative_groups::this_grid().sync();
      if (here && threadIdx.x < 32) {
        double mean, var;
        combine<V>(partial + I(row) * parts, parts, 1u, share, packs, mean, var);
        const double rstd = 1.0 / sqrt(var + eps);
        if (threadIdx.x == 0) told[0] = {A(mean), A(mean - double(A(mean))), A(rstd)};
        if (threadIdx.x == 0 && part == 0) KEEP(row, double(packs) * V, mean, var, rstd);
      }
      __syncthreads();
      m = told[0];
    } else {
      const A var = squares / (A(packs) * V);
      m.rstd = A(1) / sqrt(var + A(eps));
      if (here && held.lane == 0) {
        KEEP(row, double(packs) * V, double(m.shift) + double(m.delta), double(var), double(m.rstd));
      }
    }
    Affine<T, V, Own> affine(gammas, betas, given, row, length, period, own, m);
    held.each([&](unsigned j, const Pack<T, V>& pack) { y[at(begin + j)] = affine(begin + j, pack); });
  }
}

// Of each part of a row: its mean, and the squares about it. Block: one part, in tiles that its registers hold.
template <typename T, int V, int R, typename I, bool Centred>
__global__ void __launch_bounds__(512, 1) norm_moments(const Pack<T, V>* __restrict__ x, Pair* __restrict__ partial, unsigned rows,
    unsigned segments, unsigned length, unsigned parts, unsigned first) {
  using A = typename Sum<T>::type;
  const unsigned packs = segments * length, share = (packs + parts - 1) / parts, tile = R * blockDim.x;
  const unsigned row = first + blockIdx.x / parts, part = blockIdx.x % parts, begin = part * share;
  const unsigned size = least(share, packs - begin);
  const Row<I> at{rows, row, length};
  Held<T, V, R, false> held;
  held.lane = threadIdx.x;
  held.step = blockDim.x;
  const A pivot = widen(x[at(begin)].v[0]);
  double mean = 0.0, squares = 0.0, cells = 0.0;
  for (unsigned done = 0; done < size; done += tile) {
    held.size = least(tile, size - done);
    held.load(x, at, begin + done);
    A shift, delta;
    const A more = measure<false, Centred, A, V>(held, 32, pivot, shift, delta);
    if (threadIdx.x == 0) {  // Chan's formula for two
      const double here = double(held.size) * V, away = double(shift) + double(delta) - mean;
      cells += here;
      mean += away * (here / cells);
      squares += double(more) + away * away * here * ((cells - here) / cells);
    }
  }
  if (threadIdx.x == 0) partial[I(row) * parts + part] = {mean, squares};
}

// y, where the rows' statistics are known: from norm_moments' parts, or (`Served`) from the running ones. Block: one part.
template <typename T, int V, typename I, int Own, bool Served>
__global__ void __launch_bounds__(512, 2) norm_apply(ARRAYS, KEPT, NUMBERS, unsigned moment_parts, unsigned parts, unsigned first) {
  using A = typename Sum<T>::type;
  __shared__ Moments<A> told[1];
  const unsigned packs = segments * length, share = (packs + parts - 1) / parts;
  const unsigned row = first + blockIdx.x / parts, part = blockIdx.x % parts, begin = part * share;
  if (threadIdx.x < 32) {
    double mean, var;
    if constexpr (Served) {
      mean = read_any(running_mean, mean_kind, row);
      var = read_any(running_var, var_kind, row);
    } else {
      combine<V>(partial + I(row) * moment_parts, moment_parts, 1u, (packs + moment_parts - 1) / moment_parts, packs, mean,
          var);
    }
    if (threadIdx.x == 0) {
      const double rstd = 1.0 / sqrt(var + eps);
      told[0] = {A(mean), A(mean - double(A(mean))), A(rstd)};
      if (part == 0) KEEP(row, double(packs) * V, mean, var, rstd);
    }
  }
  __syncthreads();
  const Row<I> at{rows, row, length};
  Affine<T, V, Own> affine(gammas, betas, given, row, length, period, own, told[0]);
  const unsigned end = least(begin + share, packs);
#pragma unroll 4
  for (unsigned j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const Pack<T, V> pack = x[at(j)];  // copied: through a reference its values are read singly
    y[at(j)] = affine(j, pack);
  }
}
