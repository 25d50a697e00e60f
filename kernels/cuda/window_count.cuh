// window_count.cuh - how many of a window's taps count: those from cell `low` to before cell `high` of each axis.
#pragma once

#define BOUNDS int d_low, int d_high, int h_low, int h_high, int w_low, int w_high

// The taps of window o that lie from low to before high.
__device__ __forceinline__ int taps_within(const Axis& a, int o, int low, int high) {
  const int start = a.start(o);
  if (!a.stride) return a.end(o) - start;
  const auto until = [&](int cell) {  // the taps before a cell
    const int by = cell - start;
    return min(by <= 0 ? 0 : a.dilation == 1 ? by : (by - 1) / a.dilation + 1, a.kernel);
  };
  return until(high) - until(low);
}

#define COUNT(S, oz, oy, ox) \
  S(max(taps_within(d, oz, d_low, d_high), 1)) * S(max(taps_within(h, oy, h_low, h_high), 1)) * \
      S(max(taps_within(w, ox, w_low, w_high), 1))
