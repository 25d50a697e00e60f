// window_narrow.cuh - windows of K cells every S on the pooled axes, known at compile time.
//
// Layout    window.cuh's; KD, KH and KW are 1 on axes that are not pooled, and those have no padding. L is 0 with channels
//           first; with channels last an element is L neighbouring channels, and `inner` counts these.
// Tile      S cells an axis, the first of window o's: tiles are numbered as windows, and the first may begin outside. The
//           windows o - (K - 1) / S to o reach into tile o.
#pragma once

#define LANES(L) ((L) ? (L) : 1)
#define LOAD_NARROW \
  LOAD_AXES const Divisor<I> by_inner = {L ? inner : I(1), inner_multiplier, inner_shift};

template <typename I> struct SignedOffset {
  using type = long long;
};
template <> struct SignedOffset<unsigned> {
  using type = int;
};

template <typename J> struct Grid {  // an array (outer, D, H, W, inner)
  int depth, height, width;
  J inner;

  __device__ __forceinline__ J offset(J z, J r, J c) const { return ((z * J(height) + r) * J(width) + c) * inner; }
  __device__ __forceinline__ bool has(int z, int r, int c) const {
    return unsigned(z) < unsigned(depth) && unsigned(r) < unsigned(height) && unsigned(c) < unsigned(width);
  }
};

template <typename I, int KD, int KH, int KW, int S> struct NarrowWindow {
  using J = typename SignedOffset<I>::type;
  const Grid<J> cells;
  const int z, r, c;  // its first cell
  const J corner;     // the offset of that

  __device__ __forceinline__ NarrowWindow(const Place<I>& at, const Axis& d, const Axis& h, const Axis& w, I inner)
      : cells{d.length, h.length, w.length, J(inner)}, z(KD > 1 ? at.z * S - d.before : at.z),
        r(KH > 1 ? at.r * S - h.before : at.r), c(KW > 1 ? at.c * S - w.before : at.c),
        corner(cells.offset(J(at.outer) * d.length + z, r, c) + J(at.channel)) {}

  // Whether the input has a tap's cell, and its offset from the first one's.
  __device__ __forceinline__ bool has(int tz, int ty, int tx) const { return cells.has(z + tz, r + ty, c + tx); }
  __device__ __forceinline__ J offset(int tz, int ty, int tx) const { return cells.offset(tz, ty, tx); }
};

template <typename I, int KD, int KH, int KW, int S> struct NarrowTile {
  using J = typename SignedOffset<I>::type;
  static constexpr int SD = KD > 1 ? S : 1, SH = KH > 1 ? S : 1, SW = KW > 1 ? S : 1, Cells = SD * SH * SW;
  static constexpr bool Disjoint = KD <= SD && KH <= SH && KW <= SW;
  const Grid<J> cells, windows;
  const Place<I> at;
  const int z, r, c;  // its first cell

  __device__ __forceinline__ NarrowTile(const Place<I>& at, const Axis& d, const Axis& h, const Axis& w, I inner)
      : cells{d.length, h.length, w.length, J(inner)}, windows{d.out, h.out, w.out, J(inner)}, at(at),
        z(at.z * SD - d.before), r(at.r * SH - h.before), c(at.c * SW - w.before) {}

  // The tap of the window k tiles before that reads a cell of the tile; -1 if none does.
  static __device__ __forceinline__ int tap(int cell, int kz, int ky, int kx) {
    const int tz = SD * kz + cell / (SH * SW), ty = SH * ky + cell / SW % SH, tx = SW * kx + cell % SW;
    return tz < KD && ty < KH && tx < KW ? (tz * KH + ty) * KW + tx : -1;
  }
  // each(offset, whether it exists, kz, ky, kx) for the windows that reach into the tile, in C order.
  template <typename F> __device__ __forceinline__ void each_window(F each) const {
    const J own = windows.offset(J(at.outer) * windows.depth + at.z, at.r, at.c) + J(at.channel);
#pragma unroll 1
    for (int kz = (KD - 1) / SD; kz >= 0; --kz)
#pragma unroll
      for (int ky = (KH - 1) / SH; ky >= 0; --ky)
#pragma unroll
        for (int kx = (KW - 1) / SW; kx >= 0; --kx)
          each(own - windows.offset(kz, ky, kx), windows.has(at.z - kz, at.r - ky, at.c - kx), kz, ky, kx);
  }
  // each(cell of the tile, offset) for those that the input has.
  template <typename F> __device__ __forceinline__ void each_cell(F each) const {
    const J own = cells.offset(J(at.outer) * cells.depth + z, r, c) + J(at.channel);
#pragma unroll
    for (int k = 0; k < Cells; ++k) {
      const int dz = k / (SH * SW), dr = k / SW % SH, dc = k % SW;
      if (cells.has(z + dz, r + dr, c + dc)) each(k, own + cells.offset(dz, dr, dc));
    }
  }
};
