// max_pool_tiled.cu - max pooling of planes with narrow windows known at compile time: 2x2 stride 2, 3x3 stride 1 and 2.
//
// Layout    channels first, contiguous: x and dx are planes of h rows of `row` packs of C cells; y, dy and saved are planes of
//           oh rows of `row` packs of V = C / S windows. Window o starts at cell S o - P, P = (K - S + 1) / 2. Padding and
//           ceil mode may add windows below, none to the right. `saved` has a byte a window: the argmax (tap K ty + tx), or
//           tie bits in one plane of bytes (2x2) or two (3x3), bit b of byte a for tap 8 a + b.
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

enum Save { NOTHING = 0, ARGMAX = 1, TIES = 2 };  // what forward writes besides y

// Where a thread's windows are: the first cell of the first window (perhaps outside) and which of its cells exist.
template <typename I> struct Windows {
  I start, width;  // offset of that cell; cells of a row of x
  int top, h;      // its row; rows of x
  bool first, last;  // whether the windows touch the left edge, the right edge
};

// Two 16-bit floats, without NaN and -0 but for 0x7fff, as two 16-bit integers of the same order; and back. The magnitudes
// of negative ones are complemented.
__device__ __forceinline__ unsigned rank_pair(unsigned pair) {
#ifndef SIMT_HOST
  unsigned signs;  // of each, in all of its bits
  asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(signs) : "r"(pair));
#else
  const unsigned signs = (pair >> 15 & 0x00010001u) * 0xffffu;
#endif
  return pair ^ (signs & 0x7fff7fffu);
}

// Of V windows of 16-bit floats the maxima and their taps: one integer holds a cell's rank above its place in C order, so that
// one maximum finds both, the first of equals. y is loaded again from where the tap is, with all its bits.
template <typename T, int K, int S, int C, typename I> __device__ __forceinline__ void keyed_maxima(
    const T* __restrict__ x, const Windows<I>& at, Pack<T, C / S>& best, unsigned (&taps)[C / S]) {
  constexpr int V = C / S, P = (K - S + 1) / 2, Behind = K - S - P;
  constexpr int BelowAll = -2147483647 - 1;
  Pack<unsigned, C / 2> own[K];  // pairs of cells
  unsigned short before[K] = {}, behind[K] = {};
#pragma unroll
  for (int ty = 0; ty < K; ++ty) {
    own[ty] = {};
    if (at.top + ty < 0 || at.top + ty >= at.h) continue;
    const T* cells = x + (at.start + I(ty) * at.width + P);
    own[ty] = *reinterpret_cast<const Pack<unsigned, C / 2>*>(cells);
    if (P && !at.first) before[ty] = bits(cells[-1]);
    if (Behind && !at.last) behind[ty] = bits(cells[C]);
  }
  int keys[V];
  unsigned lost = 0;  // bits that ranks do not have
#pragma unroll
  for (int v = 0; v < V; ++v) keys[v] = BelowAll;
#pragma unroll
  for (int ty = 0; ty < K; ++ty) {
    if (at.top + ty < 0 || at.top + ty >= at.h) continue;
    int key[P + C + Behind];
#pragma unroll
    for (int c = 0; c < C; c += 2) {
      const unsigned pair = own[ty].v[c / 2], values = plus_pair<T>(pair, 0), ranks = rank_pair(values);
      lost |= pair ^ values;
      key[P + c] = int(ranks << 16);
      key[P + c + 1] = int(ranks & 0xffff0000u);
    }
    if constexpr (P + Behind > 0) {
      const unsigned pair = behind[ty] | unsigned(before[ty]) << 16, values = plus_pair<T>(pair, 0), ranks = rank_pair(values);
      lost |= pair ^ values;
      if (P) key[0] = at.first ? BelowAll : int(ranks & 0xffff0000u);
      if (Behind) key[P + C + Behind - 1] = at.last ? BelowAll : int(ranks << 16);
    }
#pragma unroll
    for (int v = 0; v < V; ++v)
#pragma unroll
      for (int tx = 0; tx < K; ++tx) keys[v] = max(keys[v], key[S * v + tx] + (15 - ty * K - tx));
  }
#pragma unroll
  for (int v = 0; v < V; v += 2) {
    const unsigned low = unsigned(keys[v]) >> 16, high = v + 1 < V ? unsigned(keys[v + 1]) & 0xffff0000u : 0u;
    const unsigned values = rank_pair(low | high);
    memcpy(&best.v[v], &values, v + 1 < V ? 4 : 2);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) taps[v] = 15u - (unsigned(keys[v]) & 15u);
  if (lost) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const unsigned ty = K == 3 ? taps[v] * 11u / 32u : taps[v] / K;
      static_assert(K <= 3, "tap * 11 / 32 is tap / 3 up to 9");
      best.v[v] = x[at.start + I(ty) * at.width + I(taps[v] - K * ty + S * v)];
    }
  }
}

// n = planes * oh * row.
template <typename T, int K, int S, int C, int Saved, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_tiled(const T* __restrict__ x, Pack<T, C / S>* __restrict__ y,
    Pack<unsigned char, C / S>* __restrict__ saved, I n, I row, int h, int oh, DIVISOR(row), DIVISOR(oh)) {
  constexpr int V = C / S, P = (K - S + 1) / 2, Behind = K - S - P;
  using B = typename Bits<sizeof(T)>::type;
  constexpr B BelowAll = B(-Infinity<T>::value - 1);  // below every rank
  const Divisor<I> by_row = LOAD_DIVISOR(row, row), by_oh = LOAD_DIVISOR(oh, I(oh));
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I line = by_row.quotient(i), plane = by_oh.quotient(line), j = i - line * row;
    const int top = int(line - plane * I(oh)) * S - P;
    Pack<T, V> best;
    B best_rank[V];
    unsigned taps[V];  // the tap of the maximum so far, or one bit for each tap that equals it
    if constexpr (sizeof(T) == 2 && Saved != TIES) {
      const I start = ((plane * I(h) + I(top)) * row + j) * C - P;
      keyed_maxima<T, K, S, C>(x, Windows<I>{start, row * C, top, h, j == 0, j + 1 == row}, best, taps);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) best_rank[v] = BelowAll;
#pragma unroll
    for (int ty = 0; ty < K && (sizeof(T) > 2 || Saved == TIES); ++ty) {
      if (top + ty < 0 || top + ty >= h) continue;
      const T* cells = x + ((plane * I(h) + I(top + ty)) * row + j) * C;
      T values[P + C + Behind];
      B ranks[P + C + Behind];
      const Pack<T, C> own_cells = *reinterpret_cast<const Pack<T, C>*>(cells);
#pragma unroll
      for (int c = 0; c < C; ++c) values[P + c] = own_cells.v[c];
      if (P) values[0] = cells[j ? -1 : 0];
      if (Behind) values[P + C + Behind - 1] = cells[j + 1 < row ? C : 0];
#pragma unroll
      for (int c = 0; c < P + C + Behind; ++c) ranks[c] = rank(values[c]);
      if (P && !j) ranks[0] = BelowAll;
      if (Behind && j + 1 == row) ranks[P + C + Behind - 1] = BelowAll;
#pragma unroll
      for (int v = 0; v < V; ++v)
#pragma unroll
        for (int tx = 0; tx < K; ++tx) {
          const int c = S * v + tx;
          const unsigned tap = ty * K + tx;
          if (ranks[c] > best_rank[v]) {
            best.v[v] = values[c];
            best_rank[v] = ranks[c];
            if (Saved) taps[v] = Saved == TIES ? 1u << tap : tap;
          } else if (Saved == TIES && ranks[c] == best_rank[v]) {
            taps[v] |= 1u << tap;
          }
        }
    }
    y[i] = best;
    if (Saved) {
      Pack<unsigned char, V> low, high;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        low.v[v] = static_cast<unsigned char>(taps[v]);
        high.v[v] = static_cast<unsigned char>(taps[v] >> 8);
      }
      saved[i] = low;
      if (Saved == TIES && K > 2) saved[n + i] = high;
    }
  }
}

// n = planes * tile_rows * row with tile_rows = ceil(h / S); m = planes * oh * row, the packs of windows. `split`: equal maxima
// share the gradient.
template <typename T, int K, int S, int C, int Saved, typename I>
__global__ void __launch_bounds__(256, 4)
    max_pool_tiled_backward(const T* __restrict__ dy, const unsigned char* __restrict__ saved, Pack<T, C>* __restrict__ dx,
        int split, I n, I m, I row, int h, int tile_rows, int oh, DIVISOR(row), DIVISOR(tile_rows)) {
  constexpr int V = C / S, P = (K - S + 1) / 2;
  constexpr int Before = (K - 1 - P) / S, Behind = (S - 1 + P) / S;  // windows of neighbouring tiles that reach into this one
  constexpr bool TwoPlanes = Saved == TIES && K > 2;                 // planes of tie bits
  constexpr unsigned NoTap = Saved == TIES ? 0 : K * K;              // a value that no tap matches
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
      T gradients[Before + V + Behind];
      unsigned taps[Before + V + Behind];
      const Pack<T, V> own_dy = *reinterpret_cast<const Pack<T, V>*>(dy + first);
      const Pack<unsigned char, V> low = *reinterpret_cast<const Pack<unsigned char, V>*>(saved + first);
      Pack<unsigned char, V> high = {};
      if (TwoPlanes) high = *reinterpret_cast<const Pack<unsigned char, V>*>(saved + m * V + first);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        gradients[Before + v] = own_dy.v[v];
        taps[Before + v] = low.v[v] | unsigned(high.v[v]) << 8;
      }
      auto load_neighbour = [&](int o, bool exists, I window) {
        gradients[o] = exists ? dy[window] : T(0.f);
        taps[o] = exists ? saved[window] | (TwoPlanes ? unsigned(saved[m * V + window]) << 8 : 0u) : NoTap;
      };
      if (Before) load_neighbour(0, j > 0, first - 1);
      if (Behind) load_neighbour(Before + V, j + 1 < row, first + V);
#pragma unroll
      for (int o = 0; o < Before + V + Behind; ++o) {
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
