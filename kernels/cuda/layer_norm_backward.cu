// layer_norm_backward.cu - dx, dgamma and dbeta of the norms with a parameter for each element of a row: layer and RMS norm.
//
//   xhat = (x - mean) * rstd    h = dy * gamma    dbeta = sum over rows of dy    dgamma = sum over rows of dy * xhat
//   dx = rstd * (h - sum(h) / n - xhat * sum(h * xhat) / n), the sums over a row's n elements; RMS norm leaves out sum(h)
//
// Layout    contiguous (rows, length) packs of V values, aligned to their size; gamma, dgamma, dbeta (length). `columns`,
//           (2, blocks, length), has the sums of dgamma and dbeta of each block.
// Types     T is float, __half or __nv_bfloat16 with parameters and their gradients in float, or double with double. mean
//           and rstd are double. I (offsets) is unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through its row of dx, and its column of dgamma and dbeta.
// Kernels   layer_norm_backward: a team (lanes of a warp, or whole warps) takes rows one after another; each thread has the
//           same elements of all of them, at most R packs, and sums their part of dgamma and dbeta. Longer rows, or too few:
//           layer_norm_sums, whose blocks each sum a part of a row, then layer_norm_apply, whose blocks go down some columns.
//           In both cases reduce_parameter_gradients adds up the blocks' sums.
// Sums      float within a row or down a block's rows, double beyond; in a fixed order (row_reduce.cuh), no atomics.
// Bytes     3 T an element; layer_norm_sums and layer_norm_apply 5 T, unless x and dy are still in the L2 cache.
// Source    Ba, Kiros and Hinton 2016 (arXiv:1607.06450), Zhang and Sennrich 2019 (arXiv:1910.07467).
#include "common.cuh"
#include "row_reduce.cuh"
#include "norm_gradient.cuh"

template <typename A>
__device__ __forceinline__ Moments<A> load_moments(const double* means, const double* rstds, int flags, unsigned row) {
  return moments_of<A>(flags & CENTRED ? means[row] : 0.0, rstds[row]);
}

template <typename A> struct RowGradient {  // what dx, dgamma and dbeta need to know of a row
  NormGradient<A> gradient;
  A delta;

  RowGradient() = default;
  // sum_dy, sum_h_shifted: the sums over the row of h and of h * (x - shift)
  __device__ __forceinline__ RowGradient(const Moments<A>& m, int flags, A sum_dy, A sum_h_shifted, A n)
      : gradient(m, flags & CENTRED ? sum_dy : A(0), (sum_h_shifted - m.delta * sum_dy) * m.rstd, n), delta(m.delta) {}
};

template <typename A, int V> __device__ __forceinline__ Pack<A, V> gammas_of(const void* gammas, int flags, unsigned j) {
  if (flags & GAMMA) return static_cast<const Pack<A, V>*>(gammas)[j];
  Pack<A, V> ones;
#pragma unroll
  for (int v = 0; v < V; ++v) ones.v[v] = 1;
  return ones;
}

#define ARRAYS \
  const Pack<T, V>* __restrict__ x, const Pack<T, V>* __restrict__ dy, const double* __restrict__ means, \
      const double* __restrict__ rstds, const void* __restrict__ gammas

template <typename A, typename T, int V>
__device__ __forceinline__ void add_h(
    A (&sum)[2], const Pack<T, V>& x, const Pack<T, V>& dy, const Pack<A, V>& gamma, A shift) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A h = widen(dy.v[v]) * gamma.v[v];
    sum[0] += h;
    sum[1] += h * (widen(x.v[v]) - shift);
  }
}

// dx of a pack; adds its part to dgamma and dbeta.
template <typename A, typename T, int V>
__device__ __forceinline__ Pack<T, V> pack_gradient(const RowGradient<A>& row, const Pack<T, V>& x, const Pack<T, V>& dy,
    const Pack<A, V>& gamma, Pack<A, V>& dgamma, Pack<A, V>& dbeta) {
  Pack<T, V> dx;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const A dy_value = widen(dy.v[v]);
    dgamma.v[v] += dy_value * ((widen(x.v[v]) - row.gradient.shift - row.delta) * row.gradient.rstd);
    dbeta.v[v] += dy_value;
    dx.v[v] = row.gradient(x.v[v], dy_value * gamma.v[v]);
  }
  return dx;
}

template <typename A, int V> __device__ __forceinline__ Pack<A, V> zeros() {
  Pack<A, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.v[v] = 0;
  return pack;
}

// Sums over teams of `warps` warps. A block has several teams; all of them call this together.
template <typename A> __device__ __forceinline__ void sum_warps(A (&v)[2], unsigned warps) {
  __shared__ A sums[2][32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp - warp % warps;
  sum_lanes(v);
  __syncthreads();  // other warps may still read earlier sums
  if (lane == 0) sums[0][warp] = v[0], sums[1][warp] = v[1];
  __syncthreads();
  v[0] = lane < warps ? sums[0][first + lane] : A(0);
  v[1] = lane < warps ? sums[1][first + lane] : A(0);
  sum_lanes(v);
}

// Teams of `lanes` threads: of one warp (WARP), or of several warps (BLOCK).
template <typename T, int V, int R, typename I, int Mapping>
__global__ void __launch_bounds__(512, 1) layer_norm_backward(
    ARRAYS, Pack<T, V>* __restrict__ dx, void* __restrict__ columns, int flags, unsigned rows, unsigned length, int lanes) {
  using A = typename Sum<T>::type;
  using ParameterPack = Pack<A, V>;
  __shared__ ParameterPack workspace[512];
  const unsigned step = lanes, teams = blockDim.x / step, team = threadIdx.x / step, lane = threadIdx.x % step;
  ParameterPack dgamma[R], dbeta[R];
#pragma unroll
  for (int r = 0; r < R; ++r) dgamma[r] = dbeta[r] = zeros<A, V>();

  for (unsigned first_row = blockIdx.x * teams; first_row < rows; first_row += gridDim.x * teams) {
    const bool active = first_row + team < rows;
    const unsigned row = active ? first_row + team : first_row, size = active ? length : 0u;
    Pack<T, V> x_pack[R], dy_pack[R];
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) {
        x_pack[r] = x[I(row) * length + lane + r * step];
        dy_pack[r] = dy[I(row) * length + lane + r * step];
      }
    const Moments<A> m = load_moments<A>(means, rstds, flags, row);
    A sum[2] = {0, 0};
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) add_h(sum, x_pack[r], dy_pack[r], gammas_of<A, V>(gammas, flags, lane + r * step), m.shift);
    if constexpr (Mapping == WARP) sum_lanes(sum, lanes);
    else sum_warps(sum, step / 32);
    const RowGradient<A> row_gradient(m, flags, sum[0], sum[1], A(length) * V);
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (lane + r * step < size) {
        const ParameterPack gamma = gammas_of<A, V>(gammas, flags, lane + r * step);
        dx[I(row) * length + lane + r * step] = pack_gradient(row_gradient, x_pack[r], dy_pack[r], gamma, dgamma[r], dbeta[r]);
      }
  }

  ParameterPack* out = static_cast<ParameterPack*>(columns) + I(blockIdx.x) * length;
#pragma unroll
  for (int is_beta = 0; is_beta < 2; ++is_beta, out += I(gridDim.x) * length)
#pragma unroll
    for (int r = 0; r < R; ++r) {
      ParameterPack total = is_beta ? dbeta[r] : dgamma[r];
      __syncthreads();
      workspace[threadIdx.x] = total;
      __syncthreads();
      if (team || lane + r * step >= length) continue;
      for (unsigned t = 1; t < teams; ++t) {
        const ParameterPack other = workspace[t * step + lane];
#pragma unroll
        for (int v = 0; v < V; ++v) total.v[v] += other.v[v];
      }
      out[lane + r * step] = total;
    }
}

// Sums of h and of h * (x - shift) of each part of a row. One part a block.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 2)
    layer_norm_sums(ARRAYS, Pair* __restrict__ partial, int flags, unsigned rows, unsigned length, unsigned parts) {
  using A = typename Sum<T>::type;
  constexpr int N = 4;  // packs of each array in flight
  const unsigned part_size = (length + parts - 1) / parts, row = blockIdx.x / parts, begin = blockIdx.x % parts * part_size;
  const unsigned end = min_unsigned(begin + part_size, length), step = blockDim.x;
  const I at = I(row) * length;
  const Moments<A> m = load_moments<A>(means, rstds, flags, row);
  double total[2] = {0.0, 0.0};
  for (unsigned j = begin + threadIdx.x; j < end; j += N * step) {
    Pack<T, V> x_pack[N], dy_pack[N];
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * step < end) x_pack[k] = x[at + j + k * step], dy_pack[k] = dy[at + j + k * step];
    A sum[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j + k * step < end) add_h(sum, x_pack[k], dy_pack[k], gammas_of<A, V>(gammas, flags, j + k * step), m.shift);
    total[0] += double(sum[0]);
    total[1] += double(sum[1]);
  }
  sum_block(total);
  if (threadIdx.x == 0) partial[I(row) * parts + blockIdx.x % parts] = {total[0], total[1]};
}

// dx of `Depth` rows, one pack of columns a thread, and the rows' sums for dgamma and dbeta. blockDim.x packs of columns a
// block.
template <typename T, int V, typename I, int Depth>
__global__ void __launch_bounds__(256, 3) layer_norm_apply(ARRAYS, const Pair* __restrict__ partial,
    Pack<T, V>* __restrict__ dx, void* __restrict__ columns, int flags, unsigned rows, unsigned length, unsigned parts) {
  using A = typename Sum<T>::type;
  using ParameterPack = Pack<A, V>;
  __shared__ RowGradient<A> row_gradients[Depth];
  const unsigned width = (length + blockDim.x - 1) / blockDim.x, block = blockIdx.x / width, first_row = block * Depth;
  const unsigned last_row = min_unsigned(first_row + Depth, rows), j = blockIdx.x % width * blockDim.x + threadIdx.x;
  for (unsigned row = first_row + threadIdx.x / 32; row < last_row; row += blockDim.x / 32) {
    const Pair sum = sum_parts(partial + I(row) * parts, parts, 1u);
    const Moments<A> m = load_moments<A>(means, rstds, flags, row);
    if (threadIdx.x % 32 == 0)
      row_gradients[row - first_row] = RowGradient<A>(m, flags, A(sum.v[0]), A(sum.v[1]), A(length) * V);
  }
  __syncthreads();
  if (j >= length) return;
  const ParameterPack gamma = gammas_of<A, V>(gammas, flags, j);
  ParameterPack dgamma = zeros<A, V>(), dbeta = zeros<A, V>();
#pragma unroll 4
  for (unsigned row = first_row; row < last_row; ++row) {
    const Pack<T, V> x_pack = x[I(row) * length + j], dy_pack = dy[I(row) * length + j];
    dx[I(row) * length + j] = pack_gradient(row_gradients[row - first_row], x_pack, dy_pack, gamma, dgamma, dbeta);
  }
  ParameterPack* out = static_cast<ParameterPack*>(columns) + I(block) * length + j;
  out[0] = dgamma;
  out[I((rows + Depth - 1) / Depth) * length] = dbeta;
}

// Sums down the columns of both halves of (2, blocks, length). A block has 32 columns; each of its warps sums every so many
// rows, 16 of them loaded at a time.
template <typename A, typename I>
__global__ void __launch_bounds__(1024) reduce_parameter_gradients(const A* __restrict__ columns, void* __restrict__ dgamma,
    void* __restrict__ dbeta, int flags, unsigned blocks, unsigned length) {
  constexpr int N = 16;
  __shared__ double sums[32][32];
  const unsigned width = (length + 31) / 32, is_beta = blockIdx.x / width, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const unsigned j = blockIdx.x % width * 32 + threadIdx.x % 32, end = j < length ? blocks : 0u;
  if (!(flags & (is_beta ? DBETA : DGAMMA))) return;
  const A* const column = columns + I(is_beta) * blocks * length + j;
  double sum = 0.0;
  for (unsigned k = warp; k < end; k += N * warps) {
    A values[N];
#pragma unroll
    for (int r = 0; r < N; ++r) values[r] = k + r * warps < end ? column[I(k + r * warps) * length] : A(0);
#pragma unroll
    for (int r = 0; r < N; ++r) sum += double(values[r]);
  }
  sums[warp][threadIdx.x % 32] = sum;
  __syncthreads();
  if (warp == 0 && j < length) {
    for (unsigned k = 1; k < warps; ++k) sum += sums[k][threadIdx.x];
    static_cast<A*>(is_beta ? dbeta : dgamma)[j] = A(sum);
  }
}
