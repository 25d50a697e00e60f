// avg_pool_tiled.cu - sum and average pooling of whole packs with windows of 2x2 stride 2 or 3x3 stride 1 or 2, known at
// compile time, one divisor for all windows.
//
// Layout    contiguous: x and dx are planes of h rows of `row` packs of C cells; y and dy are planes of oh rows of `row` packs
//           of V = C / S windows. Window o starts at cell S o - P, P = (K - S + 1) / 2. Padding and ceil mode may add windows
//           below, none to the right.
// Types     T any float; sums in Sum<T> without flushing, in avg_pool.cu's order, so that both give the same bits. I (offsets)
//           unsigned below 2**31 elements, else unsigned long long.
// NaN       spreads through its window.
// Thread    forward: V windows of a row, from K rows of C cells and a cell on either side. Backward: S rows of C cells, from
//           the V windows that start there and, with 3x3, their neighbours. All loads come first; what lies outside is 0,
//           which changes no sum: each begins with 0.
// Bytes     each array once from memory; a row of packs is loaded K / S times, from the caches but for the first.
// Source    the portable code in functional/avg_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "quotients.cuh"

// N cells in a row: C from `cells` on, `Before` before them and the others behind; 0 where there are none.
template <typename T, int C, int Before, int N> struct Cells {
  Pack<T, C> pack;
  T before, behind;

  __device__ __forceinline__ void load(const T* __restrict__ cells, bool inside, bool first, bool last) {
    before = behind = T(0.f);
    pack = {};
    if (!inside) return;
    pack = *reinterpret_cast<const Pack<T, C>*>(cells);
    if (Before && !first) before = cells[-1];
    if (N > Before + C && !last) behind = cells[C];
  }
  __device__ __forceinline__ typename Sum<T>::type operator()(int c) const {
    return widen(c < Before ? before : c < Before + C ? pack.v[c - Before] : behind);
  }
};

// Where a thread is: its pack of a row, its line of a plane.
template <typename I> struct Spot {
  I j, line, plane;

  __device__ __forceinline__ Spot(I i, const Divisor<I>& row, const Divisor<I>& lines) {
    const I rows = row.quotient(i);
    j = i - rows * row.number;
    plane = lines.quotient(rows);
    line = rows - plane * lines.number;
  }
};
#define LOAD_DIVISORS(height) \
  const Divisor<I> by_row = LOAD_DIVISOR(row, row), by_lines = LOAD_DIVISOR(lines, I((height + R - 1) / R));

// Rows of windows, or of tiles, of a thread: they share the rows that they load. As many as registers are left for.
template <typename T, int K, int S, typename I>
constexpr int ROWS = K > S && S == 1 ? (Quotients<T>::Half && sizeof(I) == 4 ? 4 : 2) : 1;

// n = planes * lines * row with lines = ceil(oh / ROWS).
template <typename T, int K, int S, int C, typename I>
__global__ void __launch_bounds__(256, 4) sum_pool_tiled(const T* __restrict__ x, Pack<T, C / S>* __restrict__ y,
    typename Sum<T>::type divisor, I n, I row, int h, int oh, DIVISOR(row), DIVISOR(lines)) {
  constexpr int V = C / S, P = (K - S + 1) / 2, N = C + K - S, R = ROWS<T, K, S, I>;
  using A = typename Sum<T>::type;
  LOAD_DIVISORS(oh)
  const Quotients<T> quotients(divisor);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Spot<I> at(i, by_row, by_lines);
    const int first = int(at.line) * R, top = first * S - P;
    Cells<T, C, P, N> rows[K + R - 1];
#pragma unroll
    for (int ty = 0; ty < K + R - 1; ++ty) {
      const int r = top + ty;
      rows[ty].load(x + ((at.plane * I(h) + I(r)) * row + at.j) * C, r >= 0 && r < h, at.j == 0, at.j + 1 == row);
    }
    Pack<T, V> out[R];
#pragma unroll
    for (int m = 0; m < V; ++m) {
      A runs[K + R - 1];  // of a row's cells
#pragma unroll
      for (int ty = 0; ty < K + R - 1; ++ty) {
        runs[ty] = rows[ty](S * m);
#pragma unroll
        for (int tx = 1; tx < K; ++tx) runs[ty] = plus(runs[ty], rows[ty](S * m + tx));
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
      if (r == 0 || first + r < oh) y[(at.plane * I(oh) + I(first + r)) * row + at.j] = out[r];
  }
}

// n = planes * lines * row with lines = ceil(tile_rows / ROWS), tile_rows = ceil(h / S).
template <typename T, int K, int S, int C, typename I>
__global__ void __launch_bounds__(256, 4) sum_pool_tiled_backward(const T* __restrict__ dy, Pack<T, C>* __restrict__ dx,
    typename Sum<T>::type divisor, I n, I row, int h, int oh, DIVISOR(row), DIVISOR(lines)) {
  constexpr int V = C / S, P = (K - S + 1) / 2, R = ROWS<T, K, S, I>;
  constexpr int Before = (K - 1 - P) / S, Behind = (S - 1 + P) / S;  // windows of neighbouring tiles that reach into this one
  constexpr int N = Before + V + Behind;
  using A = typename Sum<T>::type;
  LOAD_DIVISORS((h + S - 1) / S)
  const Quotients<T> quotients(divisor);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Spot<I> at(i, by_row, by_lines);
    const int first = int(at.line) * R;  // of the tile's rows
    Cells<T, V, Before, N> rows[Before + R + Behind];
#pragma unroll
    for (int dr = -Before; dr < R + Behind; ++dr) {
      const int o = first + dr;
      const T* windows = dy + ((at.plane * I(oh) + I(o)) * row + at.j) * V;
      rows[Before + dr].load(windows, o >= 0 && o < oh, at.j == 0, at.j + 1 == row);
    }
    A sum[R * S][C] = {};
#pragma unroll
    for (int dr = -Before; dr < R + Behind; ++dr)
#pragma unroll
      for (int o = 0; o < N; ++o) {
        const A g = rows[Before + dr](o);
#pragma unroll
        for (int ty = 0; ty < K; ++ty)
#pragma unroll
          for (int tx = 0; tx < K; ++tx) {
            const int r = S * dr - P + ty, c = S * (o - Before) - P + tx;
            if (r >= 0 && r < R * S && c >= 0 && c < C) sum[r][c] = plus(sum[r][c], g);
          }
      }
    if constexpr (K == S) {  // the cells of a window have the same gradient
#pragma unroll
      for (int m = 0; m < V; ++m) {
        const A share = quotients(sum[0][S * m]);
#pragma unroll
        for (int r = 0; r < S; ++r)
#pragma unroll
          for (int c = 0; c < S; ++c) sum[r][S * m + c] = share;
      }
    }
#pragma unroll
    for (int r = 0; r < R * S; ++r) {
      if (S * first + r >= h) continue;
      Pack<T, C> out;
#pragma unroll
      for (int c = 0; c < C; ++c) out.v[c] = narrow<T>(K == S ? sum[r][c] : quotients(sum[r][c]));
      dx[(at.plane * I(h) + I(S * first + r)) * row + at.j] = out;
    }
  }
}
