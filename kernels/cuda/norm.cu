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
// NaN       a row that holds one, or an infinity, becomes NaN, and so do its statistics.
// Thread    the packs of its team's row that fall to it (rows.cuh): held in registers, then in shared memory, while the
//           row's rough mean, its mean and squares about that, and y are worked out one after another.
// Ways      norm_forward: a row in a warp or in a block; norm_grid.cu has rows in several blocks. Rows that do not fit:
//           norm_moments, then norm_apply, which reads x again. Given statistics: norm_apply.
// Bytes     2 T an element, read once and written once; two launches 3 T, unless x is still in the L2 cache.
// Source    Chan, Golub and LeVeque 1983 (the corrected two-pass variance, and joining parts); the library's portable code
//           (functional/rows.py).
#include "common.cuh"
#include "rows.cuh"
#include "record.cuh"
#include "forward.cuh"

#define ARRAYS const Pack<T, V>* __restrict__ x, const void* __restrict__ gammas, const void* __restrict__ betas, \
    Pack<T, V>* __restrict__ y
#define NUMBERS unsigned rows, unsigned segments, unsigned length, unsigned period, unsigned own

template <typename T, int V, int R, typename I, int Own, bool Centred, int Way>
__global__ void __launch_bounds__(512, 1) norm_forward(ARRAYS, KEPT, NUMBERS, int lanes) {
  using A = typename Sum<T>::type;
  extern __shared__ __align__(16) unsigned char far[];
  const unsigned step = Way == TEAM ? lanes : blockDim.x, packs = segments * length;
  const unsigned row = blockIdx.x * (blockDim.x / step) + threadIdx.x / step;
  const bool here = row < rows;
  const Row<I> at{rows, row, length};
  Held<T, V, R, Way == BLOCK> held(threadIdx.x % step, step, reinterpret_cast<Pack<T, V>*>(far));
  held.size = here ? packs : 0u;
  held.load(x, at, 0);
  const A pivot[1] = {Centred && here ? widen(x[at(0)].v[0]) : A(0)}, cells = A(packs) * V;
  A shift[1], delta[1], squares[1];
  const auto total = [&](auto& v) { sum_team<Way == TEAM>(v, lanes); };
  measure<Centred, V>(held, cells, pivot, total, shift, delta, squares);
  const A var = squares[0] / cells;
  const Moments<A> m{shift[0], delta[0], A(1) / sqrt(var + A(eps))};
  if (here && held.lane == 0) KEEP(row, double(packs) * V, double(m.shift) + double(m.delta), double(var), double(m.rstd));
  Affine<T, V, Own> affine(gammas, betas, given, row, length, period, own, m);
  held.each([&](unsigned j, const Pack<T, V>& pack) { y[at(j)] = affine(j, pack); });
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
  const A pivot[1] = {widen(x[at(begin)].v[0])};
  Held<T, V, R, false> held(threadIdx.x, blockDim.x);
  double mean = 0.0, squares = 0.0, cells = 0.0;
  for (unsigned done = 0; done < size; done += tile) {
    held.size = least(tile, size - done);
    held.load(x, at, begin + done);
    A shift[1], delta[1], more[1];
    measure<Centred, V>(held, A(held.size) * V, pivot, [](auto& v) { sum_block(v); }, shift, delta, more);
    if (threadIdx.x == 0) {  // Chan's formula for two
      const double here = double(held.size) * V, away = double(shift[0]) + double(delta[0]) - mean;
      cells += here;
      mean += away * (here / cells);
      squares += double(more[0]) + away * away * here * ((cells - here) / cells);
    }
  }
  if (threadIdx.x == 0) partial[I(row) * parts + part] = {mean, squares};
}

// y, where the rows' statistics are known: from norm_moments' parts, or (`Served`) from the running ones. Block: one part.
template <typename T, int V, typename I, int Own, bool Served>
__global__ void __launch_bounds__(512, 2) norm_apply(ARRAYS, const Pair* __restrict__ partial, KEPT, NUMBERS,
    unsigned moment_parts, unsigned parts, unsigned first) {
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
      told[0] = moments_of<A>(mean, rstd);
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
