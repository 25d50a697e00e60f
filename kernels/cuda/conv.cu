// conv.cu - im2col and col2im: an image's cells gathered into the columns of a matrix product, and added up again from them.
//
// Layout    image: the element of a sample, channel and cell lies at the sum of their steps, which serve channels first and
//           last; D, H, W are the part of it that the windows reach, cut on its first axis. columns: (groups * channels,
//           taps, samples, windows), or in Runs, channels last, (groups, samples, windows, taps, channels), where an element
//           is a Pack<T, L> of channels and n and channels count such. taps: neighbours in C order, from `first` on.
// Types     im2col: T an unsigned word of the element's size, which moves untouched; col2im: T float or double, the sums too.
//           int along an axis (launchers see to it that twice the padded length fits), I for offsets: unsigned below 2**31
//           elements, else unsigned long long.
// Order     col2im adds to what a cell holds the windows over it, in C order: a gather, no atomics, the bits are fixed.
// Thread    im2col: 16 bytes of columns; one store where they differ only in the window of a row, or the channel. col2im: one
//           element of the image.
// Bytes     im2col: the image once, for further taps from the caches; the columns once. col2im: the columns once, the image
//           once each way.
// Source    functional/correlate.py, to which the tests hold these kernels; the names are Caffe's.
#include "common.cuh"

struct Axis {  // window o's tap t is on cell o * stride + t * dilation - before, if there is one
  int length, out, kernel, stride, dilation, before;

  __device__ __forceinline__ int cell(int o, int t) const { return o * stride + t * dilation - before; }
  __device__ __forceinline__ bool has(int i) const { return i >= 0 && i < length; }
  // The windows that reach from before a cell to behind it. With dilation, some may step over it: their tap is -1.
  __device__ __forceinline__ int first(int i) const {
    const int behind = i + before - dilation * (kernel - 1);
    return behind > 0 ? (behind - 1) / stride + 1 : 0;
  }
  __device__ __forceinline__ int last(int i) const { return min(out - 1, (i + before) / stride); }
  __device__ __forceinline__ int tap(int o, int i) const {
    const int by = i - cell(o, 0);
    return dilation == 1 ? by : by % dilation ? -1 : by / dilation;
  }
};
#define AXIS(a) int a##_length, int a##_out, int a##_kernel, int a##_stride, int a##_dilation, int a##_before
#define AXES AXIS(d), AXIS(h), AXIS(w)
#define GATHERED(a) const Axis a = {a##_length, a##_out, a##_kernel, a##_stride, a##_dilation, a##_before};
#define GATHERED_AXES GATHERED(d) GATHERED(h) GATHERED(w)

// The last digit of a number to a base; the number keeps the others.
template <typename B, typename I> __device__ __forceinline__ B digit(I& number, B base) {
  const I all = number;
  number = all / I(base);
  return B(all - number * I(base));
}

template <typename T, int L, bool Runs, typename I>
__global__ void __launch_bounds__(256, 4) im2col(const Pack<T, L>* __restrict__ image, Pack<T, L>* __restrict__ columns, I n,
    I samples, I channels, I sample_step, I channel_step, I cell_step, int first, int taps, AXES) {
  constexpr int V = 16 / sizeof(Pack<T, L>);
  GATHERED_AXES
  for (I begin = (I(blockIdx.x) * blockDim.x + threadIdx.x) * V; begin < n; begin += I(gridDim.x) * blockDim.x * V) {
    const I end = n - begin < V ? n : begin + V;
    for (I i = begin, run; i < end; i += run) {  // a run: the windows of a row, or the channels of a tap
      I rest = i;
      const I lane = Runs ? digit(rest, channels) : 0;
      int tap = Runs ? digit(rest, taps) : 0;
      const int ox = digit(rest, w.out), oy = digit(rest, h.out), oz = digit(rest, d.out);
      const I sample = digit(rest, samples);
      if (!Runs) tap = digit(rest, taps);
      const I channel = Runs ? rest * channels + lane : rest;

      tap += first;
      const int tx = digit(tap, w.kernel), ty = digit(tap, h.kernel);
      const int z = d.cell(oz, tap), r = h.cell(oy, ty), c = w.cell(ox, tx);
      const bool row = d.has(z) && h.has(r);
      const I start = sample * sample_step + channel * channel_step + (I(z) * I(h.length) + I(r)) * I(w.length) * cell_step;
      const auto seen = [&](int v) {
        const int at = Runs ? c : c + v * w.stride;
        return row && w.has(at) ? image[start + I(at) * cell_step + (Runs ? I(v) : 0)] : Pack<T, L>{};
      };
      run = Runs ? channels - lane : I(w.out - ox);
      if (run >= V && end - i == V) {
        Pack<Pack<T, L>, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) pack.v[v] = seen(v);
        *reinterpret_cast<Pack<Pack<T, L>, V>*>(columns + i) = pack;
      } else {
        for (int v = 0; v < run && i + v < end; ++v) columns[i + v] = seen(v);
      }
    }
  }
}

// n: elements of the image's part.
template <typename T, int L, bool Runs, typename I>
__global__ void __launch_bounds__(256, 4) col2im(const Pack<T, L>* __restrict__ columns, Pack<T, L>* __restrict__ image, I n,
    I samples, I channels, I sample_step, I channel_step, I cell_step, int first, int taps, AXES) {
  GATHERED_AXES
  const I windows = I(d.out) * I(h.out) * I(w.out);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    I rest = i, channel = Runs ? digit(rest, cell_step) : 0;  // a cell's channels, of all groups, are neighbours
    const int c = digit(rest, w.length), r = digit(rest, h.length), z = digit(rest, d.length);
    const I sample = digit(rest, samples);
    if (!Runs) channel = rest;
    Pack<T, L>* const cell =
        image + sample * sample_step + channel * channel_step + ((I(z) * I(h.length) + I(r)) * I(w.length) + I(c)) * cell_step;
    Pack<T, L> sum = *cell;

    I group = channel;
    const I lane = Runs ? digit(group, channels) : 0;
    const int last_z = d.last(z), first_y = h.first(r), last_y = h.last(r), first_x = w.first(c), last_x = w.last(c);
    for (int oz = d.first(z); oz <= last_z; ++oz) {
      const int tz = d.tap(oz, z);
      for (int oy = first_y; oy <= last_y && tz >= 0; ++oy) {
        const int ty = h.tap(oy, r);
        for (int ox = first_x; ox <= last_x && ty >= 0; ++ox) {
          const int tx = w.tap(ox, c), tap = (tz * h.kernel + ty) * w.kernel + tx - first;
          if (tx < 0 || tap < 0 || tap >= taps) continue;
          const I window = (I(oz) * I(h.out) + I(oy)) * I(w.out) + I(ox);
          const I at = Runs ? (((group * samples + sample) * windows + window) * I(taps) + I(tap)) * channels + lane
                            : ((channel * I(taps) + I(tap)) * samples + sample) * windows + window;
          const Pack<T, L> g = columns[at];
#pragma unroll
          for (int l = 0; l < L; ++l) sum.v[l] += g.v[l];
        }
      }
    }
    *cell = sum;
  }
}
