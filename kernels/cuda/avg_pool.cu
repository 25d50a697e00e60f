// avg_pool.cu - sum, average and adaptive average pooling, forward and backward.
//
// Layout    window.cuh's.
// Types     T any float; sums in Sum<T> without flushing, of at most RUN cells of a row, then of as many of these sums, and in
//           double from there on, so that no sum loses digits, however long. I (offsets) unsigned below 2**31 elements, else
//           unsigned long long.
// Divisor   one number for all windows where `counted` is 0 (1 for sums). Else each window's own count: on each axis its taps from
//           `low` to before `high` (the input, or with its declared padding: ceil mode's overhang never counts), the
//           product of the axes; adaptive windows count their cells. A window without a counted cell has sum 0 and divisor 1.
// NaN       spreads through its window.
// Thread    sum_pool: one output, or with channels last one of each of V channels; a warp an output where windows have long
//           rows: its lanes take every 32nd cell of a row and add up in pairs. sum_pool_backward: one cell, of V channels,
//           which gathers from the windows over it in C order. No atomics; the order depends on the shapes alone.
// Bytes     each array once from memory, the least there is; what windows share comes from the caches.
// Source    the portable code in functional/avg_pool.py; the tests compare these kernels with it.
#include "common.cuh"
#include "quotients.cuh"
#include "window.cuh"
#include "window_count.cuh"

constexpr int RUN = 32;  // numbers that are added up in their own type

// Sums of any length, of V channels.
template <typename S, int V> struct LongSums {
  S some[V] = {};
  double total[V] = {};
  int number = 0;

  __device__ __forceinline__ void add(const S (&values)[V]) {
    ++number;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      some[v] = plus(some[v], values[v]);
      if (number % RUN) continue;
      total[v] += double(some[v]);
      some[v] = 0;
    }
  }
  __device__ __forceinline__ S value(int v) const { return number < RUN ? some[v] : S(total[v] + double(some[v])); }
};

// The sums of window `at`: of all its cells, or of every `step`th cell of each row from the `offset`th on.
template <typename T, int V, typename I> __device__ __forceinline__ LongSums<typename Sum<T>::type, V> window_sums(
    const Pack<T, V>* __restrict__ x, const Place<I>& at, I inner, const Axis& d, const Axis& h, const Axis& w, int offset, int step) {
  using S = typename Sum<T>::type;
  constexpr int U = 4;  // cells at once; those outside are 0, which changes no sum
  const Span sd = d.span(at.z), sh = h.span(at.r), sw = w.span(at.c);
  const int apart = step * w.dilation;
  LongSums<S, V> sums;
  for (int z = sd.cell; z < sd.end; z += d.dilation)
    for (int r = sh.cell; r < sh.end; r += h.dilation) {
      const Pack<T, V>* cells = x + ((at.outer * I(d.length) + I(z)) * I(h.length) + I(r)) * I(w.length) * inner + at.channel;
      for (int c = sw.cell + offset * w.dilation; c < sw.end;) {
        S run[V] = {};
        for (int k = 0; k < RUN && c < sw.end; k += U, c += U * apart) {
          Pack<T, V> some[U] = {};
#pragma unroll
          for (int u = 0; u < U; ++u)
            if (c + u * apart < sw.end) some[u] = cells[I(c + u * apart) * inner];
#pragma unroll
          for (int u = 0; u < U; ++u)
#pragma unroll
            for (int v = 0; v < V; ++v) run[v] = plus(run[v], widen(some[u].v[v]));
        }
        sums.add(run);
      }
    }
  return sums;
}

// L lanes of a warp a window of V channels, one of which is 1; n packs of y. blockDim.x is a multiple of 32.
template <typename T, int L, int V, typename I>
__global__ void __launch_bounds__(256, 3) sum_pool(const Pack<T, V>* __restrict__ x, Pack<T, V>* __restrict__ y,
    typename Sum<T>::type divisor, int counted, I n, INNER, AXES, BOUNDS) {
  LOAD_AXES LOAD_INNER
  using S = typename Sum<T>::type;
  const int lane = int(threadIdx.x) % L, teams = int(blockDim.x) / L;
  for (I i = I(blockIdx.x) * teams + threadIdx.x / L; i < n; i += I(gridDim.x) * teams) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    const auto sums = window_sums<T, V>(x, at, inner, d, h, w, lane, L);
    const S count = counted ? COUNT(S, at.z, at.r, at.c) : divisor;
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      S sum = sums.value(v);
#pragma unroll
      for (int by = L / 2; by; by /= 2) sum = plus(sum, __shfl_xor_sync(0xffffffffu, sum, by));
      out.v[v] = narrow<T>(quotient(sum, count));
    }
    if (lane == 0) y[i] = out;
  }
}

// n packs of V channels of dx. `counted` is 2 where a count may be 2**16 or more.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256, 3) sum_pool_backward(const Pack<T, V>* __restrict__ dy, Pack<T, V>* __restrict__ dx,
    typename Sum<T>::type divisor, int counted, I n, INNER, AXES, BOUNDS) {
  LOAD_AXES LOAD_INNER
  using S = typename Sum<T>::type;
  const I windows = I(d.out) * I(h.out) * I(w.out);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Place<I> at = place_of(i, d, h, w, by_inner);
    LongSums<S, V> gathered;
    const auto add = [&](I window, S count) {
      const Pack<T, V> gradients = dy[element(at, windows, window, inner)];
      S shares[V];
#pragma unroll
      for (int v = 0; v < V; ++v) shares[v] = widen(gradients.v[v]);
      if (counted == 1 && Quotients<T>::Half) {
        const Quotients<T> quotients(count);
#pragma unroll
        for (int v = 0; v < V; ++v) shares[v] = quotients(shares[v]);
      } else if (counted) {
#pragma unroll
        for (int v = 0; v < V; ++v) shares[v] = quotient(shares[v], count);
      }
      gathered.add(shares);
    };
    const auto count = [&](const Axis& a, int o, int low, int high) { return counted ? S(max(taps_within(a, o, low, high), 1)) : S(1); };
    const int last_z = d.last(at.z), first_y = h.first(at.r), last_y = h.last(at.r), first_x = w.first(at.c), last_x = w.last(at.c);
    for (int oz = d.first(at.z); oz <= last_z; ++oz) {
      if (!d.reads(oz, at.z)) continue;
      const S planes = count(d, oz, d_low, d_high);
      for (int oy = first_y; oy <= last_y; ++oy) {
        if (!h.reads(oy, at.r)) continue;
        const S rows = planes * count(h, oy, h_low, h_high);
        for (int ox = first_x; ox <= last_x; ++ox)
          if (w.reads(ox, at.c)) add((I(oz) * I(h.out) + I(oy)) * I(w.out) + I(ox), rows * count(w, ox, w_low, w_high));
      }
    }
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = narrow<T>(counted ? gathered.value(v) : quotient(gathered.value(v), divisor));
    dx[i] = out;
  }
}
