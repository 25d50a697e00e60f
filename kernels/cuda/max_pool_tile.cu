// max_pool_tile.cu - max pooling of planes with narrow windows known to the compiler: 2x2 stride 2, 3x3 stride 1 and 2.
//
// Layout    channels first, contiguous: x and dx are planes of h rows of `row` packs of C cells, y, dy and saved planes of
//           oh rows of `row` packs of V = C / S windows. Window o starts at cell S o - P, P = (K - S + 1) / 2; beyond that
//           padding and ceil mode may add windows below, none to the right. Saved is a byte a window, the argmax (the tap
//           K ty + tx), or tie bits in one plane of bytes (2x2) or two (3x3), bit b of byte a for the tap 8 a + b.
// Types     T any float: moved bit for bit forward, summed in Sum<T> backward. I (offsets) unsigned below 2**31 elements, else
//           unsigned long long.
// Ties, NaN as in pool.cu: `rank`, the first in C order, gradients added in C order of windows. Every window meets a cell.
// Thread    forward: V windows of a row, from K rows of C cells and the P before and K - S - P behind them. Backward: S rows
//           of C cells, which collect in registers what the windows over them give: the V that start there, and with 3x3
//           those beside them.
// Bytes     2x2, an output: forward 4 T + T + 1 (inference 4 T + T), backward T + 1 + 4 T: the least, and each sector is asked
//           for once where rows are whole sectors. 3x3: the least from memory. The halo's price is paid by the caches: a row
//           of packs is asked for K / S times, and the cells beside a pack singly, up to as much again each.
// Source    the portable code in functional/max_pool.py, which the tests hold these kernels to.
#include "common.cuh"

enum Keep { NOTHING = 0, ARGMAX = 1, TIES = 2 };  // what is saved

// n = planes * oh * row.
template <typename T, int K, int S, int C, int Saved, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_tile(const T* __restrict__ x, Pack<T, C / S>* __restrict__ y,
    Pack<unsigned char, C / S>* __restrict__ saved, I n, I row, int h, int oh) {
  constexpr int V = C / S, P = (K - S + 1) / 2, Behind = K - S - P;
  using B = typename Bits<sizeof(T)>::type;
  constexpr B None = B(-Infinity<T>::value - 1);  // below every rank
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I line = i / row, plane = line / I(oh), j = i - line * row;
    const int top = int(line - plane * I(oh)) * S - P;
    Pack<T, V> best;
    B most[V];
    unsigned taps[V];  // the one that holds the maximum so far, or a bit for each that equals it
#pragma unroll
    for (int v = 0; v < V; ++v) most[v] = None;
#pragma unroll
    for (int ty = 0; ty < K; ++ty) {
      if (top + ty < 0 || top + ty >= h) continue;
      const T* cells = x + ((plane * I(h) + I(top + ty)) * row + j) * C;
      T value[P + C + Behind];
      B order[P + C + Behind];
      const Pack<T, C> middle = *reinterpret_cast<const Pack<T, C>*>(cells);
#pragma unroll
      for (int c = 0; c < C; ++c) value[P + c] = middle.v[c];
      if (P) value[0] = cells[j ? -1 : 0];
      if (Behind) value[P + C + Behind - 1] = cells[j + 1 < row ? C : 0];
#pragma unroll
      for (int c = 0; c < P + C + Behind; ++c) order[c] = rank(value[c]);
      if (P && !j) order[0] = None;
      if (Behind && j + 1 == row) order[P + C + Behind - 1] = None;
#pragma unroll
      for (int v = 0; v < V; ++v)
#pragma unroll
        for (int tx = 0; tx < K; ++tx) {
          const int c = S * v + tx;
          const unsigned tap = ty * K + tx;
          if (order[c] > most[v]) {
            best.v[v] = value[c];
            most[v] = order[c];
            if (Saved) taps[v] = Saved == TIES ? 1u << tap : tap;
          } else if (Saved == TIES && order[c] == most[v]) {
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

// n = planes * down * row with down = ceil(h / S); m = planes * oh * row, the packs of windows. `split`: ties share.
template <typename T, int K, int S, int C, int Saved, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_tile_backward(const T* __restrict__ dy,
    const unsigned char* __restrict__ saved, Pack<T, C>* __restrict__ dx, int split, I n, I m, I row, int h, int down, int oh) {
  constexpr int V = C / S, P = (K - S + 1) / 2;
  constexpr int Before = (K - 1 - P) / S, Behind = (S - 1 + P) / S;  // windows around a tile's own that reach into it
  constexpr bool Two = Saved == TIES && K > 2;                              // planes of tie bits
  constexpr unsigned Nobody = Saved == TIES ? 0 : K * K;                     // what no tap matches
  using A = typename Sum<T>::type;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I line = i / row, plane = line / I(down), j = i - line * row;
    const int at = int(line - plane * I(down));
    A sum[S][C] = {};
#pragma unroll
    for (int dr = -Before; dr <= Behind; ++dr) {
      if (at + dr < 0 || at + dr >= oh) continue;
      const I first = ((plane * I(oh) + I(at + dr)) * row + j) * V;
      T given[Before + V + Behind];
      unsigned taps[Before + V + Behind];
      const Pack<T, V> own = *reinterpret_cast<const Pack<T, V>*>(dy + first);
      const Pack<unsigned char, V> low = *reinterpret_cast<const Pack<unsigned char, V>*>(saved + first);
      Pack<unsigned char, V> high = {};
      if (Two) high = *reinterpret_cast<const Pack<unsigned char, V>*>(saved + m * V + first);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        given[Before + v] = own.v[v];
        taps[Before + v] = low.v[v] | unsigned(high.v[v]) << 8;
      }
      auto beside = [&](int o, bool there, I window) {
        given[o] = there ? dy[window] : T(0.f);
        taps[o] = there ? saved[window] | (Two ? unsigned(saved[m * V + window]) << 8 : 0u) : Nobody;
      };
      if (Before) beside(0, j > 0, first - 1);
      if (Behind) beside(Before + V, j + 1 < row, first + V);
#pragma unroll
      for (int o = 0; o < Before + V + Behind; ++o) {
        A g = widen(given[o]);
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
      if (S * at + r >= h) continue;
      Pack<T, C> out;
#pragma unroll
      for (int c = 0; c < C; ++c) out.v[c] = narrow<T>(sum[r][c]);
      dx[(plane * I(h) + I(S * at + r)) * row + j] = out;
    }
  }
}
