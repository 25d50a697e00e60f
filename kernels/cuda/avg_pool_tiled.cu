// avg_pool_tiled.cu - sum and average pooling with narrow windows known at compile time: 2x2 stride 2, 3x3 stride 1 and 2, one
// divisor for all windows.
//
// Layout    contiguous: x and dx are planes of h rows of `row` packs of C cells; y and dy are planes of oh rows of `row` packs
//           of V = C / S windows. Window o starts at cell S o - P, P = (K - S + 1) / 2. Padding and ceil mode may add windows
//           below, none to the right. With channels last (L > 1) a cell and a window have L neighbouring channels, of
//           `inner` such packs, and C is S: one window a thread.
// Types     T any float; sums in Sum<T> without flushing, in avg_pool.cu's order, so that both give the same bits. I (offsets)
//           unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through its window.
// Thread    forward: V windows of a row, from K rows of C cells and a cell on either side. Backward: S rows of C cells, from
//           the V windows that start there and, with 3x3, their neighbours. All loads come first; what lies outside is 0,
//           which changes no sum: each begins with 0.
// Bytes     each array once from memory; a row of packs is loaded K / S times, from the caches but for the first.
// Source    the portable code in functional/avg_pool.py; the tests compare these kernels with it.
#include "common.cuh"

// Sums over the divisor, to the last bit. For 16-bit types launchers check that the divisor is an integer below 2**16: then
// __half's sums, 0 or not small, times the reciprocal are corrected by what the product leaves, and __nv_bfloat16's are
// multiplied in double, which rounds to the right float, since no quotient is near the middle of two floats.
template <typename T> struct Quotients {
  using A = typename Sum<T>::type;
  static constexpr bool Half = sizeof(T) == 2 && Infinity<T>::value == 0x7c00;
  A divisor, reciprocal;
  double wide;

  __device__ __forceinline__ explicit Quotients(A divisor)
      : divisor(divisor), reciprocal(quotient(A(1), divisor)), wide(1.0 / divisor) {}
  __device__ __forceinline__ A operator()(A sum) const {
    if constexpr (Half) {
      const A near = sum * reciprocal, rest = fmaxf(__fmaf_rn(-near, divisor, sum), -3e38f);  // not NaN, where near is infinite
      return __fmaf_rn(rest, reciprocal, near);
    } else if constexpr (sizeof(T) == 2) {
      return __double2float_rn(double(sum) * wide);
    } else {
      return divisor == A(1) ? sum : quotient(sum, divisor);
    }
  }
};

// N cells in a row of L channels each: C from `cells` on, `Before` before them and the others behind; 0 where there are none.
template <typename T, int C, int L, int Before, int N> struct Cells {
  Pack<T, (L > 1 ? L : C)> packs[L > 1 ? N : 1];
  T before, behind;

  template <typename I>
  __device__ __forceinline__ void load(const T* __restrict__ cells, I apart, bool inside, bool first, bool last) {
    using Loaded = Pack<T, (L > 1 ? L : C)>;
    before = behind = T(0.f);
#pragma unroll
    for (int k = 0; k < (L > 1 ? N : 1); ++k) {
      packs[k] = {};
      if (inside && (L == 1 || !((first && k < Before) || (last && k >= Before + C))))
        packs[k] = *reinterpret_cast<const Loaded*>(cells + (L > 1 ? static_cast<long long>(k - Before) * static_cast<long long>(apart) : 0));
    }
    if (L > 1 || !inside) return;
    if (Before && !first) before = cells[-1];
    if (N > Before + C && !last) behind = cells[C];
  }
  __device__ __forceinline__ typename Sum<T>::type operator()(int c, int l) const {
    return widen(L > 1 ? packs[c].v[l] : c < Before ? before : c < Before + C ? packs[0].v[c - Before] : behind);
  }
};

// Where a thread is: its pack of channels, its pack of a row, its line of a plane.
template <typename I, int L> struct Spot {
  I cell, channel, j, line, plane;  // cell: elements from a cell to the next

  __device__ __forceinline__ Spot(I i, const Divisor<I>& row, const Divisor<I>& lines, const Divisor<I>& inner) {
    const I pack = L > 1 ? inner.quotient(i) : i, rows = row.quotient(pack);
    cell = L > 1 ? inner.number * L : 1;
    channel = L > 1 ? (i - pack * inner.number) * L : 0;
    j = pack - rows * row.number;
    plane = lines.quotient(rows);
    line = rows - plane * lines.number;
  }
};
#define LOAD_DIVISORS(height) \
  const Divisor<I> by_row = LOAD_DIVISOR(row, row), by_lines = LOAD_DIVISOR(lines, I((height + R - 1) / R)), \
                   by_inner = LOAD_DIVISOR(inner, inner);

// Rows of windows, or of tiles, of a thread: they share the rows that they load. As many as registers are left for.
template <typename T, int K, int S, int L, typename I>
constexpr int ROWS = K > S && S == 1 && L == 1 ? (Quotients<T>::Half && sizeof(I) == 4 ? 4 : 2) : 1;

// n = planes * lines * row * inner with lines = ceil(oh / ROWS).
template <typename T, int K, int S, int C, typename I, int L = 1>
__global__ void __launch_bounds__(256, 4) sum_pool_tiled(const T* __restrict__ x, Pack<T, C / S * L>* __restrict__ y,
    typename Sum<T>::type divisor, I n, I row, int h, int oh, I inner, DIVISOR(row), DIVISOR(lines), DIVISOR(inner)) {
  constexpr int M = C / S * L, P = (K - S + 1) / 2, N = C + K - S, R = ROWS<T, K, S, L, I>;
  using A = typename Sum<T>::type;
  LOAD_DIVISORS(oh)
  const Quotients<T> quotients(divisor);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Spot<I, L> at(i, by_row, by_lines, by_inner);
    const int first = int(at.line) * R, top = first * S - P;
    Cells<T, C, L, P, N> rows[K + R - 1];
#pragma unroll
    for (int ty = 0; ty < K + R - 1; ++ty) {
      const int r = top + ty;
      const T* cells = x + (((at.plane * I(h) + I(r)) * row + at.j) * C * at.cell + at.channel);
      rows[ty].load(cells, at.cell, r >= 0 && r < h, at.j == 0, at.j + 1 == row);
    }
    Pack<T, M> out[R];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      A runs[K + R - 1];  // of a row's cells
#pragma unroll
      for (int ty = 0; ty < K + R - 1; ++ty) {
        runs[ty] = rows[ty](S * (m / L), m % L);
#pragma unroll
        for (int tx = 1; tx < K; ++tx) runs[ty] = plus(runs[ty], rows[ty](S * (m / L) + tx, m % L));
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        A sum = runs[r];
#pragma unroll
        for (int ty = 1; ty < K; ++ty) sum = plus(sum, runs[r + ty]);
        out[r].v[m] = narrow<T>(quotients(plus(sum, A(0))));  // sums begin with 0: of -0 alone they are +0
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r == 0 || first + r < oh) y[((at.plane * I(oh) + I(first + r)) * row + at.j) * (at.cell / L) + at.channel / L] = out[r];
  }
}

// n = planes * lines * row * inner with lines = ceil(tile_rows / ROWS), tile_rows = ceil(h / S).
template <typename T, int K, int S, int C, typename I, int L = 1>
__global__ void __launch_bounds__(256, 4) sum_pool_tiled_backward(const T* __restrict__ dy, T* __restrict__ dx,
    typename Sum<T>::type divisor, I n, I row, int h, int oh, I inner, DIVISOR(row), DIVISOR(lines), DIVISOR(inner)) {
  constexpr int V = C / S, P = (K - S + 1) / 2, R = ROWS<T, K, S, L, I>;
  constexpr int Before = (K - 1 - P) / S, Behind = (S - 1 + P) / S;  // windows of neighbouring tiles that reach into this one
  constexpr int N = Before + V + Behind;
  using A = typename Sum<T>::type;
  LOAD_DIVISORS((h + S - 1) / S)
  const Quotients<T> quotients(divisor);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Spot<I, L> at(i, by_row, by_lines, by_inner);
    const int first = int(at.line) * R;  // of the tile's rows
    Cells<T, V, L, Before, N> rows[Before + R + Behind];
#pragma unroll
    for (int dr = -Before; dr < R + Behind; ++dr) {
      const int o = first + dr;
      const T* windows = dy + (((at.plane * I(oh) + I(o)) * row + at.j) * V * at.cell + at.channel);
      rows[Before + dr].load(windows, at.cell, o >= 0 && o < oh, at.j == 0, at.j + 1 == row);
    }
    A sum[R * S][C * L] = {};
#pragma unroll
    for (int dr = -Before; dr < R + Behind; ++dr)
#pragma unroll
      for (int o = 0; o < N * L; ++o) {
        const A g = rows[Before + dr](o / L, o % L);
#pragma unroll
        for (int ty = 0; ty < K; ++ty)
#pragma unroll
          for (int tx = 0; tx < K; ++tx) {
            const int r = S * dr - P + ty, c = S * (o / L - Before) - P + tx;
            if (r >= 0 && r < R * S && c >= 0 && c < C) sum[r][c * L + o % L] = plus(sum[r][c * L + o % L], g);
          }
      }
    if constexpr (K == S) {  // the cells of a window have the same gradient
#pragma unroll
      for (int m = 0; m < V * L; ++m) {
        const A share = quotients(sum[0][S * (m / L) * L + m % L]);
#pragma unroll
        for (int r = 0; r < S; ++r)
#pragma unroll
          for (int c = 0; c < S; ++c) sum[r][(S * (m / L) + c) * L + m % L] = share;
      }
    }
    constexpr int Width = L > 1 ? L : C;  // elements of a store
#pragma unroll
    for (int r = 0; r < R * S; ++r) {
      if (S * first + r >= h) continue;
      T* cells = dx + (((at.plane * I(h) + I(S * first + r)) * row + at.j) * C * at.cell + at.channel);
#pragma unroll
      for (int c = 0; c < C * L; c += Width) {
        Pack<T, Width> out;
#pragma unroll
        for (int k = 0; k < Width; ++k) out.v[k] = narrow<T>(K == S ? sum[r][c + k] : quotients(sum[r][c + k]));
        *reinterpret_cast<Pack<T, Width>*>(cells + I(c / L) * at.cell * (L > 1)) = out;
      }
    }
  }
}
