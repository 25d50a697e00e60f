// max_pool_tiled.cu - max pooling with narrow windows known at compile time: 2x2 stride 2, 3x3 stride 1 and 2.
//
// Layout    contiguous: x and dx are planes of h rows of `row` packs of C cells; y, dy and saved are planes of oh rows of
//           `row` packs of V = C / S windows. Window o starts at cell S o - P, P = (K - S + 1) / 2. Padding and ceil mode may
//           add windows below, none to the right. `saved` has a byte a window: the argmax (tap K ty + tx), or tie bits in
//           one plane of bytes (2x2) or two (3x3), bit b of byte a for tap 8 a + b. With channels last (L > 1) a cell and a
//           window have L neighbouring channels, of `inner` such packs, and C is S: one window a thread.
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
  I start, width, cell;  // offset of that cell; elements of a row of x; elements from a cell to the next
  int top, h;            // its row; rows of x
  bool first, last;      // whether the windows touch the left edge, the right edge

  __device__ __forceinline__ bool has_row(int ty) const { return top + ty >= 0 && top + ty < h; }
  __device__ __forceinline__ I offset(int ty, int c) const { return start + I(ty) * width + I(c) * cell; }
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

// Two cells of 16 bits as keys; what their ranks lose of their bits is added to `lost`.
template <typename T> __device__ __forceinline__ void keys_of(unsigned pair, int& low, int& high, unsigned& lost) {
  const unsigned values = plus_pair<T>(pair, 0), ranks = rank_pair(values);
  lost |= pair ^ values;
  low = int(ranks << 16);
  high = int(ranks & 0xffff0000u);
}

// Of V windows of 16-bit floats the maxima and their taps: one integer holds a cell's rank above its place in C order, so that
// one maximum finds both, the first of equals. y is loaded again from where the tap is, with all its bits.
template <typename T, int K, int S, int C, int L, typename I> __device__ __forceinline__ void keyed_maxima(
    const T* __restrict__ x, const Windows<I>& at, Pack<T, C / S * L>& best, unsigned (&taps)[C / S * L]) {
  constexpr int M = C / S * L, P = (K - S + 1) / 2, Behind = K - S - P, N = P + C + Behind;
  constexpr int Loads = L > 1 ? N : 1, Width = L > 1 ? L : C;  // of a row: packs, and the cells or channels of each
  constexpr int BelowAll = -2147483647 - 1;
  Pack<unsigned, Width / 2> own[K][Loads];  // pairs of neighbours
  unsigned short before[K] = {}, behind[K] = {};
#pragma unroll
  for (int ty = 0; ty < K; ++ty) {
    if (L == 1) own[ty][0] = {};
    if (!at.has_row(ty)) continue;
#pragma unroll
    for (int c = 0; c < Loads; ++c) {
      if (L > 1 && ((c < P && at.first) || (c >= P + C && at.last))) continue;
      own[ty][c] = *reinterpret_cast<const Pack<unsigned, Width / 2>*>(x + at.offset(ty, L > 1 ? c : P));
    }
    if (L == 1 && P && !at.first) before[ty] = bits(x[at.offset(ty, P - 1)]);
    if (L == 1 && Behind && !at.last) behind[ty] = bits(x[at.offset(ty, P + C)]);
  }
  int keys[M];
  unsigned lost = 0;  // bits that ranks do not have
#pragma unroll
  for (int m = 0; m < M; ++m) keys[m] = BelowAll;
#pragma unroll
  for (int ty = 0; ty < K; ++ty) {
    if (!at.has_row(ty)) continue;
    int key[N * L];
#pragma unroll
    for (int c = 0; c < Loads; ++c)
#pragma unroll
      for (int k = 0; k < Width; k += 2) {
        int* const to = key + (L > 1 ? c * L : P) + k;
        if (L > 1 && ((c < P && at.first) || (c >= P + C && at.last))) to[0] = to[1] = BelowAll;
        else keys_of<T>(own[ty][c].v[k / 2], to[0], to[1], lost);
      }
    if constexpr (L == 1 && P + Behind > 0) {
      int left, right;
      keys_of<T>(behind[ty] | unsigned(before[ty]) << 16, right, left, lost);
      if (P) key[0] = at.first ? BelowAll : left;
      if (Behind) key[P + C] = at.last ? BelowAll : right;
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int tx = 0; tx < K; ++tx) keys[m] = max(keys[m], key[(S * (m / L) + tx) * L + m % L] + (15 - ty * K - tx));
  }
#pragma unroll
  for (int m = 0; m < M; m += 2) {
    const unsigned low = unsigned(keys[m]) >> 16, high = m + 1 < M ? unsigned(keys[m + 1]) & 0xffff0000u : 0u;
    const unsigned values = rank_pair(low | high);
    memcpy(&best.v[m], &values, m + 1 < M ? 4 : 2);
  }
#pragma unroll
  for (int m = 0; m < M; ++m) taps[m] = 15u - (unsigned(keys[m]) & 15u);
  if (lost) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const unsigned ty = K == 3 ? taps[m] * 11u / 32u : taps[m] / K;
      static_assert(K <= 3, "tap * 11 / 32 is tap / 3 up to 9");
      best.v[m] = x[at.offset(ty, taps[m] - K * ty + S * (m / L)) + I(m % L)];
    }
  }
}

// n = planes * oh * row * inner.
template <typename T, int K, int S, int C, int Saved, typename I, int L = 1>
__global__ void __launch_bounds__(256, 4) max_pool_tiled(const T* __restrict__ x, Pack<T, C / S * L>* __restrict__ y,
    Pack<unsigned char, C / S * L>* __restrict__ saved, I n, I row, int h, int oh, I inner, DIVISOR(row), DIVISOR(oh),
    DIVISOR(inner)) {
  constexpr int M = C / S * L, P = (K - S + 1) / 2, Behind = K - S - P, N = P + C + Behind;
  using B = typename Bits<sizeof(T)>::type;
  constexpr B BelowAll = B(-Infinity<T>::value - 1);  // below every rank
  const Divisor<I> by_row = LOAD_DIVISOR(row, row), by_oh = LOAD_DIVISOR(oh, I(oh)), by_inner = LOAD_DIVISOR(inner, inner);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I pack = L > 1 ? by_inner.quotient(i) : i, cell = L > 1 ? inner * L : 1;
    const I line = by_row.quotient(pack), plane = by_oh.quotient(line), j = pack - line * row;
    const int top = int(line - plane * I(oh)) * S - P;
    const I start = (((plane * I(h) + I(top)) * row + j) * C - P) * cell + (i - pack * (cell / L)) * L;
    const Windows<I> at{start, row * C * cell, cell, top, h, j == 0, j + 1 == row};
    Pack<T, M> best;
    B best_rank[M];
    unsigned taps[M];  // the tap of the maximum so far, or one bit for each tap that equals it
    if constexpr (sizeof(T) == 2 && Saved != TIES) keyed_maxima<T, K, S, C, L>(x, at, best, taps);
#pragma unroll
    for (int m = 0; m < M; ++m) best_rank[m] = BelowAll;
#pragma unroll
    for (int ty = 0; ty < K && (sizeof(T) > 2 || Saved == TIES); ++ty) {
      if (!at.has_row(ty)) continue;
      T values[N * L];
      B ranks[N * L];
      if constexpr (L == 1) {
        const Pack<T, C> own_cells = *reinterpret_cast<const Pack<T, C>*>(x + at.offset(ty, P));
#pragma unroll
        for (int c = 0; c < C; ++c) values[P + c] = own_cells.v[c];
        if (P) values[0] = x[at.offset(ty, at.first ? P : P - 1)];
        if (Behind) values[P + C] = x[at.offset(ty, at.last ? P : P + C)];
      } else {
#pragma unroll
        for (int c = 0; c < N; ++c) {
          const bool outside = (c < P && at.first) || (c >= P + C && at.last);
          const Pack<T, L> channels = *reinterpret_cast<const Pack<T, L>*>(x + at.offset(ty, outside ? P : c));
#pragma unroll
          for (int l = 0; l < L; ++l) values[c * L + l] = channels.v[l];
        }
      }
#pragma unroll
      for (int c = 0; c < N * L; ++c) {
        ranks[c] = rank(values[c]);
        if ((c < P * L && at.first) || (c >= (P + C) * L && at.last)) ranks[c] = BelowAll;
      }
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int tx = 0; tx < K; ++tx) {
          const int c = (S * (m / L) + tx) * L + m % L;
          const unsigned tap = ty * K + tx;
          if (ranks[c] > best_rank[m]) {
            best.v[m] = values[c];
            best_rank[m] = ranks[c];
            if (Saved) taps[m] = Saved == TIES ? 1u << tap : tap;
          } else if (Saved == TIES && ranks[c] == best_rank[m]) {
            taps[m] |= 1u << tap;
          }
        }
    }
    y[i] = best;
    if (Saved) {
      Pack<unsigned char, M> low, high;
#pragma unroll
      for (int m = 0; m < M; ++m) {
        low.v[m] = static_cast<unsigned char>(taps[m]);
        high.v[m] = static_cast<unsigned char>(taps[m] >> 8);
      }
      saved[i] = low;
      if (Saved == TIES && K > 2) saved[n + i] = high;
    }
  }
}

// n = planes * tile_rows * row * inner with tile_rows = ceil(h / S); m = planes * oh * row * inner, the packs of windows.
// `split`: equal maxima share the gradient.
template <typename T, int K, int S, int C, int Saved, typename I, int L = 1>
__global__ void __launch_bounds__(256, 4)
    max_pool_tiled_backward(const T* __restrict__ dy, const unsigned char* __restrict__ saved, Pack<T, (L > 1 ? L : C)>* __restrict__ dx,
        int split, I n, I m, I row, int h, int tile_rows, int oh, I inner, DIVISOR(row), DIVISOR(tile_rows), DIVISOR(inner)) {
  constexpr int V = C / S, P = (K - S + 1) / 2;
  constexpr int Before = (K - 1 - P) / S, Behind = (S - 1 + P) / S;  // windows of neighbouring tiles that reach into this one
  constexpr bool TwoPlanes = Saved == TIES && K > 2;                 // planes of tie bits
  constexpr unsigned NoTap = Saved == TIES ? 0 : K * K;              // a value that no tap matches
  constexpr int N = Before + V + Behind, Width = L > 1 ? L : V;      // windows of a row; windows or channels of a load
  using A = typename Sum<T>::type;
  const Divisor<I> by_row = LOAD_DIVISOR(row, row), by_rows = LOAD_DIVISOR(tile_rows, I(tile_rows)),
                   by_inner = LOAD_DIVISOR(inner, inner);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I pack = L > 1 ? by_inner.quotient(i) : i, channel = L > 1 ? i - pack * inner : 0, cell = L > 1 ? inner : 1;
    const I line = by_row.quotient(pack), plane = by_rows.quotient(line), j = pack - line * row;
    const int tile_row = int(line - plane * I(tile_rows));
    A sum[S][C * L] = {};
#pragma unroll
    for (int dr = -Before; dr <= Behind; ++dr) {
      if (tile_row + dr < 0 || tile_row + dr >= oh) continue;
      const I first = ((((plane * I(oh) + I(tile_row + dr)) * row + j) * V) * cell + channel) * L;
      T gradients[N * L];
      unsigned taps[N * L];
#pragma unroll
      for (int o = L > 1 ? 0 : Before; o < (L > 1 ? N : Before + 1); ++o) {  // whole packs
        const bool exists = L == 1 || !((o < Before && j == 0) || (o >= Before + V && j + 1 == row));
        const I from = exists ? first + (I(o) - I(Before)) * cell * L : first;
        const Pack<T, Width> own_dy = *reinterpret_cast<const Pack<T, Width>*>(dy + from);
        const Pack<unsigned char, Width> low = *reinterpret_cast<const Pack<unsigned char, Width>*>(saved + from);
        Pack<unsigned char, Width> high = {};
        if (TwoPlanes) high = *reinterpret_cast<const Pack<unsigned char, Width>*>(saved + m * V * L + from);
#pragma unroll
        for (int k = 0; k < Width; ++k) {
          gradients[o * L + k] = own_dy.v[k];
          taps[o * L + k] = exists ? low.v[k] | unsigned(high.v[k]) << 8 : NoTap;
        }
      }
      const auto load_neighbour = [&](int o, bool exists, I window) {
        gradients[o] = exists ? dy[window] : T(0.f);
        taps[o] = exists ? saved[window] | (TwoPlanes ? unsigned(saved[m * V + window]) << 8 : 0u) : NoTap;
      };
      if (L == 1 && Before) load_neighbour(0, j > 0, first - 1);
      if (L == 1 && Behind) load_neighbour(Before + V, j + 1 < row, first + V);
#pragma unroll
      for (int o = 0; o < N * L; ++o) {
        A g = widen(gradients[o]);
        if (Saved == TIES && split) g = quotient(g, A(__popc(taps[o])));
#pragma unroll
        for (int ty = 0; ty < K; ++ty)
#pragma unroll
          for (int tx = 0; tx < K; ++tx) {
            const int r = S * dr - P + ty, c = S * (o / L - Before) - P + tx;
            if (r < 0 || r >= S || c < 0 || c >= C) continue;
            const unsigned tap = ty * K + tx;
            A& total = sum[r][c * L + o % L];
            if (Saved == TIES ? (taps[o] >> tap & 1) != 0 : taps[o] == tap) total = S < K ? plus(total, g) : g;
          }
      }
    }
#pragma unroll
    for (int r = 0; r < S; ++r) {
      if (S * tile_row + r >= h) continue;
      constexpr int Stores = L > 1 ? C : 1, Cells = L > 1 ? L : C;
#pragma unroll
      for (int c = 0; c < Stores; ++c) {
        Pack<T, Cells> out;
#pragma unroll
        for (int k = 0; k < Cells; ++k) out.v[k] = narrow<T>(sum[r][c * L + k]);
        dx[((plane * I(h) + I(S * tile_row + r)) * row + j) * (L > 1 ? C * cell : 1) + I(c) * cell + channel] = out;
      }
    }
  }
}
