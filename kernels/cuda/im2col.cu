// im2col.cu - im2col and col2im: an image's cells gathered into the columns of a matrix product, and added up again from
// them.
//
// Layout    image: the element of a sample, channel and cell is at the sum of their steps, which describe channels first and
//           channels last; D, H, W are the part of it that the windows reach, cut on its first axis. columns: (groups *
//           channels, taps, samples, windows) or, with ChannelsContiguous (channels last), (groups, samples, windows, taps,
//           channels); an element is then a Pack<T, L> of channels, and n and channels count packs. taps: consecutive in C
//           order, from `first` on.
// Types     im2col: T is an unsigned word of the element's size, moved untouched. col2im: T is float or double, and so are its
//           sums. int along an axis (launchers check that twice the padded length fits); I for offsets: unsigned below
//           2**31 elements, else unsigned long long.
// Order     col2im adds to a cell the windows over it, in C order: a gather, no atomics, the bits are fixed.
// Thread    im2col: 16 bytes of columns; one store where they differ only in the window of a row, or the channel. col2im: one
//           element of the image.
// Bytes     im2col: the image once, for further taps from the caches; the columns once. col2im: the columns once, the image
//           once each way.
// Source    `_im2col` and `_col2im` of functional/correlation.py; the tests compare these kernels with it. The names are Caffe's.
#include "common.cuh"
#include "window.cuh"

// The last digit of a number to a base; the number keeps the others.
template <typename B, typename I> __device__ __forceinline__ B digit(I& number, B base) {
  const I all = number;
  number = all / I(base);
  return B(all - number * I(base));
}

template <typename T, int L, bool ChannelsContiguous, typename I>
__global__ void __launch_bounds__(256, 4) im2col(const Pack<T, L>* __restrict__ image, Pack<T, L>* __restrict__ columns, I n,
    I samples, I channels, I sample_step, I channel_step, I cell_step, int first, int taps, AXES) {
  constexpr int V = 16 / sizeof(Pack<T, L>);
  LOAD_AXES
  for (I begin = (I(blockIdx.x) * blockDim.x + threadIdx.x) * V; begin < n; begin += I(gridDim.x) * blockDim.x * V) {
    const I end = n - begin < V ? n : begin + V;
    for (I i = begin, run; i < end; i += run) {  // a run: the windows of a row, or the channels of a tap
      I rest = i;
      const I lane = ChannelsContiguous ? digit(rest, channels) : 0;
      int tap = ChannelsContiguous ? digit(rest, taps) : 0;
      const int ox = digit(rest, w.out), oy = digit(rest, h.out), oz = digit(rest, d.out);
      const I sample = digit(rest, samples);
      if (!ChannelsContiguous) tap = digit(rest, taps);
      const I channel = ChannelsContiguous ? rest * channels + lane : rest;

      tap += first;
      const int tx = digit(tap, w.kernel), ty = digit(tap, h.kernel);
      const int z = d.cell(oz, tap), r = h.cell(oy, ty), c = w.cell(ox, tx);
      const bool in_image = d.contains(z) && h.contains(r);
      const I start = sample * sample_step + channel * channel_step + (I(z) * I(h.length) + I(r)) * I(w.length) * cell_step;
      const auto load = [&](int v) {
        const int column = ChannelsContiguous ? c : c + v * w.stride;
        return in_image && w.contains(column) ? image[start + I(column) * cell_step + (ChannelsContiguous ? I(v) : 0)]
                                              : Pack<T, L>{};
      };
      run = ChannelsContiguous ? channels - lane : I(w.out - ox);
      if (run >= V && end - i == V) {
        Pack<Pack<T, L>, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) pack.v[v] = load(v);
        *reinterpret_cast<Pack<Pack<T, L>, V>*>(columns + i) = pack;
      } else {
        for (int v = 0; v < run && i + v < end; ++v) columns[i + v] = load(v);
      }
    }
  }
}

// n: elements of the image's part.
template <typename T, int L, bool ChannelsContiguous, typename I>
__global__ void __launch_bounds__(256, 4) col2im(const Pack<T, L>* __restrict__ columns, Pack<T, L>* __restrict__ image, I n,
    I samples, I channels, I sample_step, I channel_step, I cell_step, int first, int taps, AXES) {
  LOAD_AXES
  const I windows = I(d.out) * I(h.out) * I(w.out);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    I rest = i, channel = ChannelsContiguous ? digit(rest, cell_step) : 0;  // a cell's channels, of all groups, are neighbours
    const int c = digit(rest, w.length), r = digit(rest, h.length), z = digit(rest, d.length);
    const I sample = digit(rest, samples);
    if (!ChannelsContiguous) channel = rest;
    Pack<T, L>* const cell =
        image + sample * sample_step + channel * channel_step + ((I(z) * I(h.length) + I(r)) * I(w.length) + I(c)) * cell_step;
    Pack<T, L> sum = *cell;

    I group = channel;
    const I lane = ChannelsContiguous ? digit(group, channels) : 0;
    const int last_z = d.last(z), first_y = h.first(r), last_y = h.last(r), first_x = w.first(c), last_x = w.last(c);
    for (int oz = d.first(z); oz <= last_z; ++oz) {
      const int tz = d.tap(oz, z);
      for (int oy = first_y; oy <= last_y && tz >= 0; ++oy) {
        const int ty = h.tap(oy, r);
        for (int ox = first_x; ox <= last_x && ty >= 0; ++ox) {
          const int tx = w.tap(ox, c), tap = (tz * h.kernel + ty) * w.kernel + tx - first;
          if (tx < 0 || tap < 0 || tap >= taps) continue;
          const I window = (I(oz) * I(h.out) + I(oy)) * I(w.out) + I(ox);
          const I at = ChannelsContiguous
                           ? (((group * samples + sample) * windows + window) * I(taps) + I(tap)) * channels + lane
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
