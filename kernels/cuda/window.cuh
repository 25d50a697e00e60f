// window.cuh - the windows of a pool: which cells a window reads, and which windows read a cell.
//
// Layout    contiguous (outer, D, H, W, inner): channels first has inner = 1 and outer = n * c, channels last inner = c and
//           outer = n. Missing spatial axes come first and have length, windows, kernel and stride 1.
// Axis      window o's tap t reads cell o * stride + t * dilation - before, if there is one. Stride 0 means adaptive: window o
//           is the cells floor(o * length / out) to ceil((o + 1) * length / out), `kernel` the widest.
// Types     int along an axis (launchers check that twice the padded length fits), I for offsets into arrays.
// Order     cells of a window, and windows over a cell, are visited in C order.
#pragma once

struct Span {  // one window on one axis: the first tap inside the input, the cell it reads, and the cell after the window
  int tap, cell, end;
};

struct Axis {
  int length, out, kernel, stride, dilation, before;
  Divisor<unsigned> by_stride, by_places;  // by_stride: by `out` if adaptive; places: the cells or windows of threads

  __device__ __forceinline__ int cell(int o, int tap) const { return o * stride + tap * dilation - before; }  // not adaptive
  __device__ __forceinline__ bool contains(int i) const { return i >= 0 && i < length; }

  // (i * times + more) / by.number, rounded down.
  static __device__ __forceinline__ int scaled(int i, int times, int more, const Divisor<unsigned>& by) {
    const long long product = static_cast<long long>(i) * times + more;
    return product < 1LL << 31 ? int(by.quotient(unsigned(product))) : int(product / by.number);
  }
  __device__ __forceinline__ int start(int o) const {
    return stride ? o * stride - before : scaled(o, length, 0, by_stride);
  }
  __device__ __forceinline__ int end(int o) const {
    return stride ? min(length, start(o) + kernel * dilation) : scaled(o + 1, length, out - 1, by_stride);
  }
  __device__ __forceinline__ Span span(int o) const {
    const int s = start(o), skipped = s < 0 ? (dilation - 1 - s) / dilation : 0;
    return {skipped, s + skipped * dilation, end(o)};
  }

  // The first and the last window whose extent includes a cell, where threads have cells if windows are adaptive. With
  // dilation, some windows between them do not read it.
  __device__ __forceinline__ int first(int cell) const {
    if (!stride) return scaled(cell, out, 0, by_places);
    const int behind = cell + before - dilation * (kernel - 1);
    return behind > 0 ? int(by_stride.quotient(unsigned(behind - 1))) + 1 : 0;
  }
  __device__ __forceinline__ int last(int cell) const {
    return stride ? min(out - 1, int(by_stride.quotient(unsigned(cell + before))))
                  : scaled(cell + 1, out, length - 1, by_places) - 1;
  }
  // The tap of window o that reads a cell at or after the window's start; -1 if none does.
  __device__ __forceinline__ int tap(int o, int cell) const {
    int by = cell - start(o);
    if (dilation > 1) {
      if (by % dilation) return -1;
      by /= dilation;
    }
    return by < kernel ? by : -1;
  }
  // Whether window o, of those from the first to the last, reads a cell.
  __device__ __forceinline__ bool reads(int o, int cell) const { return dilation == 1 || tap(o, cell) >= 0; }
};
#define AXIS(a) \
  int a##_length, int a##_out, int a##_kernel, int a##_stride, int a##_dilation, int a##_before, DIVISOR(a##_stride), \
      unsigned a##_number, DIVISOR(a##_places)
#define AXES AXIS(d), AXIS(h), AXIS(w)
#define LOAD_AXIS(a) \
  const Axis a = {a##_length, a##_out, a##_kernel, a##_stride, a##_dilation, a##_before, \
      LOAD_DIVISOR(a##_stride, unsigned(a##_stride ? a##_stride : a##_out)), LOAD_DIVISOR(a##_places, a##_number)};
#define LOAD_AXES LOAD_AXIS(d) LOAD_AXIS(h) LOAD_AXIS(w)

template <typename I> struct Place {  // the coordinates of an element in (outer, D, H, W, inner)
  I outer;
  int z, r, c;
  I channel;  // the position on the inner axis: 0 with channels first
};

template <typename I>
__device__ __forceinline__ Place<I> place_of(I i, const Axis& d, const Axis& h, const Axis& w, const Divisor<I>& inner) {
  const auto quotient = [](I number, const Divisor<unsigned>& by) {
    return Divisor<I>{by.number, by.multiplier, by.shift}.quotient(number);
  };
  const I columns = inner.number > 1 ? inner.quotient(i) : i, rows = quotient(columns, w.by_places),
          planes = quotient(rows, h.by_places), outer = d.by_places.number > 1 ? quotient(planes, d.by_places) : planes;
  return {outer, int(planes - outer * d.by_places.number), int(rows - planes * h.by_places.number),
      int(columns - rows * w.by_places.number), i - columns * inner.number};
}
#define INNER I inner, DIVISOR(inner)
#define LOAD_INNER const Divisor<I> by_inner = LOAD_DIVISOR(inner, inner);

// The offset of an element of (outer, D, H, W, inner), given its flat position in a spatial plane of `plane` cells.
template <typename I> __device__ __forceinline__ I element(const Place<I>& at, I plane, I flat, I inner) {
  return (at.outer * plane + flat) * inner + at.channel;
}

// each(tap, cell) for the taps of window (oz, oy, ox) inside the input, or for every `step`th of each row from the
// `offset`th on. `tap` is the position in the window, `cell` the position in the plane.
template <typename I, typename F>
__device__ __forceinline__ void each_tap(
    const Axis& d, const Axis& h, const Axis& w, int oz, int oy, int ox, F each, int offset = 0, int step = 1) {
  const Span sd = d.span(oz), sh = h.span(oy), sw = w.span(ox);
  for (int z = sd.cell, tz = sd.tap; z < sd.end; z += d.dilation, ++tz)
    for (int r = sh.cell, ty = sh.tap; r < sh.end; r += h.dilation, ++ty)
      for (int c = sw.cell + offset * w.dilation, tx = sw.tap + offset; c < sw.end; c += step * w.dilation, tx += step)
        each((tz * h.kernel + ty) * w.kernel + tx, (I(z) * I(h.length) + I(r)) * I(w.length) + I(c));
}

// each(tap, oz, oy, ox) for the windows that have a tap on cell (z, r, c).
template <typename F>
__device__ __forceinline__ void each_window(const Axis& d, const Axis& h, const Axis& w, int z, int r, int c, F each) {
  const int last_z = d.last(z), first_y = h.first(r), last_y = h.last(r), first_x = w.first(c), last_x = w.last(c);
  for (int oz = d.first(z); oz <= last_z; ++oz) {
    const int tz = d.tap(oz, z);
    for (int oy = first_y; oy <= last_y && tz >= 0; ++oy) {
      const int ty = h.tap(oy, r);
      for (int ox = first_x; ox <= last_x && ty >= 0; ++ox) {
        const int tx = w.tap(ox, c);
        if (tx >= 0) each((tz * h.kernel + ty) * w.kernel + tx, oz, oy, ox);
      }
    }
  }
}
