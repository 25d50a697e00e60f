// norm_cells.cu - dx, dgamma and dbeta of the norms with a parameter for each cell of a row: layer and RMS norm.
//
//   xhat = (x - mean) * rstd    h = dy * gamma    dbeta = sum over rows of dy    dgamma = sum over rows of dy * xhat
//   dx = rstd * (h - sum(h) / n - xhat * sum(h * xhat) / n), the sums over a row's n cells; RMS norm leaves out sum(h)
//
// Layout    contiguous (rows, length) packs of V values on pack boundaries; gamma, dgamma, dbeta (length); what blocks leave
//           of the latter two in `columns`, (2, blocks, length).
// Types     T float, __half, __nv_bfloat16 with parameters and their gradients in float, or double with double. mean and
//           rstd are double. I (offsets) unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through its row of dx, and its column of dgamma and dbeta.
// Ways      cells_backward: a team (lanes of a warp, or whole warps) takes rows one after another; each thread has the same
//           cells of all of them, at most R packs, and keeps their part of dgamma and dbeta. Longer rows, or too few:
//           cells_sums, whose blocks each sum a part of a row, then cells_apply, whose blocks go down some columns.
//           Either way add_columns adds up what the blocks left.
// Sums      float within a row or down a block's rows, double beyond; in a fixed order (rows.cuh), no atomics.
// Bytes     3 T an element; cells_sums and cells_apply 5 T, unless x and dy are still in the L2 cache.
// Source    Ba, Kiros and Hinton 2016 (arXiv:1607.06450), Zhang and Sennrich 2019 (arXiv:1910.07467).
#include "common.cuh"
#include "rows.cuh"
#include "backward.cuh"

template <typename A> __device__ __forceinline__ Moments<A> moments_in(const double* means, const double* rstds, int given,
    unsigned row) {
  return moments_of<A>(given & CENTRED ? means[row] : 0.0, rstds[row]);
}

template <typename A> struct Known {  // what dx, dgamma and dbeta take of a row
  Slope<A> slope;
  A delta;

  Known() = default;
  // plain, away: the sums over the row of h and of h * (x - shift)
  __device__ __forceinline__ Known(const Moments<A>& m, int given, A plain, A away, A n)
      : slope(m, given & CENTRED ? plain : A(0), (away - m.delta * plain) * m.rstd, n), delta(m.delta) {}
};

template <typename A, int V> __device__ __forceinline__ Pack<A, V> gammas_of(const void* gammas, int given, unsigned j) {
  if (given & GAMMA) return static_cast<const Pack<A, V>*>(gammas)[j];
  Pack<A, V> ones;
#pragma unroll
  for (int v = 0; v < V; ++v) ones.v[v] = 1;
  return ones;
}

#define ARRAYS const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means, \
    const double* __restrict__ rstds, const void* __restrict__ gammas

template <typename A, typename T, int V>
__device__ __forceinline__ void add_h(A (&sum)[2], const Pack<T, V>& x, const Pack<T, V>& dy, const Pack<A, V>& gamma, A shift) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A h = widen(dy.v[v]) * gamma.v[v];
    sum[0] += h;
    sum[1] += h * (widen(x.v[v]) - shift);
  }
}

// dx of a pack; its part of dgamma and dbeta is added to these.
template <typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> finish(const Known<A>& row, const Pack<T, V>& x, const Pack<T, V>& dy,
    const Pack<A, V>& gamma, Pack<A, V>& dgamma, Pack<A, V>& dbeta) {
  Pack<T, V> dx;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A g = widen(dy.v[v]);
    dgamma.v[v] += g * ((widen(x.v[v]) - row.slope.shift - row.delta) * row.slope.rstd);
    dbeta.v[v] += g;
    dx.v[v] = row.slope(x.v[v], g * gamma.v[v]);
  }
  return dx;
}

template <typename A, int V> __device__ __forceinline__ Pack<A, V> nothing() {
  Pack<A, V> none;
#pragma unroll
  for (int v = 0; v < V; ++v) none.v[v] = 0;
  return none;
}

// Sums over teams of `warps` warps, of which a block has several; they come here together.
template <typename A> __device__ __forceinline__ void sum_warps(A (&v)[2], unsigned warps) {
  __shared__ A sums[2][32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp - warp % warps;
  sum_lanes(v);
  __syncthreads();  // those who still read earlier sums
  if (lane == 0) sums[0][warp] = v[0], sums[1][warp] = v[1];
  __syncthreads();
  v[0] = lane < warps ? sums[0][first + lane] : A(0);
  v[1] = lane < warps ? sums[1][first + lane] : A(0);
  sum_lanes(v);
}

// Teams of `lanes` threads: of one warp (TEAM), or of several (BLOCK).
template <typename T, int V, int R, typename I, int Way>
__global__ void __launch_bounds__(512, 1) cells_backward(ARRAYS, Pack<T, V>* __restrict__ dx, void* __restrict__ columns,
    int given, unsigned rows, unsigned length, int lanes) {
  using A = typename Sum<T>::type;
  using P = Pack<A, V>;
  __shared__ P room[512];
  const unsigned step = lanes, teams = blockDim.x / step, team = threadIdx.x / step, lane = threadIdx.x % step;
  P dgamma[R], dbeta[R];
#pragma unroll
  for (int r = 0; r < R; ++r) dgamma[r] = dbeta[r] = nothing<A, V>();

  for (unsigned top = blockIdx.x * teams; top < rows; top += gridDim.x * teams) {
    const bool here = top + team < rows;
    const unsigned row = here ? top + team : top, size = here ? length : 0u;
    Pack<T, V> px[R], pg[R];
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) {
        px[r] = x[I(row) * length + lane + r * step];
        pg[r] = dy[I(row) * length + lane + r * step];
      }
    const Moments<A> m = moments_in<A>(means, rstds, given, row);
    A sum[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) add_h(sum, px[r], pg[r], gammas_of<A, V>(gammas, given, lane + r * step), m.shift);
    if constexpr (Way == TEAM) sum_lanes(sum, lanes);
    else sum_warps(sum, step / 32);
    const Known<A> known(m, given, sum[0], sum[1], A(length) * V);
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) {
        const P gamma = gammas_of<A, V>(gammas, given, lane + r * step);
        dx[I(row) * length + lane + r * step] = finish(known, px[r], pg[r], gamma, dgamma[r], dbeta[r]);
      }
  }

  P* out = static_cast<P*>(columns) + I(blockIdx.x) * length;
#pragma unroll
  for (int which = 0; which < 2; ++which, out += I(gridDim.x) * length)
#pragma unroll
    for (int r = 0; r < R; ++r) {
      P all = which ? dbeta[r] : dgamma[r];
      __syncthreads();
      room[threadIdx.x] = all;
      __syncthreads();
      if (team || lane + r * step >= length) continue;
      for (unsigned t = 1; t < teams; ++t) {
        const P one = room[t * step + lane];
#pragma unroll
        for (int v = 0; v < V; ++v) all.v[v] += one.v[v];
      }
      out[lane + r * step] = all;
    }
}

// Of each part of a row: the sums of h and of h * (x - shift). Block: one part.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 2) cells_sums(ARRAYS, Pair* __restrict__ partial, int given, unsigned rows,
    unsigned length, unsigned parts) {
  using A = typename Sum<T>::type;
  constexpr int N = 4;  // packs of each array in flight
  const unsigned share = (length + parts - 1) / parts, row = blockIdx.x / parts, begin = blockIdx.x % parts * share;
  const unsigned end = least(begin + share, length), step = blockDim.x;
  const I at = I(row) * length;
  const Moments<A> m = moments_in<A>(means, rstds, given, row);
  double total[2] = {0.0, 0.0};
  for (unsigned j = begin + threadIdx.x; j < end; j += N * step) {
    Pack<T, V> px[N], pg[N];
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * step < end) px[k] = x[at + j + k * step], pg[k] = dy[at + j + k * step];
    A sum[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * step < end) add_h(sum, px[k], pg[k], gammas_of<A, V>(gammas, given, j + k * step), m.shift);
    total[0] += double(sum[0]);
    total[1] += double(sum[1]);
  }
  sum_block(total);
  if (threadIdx.x == 0) partial[I(row) * parts + blockIdx.x % parts] = {total[0], total[1]};
}

// dx of `Deep` rows, a pack of columns a thread, and what they add to dgamma and dbeta. Block: blockDim.x packs of columns.
template <typename T, int V, typename I, int Deep>
__global__ void __launch_bounds__(256, 3) cells_apply(ARRAYS, const Pair* __restrict__ partial, Pack<T, V>* __restrict__ dx,
    void* __restrict__ columns, int given, unsigned rows, unsigned length, unsigned parts) {
  using A = typename Sum<T>::type;
  using P = Pack<A, V>;
  __shared__ Known<A> known[Deep];
  const unsigned wide = (length + blockDim.x - 1) / blockDim.x, slab = blockIdx.x / wide, top = slab * Deep;
  const unsigned bottom = least(top + Deep, rows), j = blockIdx.x % wide * blockDim.x + threadIdx.x;
  for (unsigned row = top + threadIdx.x / 32; row < bottom; row += blockDim.x / 32) {
    const Pair sum = add_parts(partial + I(row) * parts, parts, 1u);
    const Moments<A> m = moments_in<A>(means, rstds, given, row);
    if (threadIdx.x % 32 == 0) known[row - top] = Known<A>(m, given, A(sum.v[0]), A(sum.v[1]), A(length) * V);
  }
  __syncthreads();
  if (j >= length) return;
  const P gamma = gammas_of<A, V>(gammas, given, j);
  P dgamma = nothing<A, V>(), dbeta = nothing<A, V>();
#pragma unroll 4
  for (unsigned row = top; row < bottom; ++row) {
    const Pack<T, V> px = x[I(row) * length + j], pg = dy[I(row) * length + j];
    dx[I(row) * length + j] = finish(known[row - top], px, pg, gamma, dgamma, dbeta);
  }
  P* out = static_cast<P*>(columns) + I(slab) * length + j;
  out[0] = dgamma;
  out[I((rows + Deep - 1) / Deep) * length] = dbeta;
}

// Sums down the columns of both halves of (2, blocks, length). Block: 32 columns, a warp for every eighth row.
template <typename A, typename I>
__global__ void __launch_bounds__(256) add_columns(const A* __restrict__ columns, void* __restrict__ dgamma,
    void* __restrict__ dbeta, int given, unsigned blocks, unsigned length) {
  __shared__ double warps[8][32];
  const unsigned wide = (length + 31) / 32, which = blockIdx.x / wide, warp = threadIdx.x / 32;
  const unsigned j = blockIdx.x % wide * 32 + threadIdx.x % 32;
  if (!(given & (which ? DBETA : DGAMMA))) return;
  double sum = 0.0;
#pragma unroll 4
  for (unsigned k = warp; k < blocks; k += 8)
    if (j < length) sum += double(columns[(I(which) * blocks + k) * length + j]);
  warps[warp][threadIdx.x % 32] = sum;
  __syncthreads();
  if (warp == 0 && j < length) {
    for (unsigned k = 1; k < 8; ++k) sum += warps[k][threadIdx.x];
    static_cast<A*>(which ? dbeta : dgamma)[j] = A(sum);
  }
}
