// max_pool_tiled.cu - max pooling of whole packs with windows of 2x2 stride 2 or 3x3 stride 1 or 2, known at compile time.
//
// Layout    contiguous: x and dx are planes of h rows of `row` packs of C cells; y, dy and saved are planes of oh rows of
//           `row` packs of V = C / S windows. Window o starts at cell S o - P, P = (K - S + 1) / 2. Padding and ceil mode may
//           add windows below, none to the right. `saved` has a byte a window: the argmax (tap K ty + tx), or tie bits in
//           one plane of bytes (2x2) or two (3x3), bit b of byte a for tap 8 a + b.
// Types     T is any float: moved bit for bit forward, summed in Sum<T> backward. I (offsets) is unsigned below 2**31
//           elements, else unsigned long long.
// Ties, NaN as in max_pool.cu: `rank`, the first in C order; gradients are added in C order of windows. Every window has an
//           input cell.
// Thread    forward: V windows of a row, from K rows of C cells, the P cells before and the K - S - P cells behind them.
//           Backward: S rows of C cells. Their gradients are summed in registers, over the V windows that start there and,
//           with 3x3, their neighbours.
// Bytes     2x2, an output: forward 4 T + T + 1 (inference 4 T + T), backward T + 1 + 4 T: the least, and each sector is
//           loaded once where rows are whole sectors. 3x3: the least from memory. The halo costs cache traffic: a row of
//           packs is loaded K / S times, and the cells next to a pack one by one, up to as much again each.
// Source    the portable code in functional/max_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "max_pool_keys.cuh"

// Where a thread's windows are: the first cell of the first window (perhaps outside) and which of its cells exist.
template <typename I> struct Windows {
  I start, width;    // offset of that cell; elements of a row of x
  int top, h;        // its row; rows of x
  bool first, last;  // whether the windows touch the left edge, the right edge

  __device__ __forceinline__ bool has_row(int ty) const { return top + ty >= 0 && top + ty < h; }
  __device__ __forceinline__ I offset(int ty, int c) const { return start + I(ty) * width + I(c); }
};


// Of V windows of 16-bit floats the maxima and their taps: one integer holds a cell's rank above its place in C order, so that
// one maximum finds both, the first of equals. y is loaded again from where the tap is, with all its bits.
template <typename T, int K, int S, int C, typename I> __device__ __forceinline__ void keyed_maxima(
    const T* __restrict__ x, const Windows<I>& at, Pack<T, C / S>& best, unsigned (&taps)[C / S]) {
  constexpr int V = C / S, P = (K - S + 1) / 2, Behind = K - S - P, N = P + C + Behind;
  Pack<unsigned, C / 2> own[K];  // pairs of neighbours
  unsigned short before[K] = {}, behind[K] = {};
#pragma unroll
  for (int ty = 0; ty < K; ++ty) {
    own[ty] = {};
    if (!at.has_row(ty)) continue;
    own[ty] = *reinterpret_cast<const Pack<unsigned, C / 2>*>(x + at.offset(ty, P));
    if (P && !at.first) before[ty] = bits(x[at.offset(ty, P - 1)]);
    if (Behind && !at.last) behind[ty] = bits(x[at.offset(ty, P + C)]);
  }
  int keys[V];
  unsigned lost = 0;  // bits that ranks do not have
#pragma unroll
  for (int m = 0; m < V; ++m) keys[m] = BELOW_ALL;
#pragma unroll
  for (int ty = 0; ty < K; ++ty) {
    if (!at.has_row(ty)) continue;
    int key[N];
#pragma unroll
    for (int k = 0; k < C; k += 2) keys_of<T>(own[ty].v[k / 2], key[P + k], key[P + k + 1], lost);
    if constexpr (P + Behind > 0) {
      int left, right;
      keys_of<T>(behind[ty] | unsigned(before[ty]) << 16, right, left, lost);
      if (P) key[0] = at.first ? BELOW_ALL : left;
      if (Behind) key[P + C] = at.last ? BELOW_ALL : right;
    }
#pragma unroll
    for (int m = 0; m < V; ++m)
#pragma unroll
      for (int tx = 0; tx < K; ++tx) keys[m] = max(keys[m], key[S * m + tx] + (15 - ty * K - tx));
  }
  values_of(keys, best);
#pragma unroll
  for (int m = 0; m < V; ++m) taps[m] = 15u - (unsigned(keys[m]) & 15u);
  if (lost) {
#pragma unroll
    for (int m = 0; m < V; ++m) {
      const unsigned ty = K == 3 ? taps[m] * 11u / 32u : taps[m] / K;
      static_assert(K <= 3, "tap * 11 / 32 is tap / 3 up to 9");
      best.v[m] = x[at.offset(ty, taps[m] - K * ty + S * m)];
    }
  }
}

// n = planes * oh * row.
template <typename T, int K, int S, int C, int Saved, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_tiled(const T* __restrict__ x, Pack<T, C / S>* __restrict__ y,
    Pack<unsigned char, C / S>* __restrict__ saved, I n, I row, int h, int oh, DIVISOR(row), DIVISOR(oh)) {
  constexpr int V = C / S, P = (K - S + 1) / 2, Behind = K - S - P, N = P + C + Behind;
  const Divisor<I> by_row = LOAD_DIVISOR(row, row), by_oh = LOAD_DIVISOR(oh, I(oh));
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I line = by_row.quotient(i), plane = by_oh.quotient(line), j = i - line * row;
    const int top = int(line - plane * I(oh)) * S - P;
    const Windows<I> at{((plane * I(h) + I(top)) * row + j) * C - P, row * C, top, h, j == 0, j + 1 == row};
    Pack<T, V> best;
    unsigned taps[V];
    if constexpr (sizeof(T) == 2 && Saved != TIES) {
      keyed_maxima<T, K, S, C>(x, at, best, taps);
    } else {
      Best<T, Saved> maxima[V];
#pragma unroll
      for (int ty = 0; ty < K; ++ty) {
        if (!at.has_row(ty)) continue;
        T values[N];
        const Pack<T, C> own_cells = *reinterpret_cast<const Pack<T, C>*>(x + at.offset(ty, P));
#pragma unroll
        for (int c = 0; c < C; ++c) values[P + c] = own_cells.v[c];
        if (P) values[0] = x[at.offset(ty, at.first ? P : P - 1)];
        if (Behind) values[P + C] = x[at.offset(ty, at.last ? P : P + C)];
        typename Bits<sizeof(T)>::type ranks[N];
#pragma unroll
        for (int c = 0; c < N; ++c) {
          ranks[c] = rank(values[c]);
          if ((c < P && at.first) || (c >= P + C && at.last)) ranks[c] = -Infinity<T>::value - 1;
        }
#pragma unroll
        for (int m = 0; m < V; ++m)
#pragma unroll
          for (int tx = 0; tx < K; ++tx) maxima[m].add(values[S * m + tx], ranks[S * m + tx], ty * K + tx);
      }
#pragma unroll
      for (int m = 0; m < V; ++m) best.v[m] = maxima[m].value, taps[m] = maxima[m].taps;
    }
    y[i] = best;
    save_taps<Saved, K * K>(saved, i, n, taps);
  }
}

// n = planes * tile_rows * row with tile_rows = ceil(h / S); m = planes * oh * row, the packs of windows. `split`: equal
// maxima share the gradient.
template <typename T, int K, int S, int C, int Saved, typename I>
__global__ void __launch_bounds__(256, 4)
    max_pool_tiled_backward(const T* __restrict__ dy, const unsigned char* __restrict__ saved, Pack<T, C>* __restrict__ dx,
        int split, I n, I m, I row, int h, int tile_rows, int oh, DIVISOR(row), DIVISOR(tile_rows)) {
  constexpr int V = C / S, P = (K - S + 1) / 2;
  constexpr int Before = (K - 1 - P) / S, Behind = (S - 1 + P) / S;  // windows of neighbouring tiles that reach into this one
  constexpr bool TwoPlanes = Saved == TIES && K > 2;                 // planes of tie bits
  constexpr unsigned NoTap = Saved == TIES ? 0 : K * K;              // a value that no tap matches
  constexpr int N = Before + V + Behind;
  using A = typename Sum<T>::type;
  const Divisor<I> by_row = LOAD_DIVISOR(row, row), by_rows = LOAD_DIVISOR(tile_rows, I(tile_rows));
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I line = by_row.quotient(i), plane = by_rows.quotient(line), j = i - line * row;
    const int tile_row = int(line - plane * I(tile_rows));
    A sum[S][C] = {};
#pragma unroll
    for (int dr = -Before; dr <= Behind; ++dr) {
      if (tile_row + dr < 0 || tile_row + dr >= oh) continue;
      const I first = ((plane * I(oh) + I(tile_row + dr)) * row + j) * V;
      T gradients[N];
      unsigned taps[N];
      const Pack<T, V> own_dy = *reinterpret_cast<const Pack<T, V>*>(dy + first);
      const Pack<unsigned char, V> low = *reinterpret_cast<const Pack<unsigned char, V>*>(saved + first);
      Pack<unsigned char, V> high = {};
      if (TwoPlanes) high = *reinterpret_cast<const Pack<unsigned char, V>*>(saved + m * V + first);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        gradients[Before + k] = own_dy.v[k];
        taps[Before + k] = low.v[k] | unsigned(high.v[k]) << 8;
      }
      const auto load_neighbour = [&](int o, bool exists, I window) {
        gradients[o] = exists ? dy[window] : T(0.f);
        taps[o] = exists ? saved[window] | (TwoPlanes ? unsigned(saved[m * V + window]) << 8 : 0u) : NoTap;
      };
      if (Before) load_neighbour(0, j > 0, first - 1);
      if (Behind) load_neighbour(Before + V, j + 1 < row, first + V);
#pragma unroll
      for (int o = 0; o < N; ++o) {
        A g = widen(gradients[o]);
        if (Saved == TIES && split) g = quotient(g, A(__popc(taps[o])));
#pragma unroll
        for (int ty = 0; ty < K; ++ty)
#pragma unroll
          for (int tx = 0; tx < K; ++tx) {
            const int r = S * dr - P + ty, c = S * (o - Before) - P + tx;
            if (r < 0 || r >= S || c < 0 || c >= C) continue;
            const unsigned tap = ty * K + tx;
            if (Saved == TIES ? (taps[o] >> tap & 1) != 0 : taps[o] == tap) sum[r][c] = S < K ? plus(sum[r][c], g) : g;
          }
      }
    }
#pragma unroll
    for (int r = 0; r < S; ++r) {
      if (S * tile_row + r >= h) continue;
      Pack<T, C> out;
#pragma unroll
      for (int c = 0; c < C; ++c) out.v[c] = narrow<T>(sum[r][c]);
      dx[(plane * I(h) + I(S * tile_row + r)) * row + j] = out;
    }
  }
}
