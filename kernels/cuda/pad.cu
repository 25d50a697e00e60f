// pad.cu - padding and cropping: forward, and the backward of the modes that copy a cell more than once.
//
// Layout    contiguous (outer, D, H, W, inner): channels first has inner = 1 and outer = n * c, channels last inner = c and
//           outer = n. Axes without padding may be merged into outer or inner; missing ones have length 1. An element is a
//           Pack<T, L>, L neighbours of inner; n_x, n_y and inner count elements.
// Modes     see pad.cuh. The backward of constant padding is its forward with x and y exchanged.
// Types     forward: T is an unsigned word of the element's size, bits move untouched. backward: T is the element; floats are
//           summed in Sum<T>, subnormals kept, integers in their own type. int along an axis (launchers check that it
//           fits); I for offsets: unsigned below 2**31 elements, else unsigned long long.
// Thread    16 bytes of the result, V elements: whole words and one store where they are copies of neighbours. At a border
//           forward loads V single elements and stores them at once; else one element after another. Backward gathers: no
//           atomics, the bits are fixed.
// Bytes     x once, y once; dy once, dx once: the least. What borders read again comes from the caches.
// Source    functional/pad.py; the tests compare these kernels with it bit for bit.
#include "common.cuh"
#include "pad.cuh"

#define DIVISORS DIVISOR(inner), DIVISOR(width), DIVISOR(height), DIVISOR(depth)
#define LOAD_DIVISORS(cells) \
  const Divisor<I> by_inner = LOAD_DIVISOR(inner, inner), by_width = LOAD_DIVISOR(width, I(w.cells)), \
                   by_height = LOAD_DIVISOR(height, I(h.cells)), by_depth = LOAD_DIVISOR(depth, I(d.cells));

template <typename I> struct Position {  // the coordinates of an element of (outer, depth, height, width, inner)
  I outer;
  int z, r, c;
  I lane;

  __device__ __forceinline__ Position(
      I i, const Divisor<I>& depth, const Divisor<I>& height, const Divisor<I>& width, const Divisor<I>& inner) {
    const I columns = inner.quotient(i), rows = width.quotient(columns), planes = height.quotient(rows);
    outer = depth.quotient(planes);
    z = int(planes - outer * depth.number);
    r = int(rows - planes * height.number);
    c = int(columns - rows * width.number);
    lane = i - columns * inner.number;
  }
  // Moves on to the next element; returns whether it begins a row.
  __device__ __forceinline__ bool next(int depth, int height, int width, I inner) {
    if (++lane < inner) return false;
    lane = 0;
    if (++c < width) return false;
    c = 0;
    if (++r == height) {
      r = 0;
      if (++z == depth) {
        z = 0;
        ++outer;
      }
    }
    return true;
  }
};

// Copies 16 bytes from any address to a multiple of 16, by whole words: reads at most 7 bytes before and behind them too.
template <typename E> __device__ __forceinline__ void copy(const E* __restrict__ from, E* __restrict__ to) {
  if constexpr (sizeof(E) == 16) {
    *to = *from;
  } else {
    using Word = unsigned long long;
    const size_t at = reinterpret_cast<size_t>(from);
    const Word* words = reinterpret_cast<const Word*>(at - at % 8);
    const int shift = int(at % 8) * 8;
    const Word low = words[0], middle = words[1], high = shift ? words[2] : 0;
    Pack<Word, 2>* const moved = reinterpret_cast<Pack<Word, 2>*>(to);
    *moved = {low >> shift | middle << 1 << (63 - shift), middle >> shift | high << 1 << (63 - shift)};
  }
}

// Whether `copy` may read from element p of n on, with its margin.
template <typename E, typename I> __device__ __forceinline__ bool can_copy(I p, I n) {
  constexpr I margin = sizeof(E) < 8 ? 8 / sizeof(E) : 0;
  return p + 1 > margin && p < n && n - p >= margin + 16 / sizeof(E);
}

// `fill`: eight bytes, the fill value repeated.
template <typename T, int L> __device__ __forceinline__ Pack<T, L> fill_pack(unsigned long long fill) {
  Pack<T, L> pack;
#pragma unroll
  for (int l = 0; l < L; ++l) pack.v[l] = T(fill);
  return pack;
}

template <typename T, int L, typename I>
__global__ void __launch_bounds__(256) pad_forward(
    const Pack<T, L>* __restrict__ x, Pack<T, L>* __restrict__ y, unsigned long long fill, I n_x, I n_y, I inner,
    DIVISORS, AXES) {
  constexpr int V = 16 / sizeof(Pack<T, L>);
  LOAD_AXES
  LOAD_DIVISORS(out)
  const I row = I(w.length) * inner;
  for (I i = (I(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < n_y; i += I(gridDim.x) * blockDim.x * V) {
    Position<I> at(i, by_depth, by_height, by_width, by_inner);
    int z = d.source_cell(at.z), r = h.source_cell(at.r);
    I start = ((at.outer * I(d.length) + I(z)) * I(h.length) + I(r)) * row;  // the row of x that is copied, if any
    const I left = I(w.out - at.c) * inner - at.lane;                        // elements of y's row
    const I first =
        I(at.c + w.offset) * inner + at.lane;  // position in x's row; before the row it wraps round to a large number
    const bool copies = z >= 0 && r >= 0 && left >= V && first < row && row - first >= V;
    if (copies && can_copy<Pack<T, L>>(start + first, n_x)) {
      copy(x + start + first, y + i);
      continue;
    }
    for (int v = 0; v < V && i + v < n_y; ++v) {
      const int c = w.source_cell(at.c);
      y[i + v] = z >= 0 && r >= 0 && c >= 0 ? x[start + I(c) * inner + at.lane] : fill_pack<T, L>(fill);
      if (at.next(d.out, h.out, w.out, inner)) {
        z = d.source_cell(at.z), r = h.source_cell(at.r);
        start = ((at.outer * I(d.length) + I(z)) * I(h.length) + I(r)) * row;
      }
    }
  }
}

template <typename T, int L, typename I>
__global__ void __launch_bounds__(256, 4)
    pad_backward(const Pack<T, L>* __restrict__ dy, Pack<T, L>* __restrict__ dx, I n_y, I n_x, I inner, DIVISORS, AXES) {
  constexpr int V = 16 / sizeof(Pack<T, L>);
  LOAD_AXES
  LOAD_DIVISORS(length)
  for (I i = (I(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < n_x; i += I(gridDim.x) * blockDim.x * V) {
    Position<I> at(i, by_depth, by_height, by_width, by_inner);
    Sources planes = d.sources(at.z), rows = h.sources(at.r);
    const auto cell = [&](int z, int r, int c) {  // the offset of the element at a cell of y
      return (((at.outer * I(d.out) + I(z)) * I(h.out) + I(r)) * I(w.out) + I(c)) * inner + at.lane;
    };
    if (V > 1 && planes.single() && rows.single() && I(w.length - at.c) * inner - at.lane >= V && w.copied_once(at.c, at.c + V - 1)) {
      const I from = cell(planes.interior, rows.interior, at.c - w.offset);
      if (can_copy<Pack<T, L>>(from, n_y)) {
        copy(dy + from, dx + i);
        continue;
      }
    }
    for (int v = 0; v < V && i + v < n_x; ++v) {
      dx[i + v] = gradient<T, L>(planes, rows, w.sources(at.c), [&](int z, int r, int c) { return dy[cell(z, r, c)]; });
      if (at.next(d.length, h.length, w.length, inner)) planes = d.sources(at.z), rows = h.sources(at.r);
    }
  }
}
