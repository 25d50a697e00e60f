// max_pool_narrow.cu - max pooling with windows of 2 stride 2 or 3 stride 1 or 2 on each pooled axis, known at compile time, a
// thread a window.
//
// Layout    window_narrow.cuh's: any padding and lengths. `saved` has a byte a window: the argmax (the tap in C order), or tie
//           bits in planes of bytes, bit b of byte a for tap 8 a + b.
// Types, ties and NaN  as in max_pool_tiled.cu, which takes rows that are whole packs.
// Thread    forward: a window. Backward: a tile, whose gradients are summed in registers.
// Bytes     each array once from memory; windows and tiles share cells through the caches.
// Source    the portable code in functional/max_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "window.cuh"
#include "window_narrow.cuh"
#include "max_pool_keys.cuh"

// n windows.
template <typename T, int KD, int KH, int KW, int S, int L, int Saved, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_narrow(const Pack<T, LANES(L)>* __restrict__ x,
    Pack<T, LANES(L)>* __restrict__ y, Pack<unsigned char, LANES(L)>* __restrict__ saved, I n, INNER, AXES) {
  LOAD_NARROW
  constexpr bool Keyed = sizeof(T) == 2 && Saved != TIES;
  constexpr bool Lines = KD > 1 && L && !Keyed;  // a plane's packs and ranks take more registers than there are
  constexpr int M = LANES(L), Some = Lines ? KW : KH * KW, N = (Some + 1) / 2 * 2;  // cells loaded at once
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const NarrowWindow<I, KD, KH, KW, S> window(at, d, h, w, by_inner.number);
    const Pack<T, M>* const corner = x + window.corner;
    Best<T, Saved> maxima[M];
    int keys[M];
    unsigned lost = 0, taps[M];
#pragma unroll
    for (int m = 0; m < M; ++m) keys[m] = BELOW_ALL;
#pragma unroll 1
    for (int turn = 0; turn < KD * KH * KW / Some; ++turn) {
      const int tz = Lines ? turn / KH : turn, ty = Lines ? turn % KH : 0;
      Pack<T, M> cells[N] = {};
      bool in[N] = {};
#pragma unroll
      for (int k = 0; k < Some; ++k) {
        in[k] = window.has(tz, ty + k / KW, k % KW);
        if (in[k]) cells[k] = corner[window.offset(tz, ty + k / KW, k % KW)];
      }
      if constexpr (Keyed) {
        const int last = 31 - turn * Some;
#pragma unroll
        for (int k = 0; k < Some * M; k += 2) {
          unsigned pair;
          memcpy(&pair, &cells[0].v[0] + k, 4);
          int key[2];
          keys_of<T>(pair, key[0], key[1], lost);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int tap = (k + j) / M, m = (k + j) % M;
            if (tap < Some) keys[m] = max(keys[m], in[tap] ? key[j] + (last - tap) : BELOW_ALL);
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < Some; ++k)
#pragma unroll
          for (int m = 0; m < M; ++m)
            if (in[k]) maxima[m].add(cells[k].v[m], rank(cells[k].v[m]), turn * Some + k);
      }
    }
    Pack<T, M> best;
    if constexpr (Keyed) {
      values_of(keys, best);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        taps[m] = 31u - (unsigned(keys[m]) & 31u);
        if (lost) best.v[m] = corner[window.offset(taps[m] / (KH * KW), taps[m] / KW % KH, taps[m] % KW)].v[m];
      }
    } else {
#pragma unroll
      for (int m = 0; m < M; ++m) best.v[m] = maxima[m].value, taps[m] = maxima[m].taps;
    }
    y[i] = best;
    save_taps<Saved, KD * KH * KW>(saved, i, n, taps);
  }
}

// n tiles, m windows.
template <typename T, int KD, int KH, int KW, int S, int L, int Saved, typename I>
__global__ void __launch_bounds__(256, 4) max_pool_narrow_backward(const Pack<T, LANES(L)>* __restrict__ dy,
    const Pack<unsigned char, LANES(L)>* __restrict__ saved, Pack<T, LANES(L)>* __restrict__ dx, int split, I n, I m, INNER, AXES) {
  LOAD_NARROW
  constexpr int M = LANES(L), Taps = KD * KH * KW, Planes = Saved == TIES ? (Taps + 7) / 8 : 1;
  using A = typename Sum<T>::type;
  using Tile = NarrowTile<I, KD, KH, KW, S>;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const Tile tile(at, d, h, w, by_inner.number);
    A sum[Tile::Cells][M] = {};
    tile.each_window([&](auto o, bool exists, int kz, int ky, int kx) {
      Pack<T, M> gradients = {};
      Pack<unsigned char, M> bytes[Planes] = {};
      if (exists) {
        gradients = dy[o];
#pragma unroll
        for (int p = 0; p < Planes; ++p) bytes[p] = saved[decltype(o)(m) * p + o];
      }
#pragma unroll
      for (int l = 0; l < M; ++l) {
        unsigned taps = exists || Saved == TIES ? 0 : Taps;
#pragma unroll
        for (int p = 0; p < Planes; ++p) taps |= unsigned(bytes[p].v[l]) << 8 * p;
        A g = widen(gradients.v[l]);
        if (Saved == TIES && split) g = quotient(g, A(__popc(taps)));
#pragma unroll
        for (int c = 0; c < Tile::Cells; ++c) {
          const int tap = Tile::tap(c, kz, ky, kx);
          if (tap >= 0 && (Saved == TIES ? (taps >> tap & 1) != 0 : taps == tap)) sum[c][l] = Tile::Disjoint ? g : plus(sum[c][l], g);
        }
      }
    });
    tile.each_cell([&](int c, auto cell) {
      Pack<T, M> out;
#pragma unroll
      for (int l = 0; l < M; ++l) out.v[l] = narrow<T>(sum[c][l]);
      dx[cell] = out;
    });
  }
}
