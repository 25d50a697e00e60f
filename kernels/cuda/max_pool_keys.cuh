// max_pool_keys.cuh - maxima with their taps: what the kernels of narrow windows share.
#pragma once

enum Save { NOTHING = 0, ARGMAX = 1, TIES = 2 };  // what forward writes besides y

constexpr int BELOW_ALL = -2147483647 - 1;  // a key below those of cells

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

// Values of maxima from their keys, two at a time.
template <typename T, int M> __device__ __forceinline__ void values_of(const int (&keys)[M], Pack<T, M>& best) {
#pragma unroll
  for (int m = 0; m < M; m += 2) {
    const unsigned low = unsigned(keys[m]) >> 16, high = m + 1 < M ? unsigned(keys[m + 1]) & 0xffff0000u : 0u;
    const unsigned values = rank_pair(low | high);
    memcpy(&best.v[m], &values, m + 1 < M ? 4 : 2);
  }
}

// The maximum of a window so far, and its tap or the bits of taps that equal it.
template <typename T, int Saved> struct Best {
  typename Bits<sizeof(T)>::type best_rank = -Infinity<T>::value - 1;  // below every rank
  T value;
  unsigned taps;

  __device__ __forceinline__ void add(T v, decltype(best_rank) r, unsigned tap) {
    if (r > best_rank) {
      value = v;
      best_rank = r;
      if (Saved) taps = Saved == TIES ? 1u << tap : tap;
    } else if (Saved == TIES && r == best_rank) {
      taps |= 1u << tap;
    }
  }
};

// Writes window i of n: an argmax, or one byte of eight of the `Taps` tie bits.
template <int Saved, int Taps, int M, typename I> __device__ __forceinline__ void save_taps(
    Pack<unsigned char, M>* __restrict__ saved, I i, I n, const unsigned (&taps)[M]) {
#pragma unroll
  for (int byte = 0; byte < (Saved == TIES ? (Taps + 7) / 8 : Saved); ++byte) {
    Pack<unsigned char, M> some;
#pragma unroll
    for (int m = 0; m < M; ++m) some.v[m] = static_cast<unsigned char>(taps[m] >> 8 * byte);
    saved[I(byte) * n + i] = some;
  }
}
