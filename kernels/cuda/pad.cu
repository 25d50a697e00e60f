// pad.cu - padding and cropping: forward, and the backward of the modes that show a cell more than once.
//
// Layout    contiguous (outer, D, H, W, inner): channels first has inner = 1 and outer = n * c, channels last inner = c and
//           outer = n. Axes without padding may be counted to outer or inner; missing ones have length 1. An element is a
//           Pack<T, L>, L neighbours of inner; n_x, n_y and inner count elements.
// Modes     are numbers: beside x, y shows x's cell `front` or `back`, and further out goes on by `step` cells a cell. Constant
//           -1, -1, 0 (no cell: the fill); edge 0, length - 1, 0; reflect 1, length - 2, -1; symmetric 0, length - 1, -1; wrap
//           period - 1, length - period, 1. Forward of a constant with x and y changed places is its own backward.
// Types     forward: T an unsigned word of the element's size, bits move untouched. backward: T the element; floats are summed in
//           Sum<T>, subnormals kept, integers in their own type. int along an axis (launchers see to it that it fits), I
//           for offsets: unsigned below 2**31 elements, else unsigned long long.
// Order     that of functional/pad.py: the innermost axis first; at a cell its own gradient (0 if y crops it), then the
//           border before, then behind, each from the outermost cell inwards. A gradient that stands alone moves untouched.
// Thread    16 bytes of the result, V elements: whole words and one store where they are copies of neighbours, else one
//           element after another. Backward gathers: no atomics, the bits are fixed.
// Bytes     x once, y once; dy once, dx once: the least. What borders read again comes from the caches.
// Source    functional/pad.py, to which the tests hold these kernels bit for bit.
#include "common.cuh"

template <typename T, bool = IsFloat<T>::value> struct Total { using type = T; };
template <typename T> struct Total<T, true> { using type = typename Sum<T>::type; };

struct Sources {  // the cells of y that show one cell of x, in the order in which they are added
  int own;            // -1: y crops it
  int front, fronts;  // of the border before: the first, how many; onwards
  int back, backs;    // of the border behind: the last, how many; backwards

  __device__ __forceinline__ int count() const { return 1 + fronts + backs; }
  __device__ __forceinline__ bool alone() const { return own >= 0 && fronts + backs == 0; }
  __device__ __forceinline__ int operator[](int k) const {
    return k == 0 ? own : k <= fronts ? front + (k - 1) : back - (k - 1 - fronts);
  }
};

struct Axis {
  int length, out;        // cells of x and of y
  int offset;             // y's cell o is cell o + offset of x, if there is one
  int front, back, step;  // the mode (see above)

  __device__ __forceinline__ int shown(int o) const {  // the cell of x that y's cell o shows; -1: none
    const int i = o + offset;
    return i < 0 ? front + step * (i + 1) : i < length ? i : back + step * (i - length);
  }
  __device__ __forceinline__ int before() const { return offset < 0 ? -offset : 0; }
  __device__ __forceinline__ int after() const { return out + offset > length ? out + offset - length : 0; }

  __device__ __forceinline__ Sources sources(int i) const {
    const int own = i >= offset && i < out + offset ? i - offset : -1;
    if (step == 0) return {own, 0, i == front ? before() : 0, out - 1, i == back ? after() : 0};
    const int ahead = step * (front - i), behind = step * (i - back);  // border cells between x and the one that shows i
    return {own, before() - 1 - ahead, ahead >= 0 && ahead < before(), out - after() + behind,
            behind >= 0 && behind < after()};
  }
  // Whether y shows each of x's cells i to j, and only once.
  __device__ __forceinline__ bool once(int i, int j) const {
    const int f = front - step * (before() - 1), b = back + step * (after() - 1);  // what the outermost border cells show
    return i >= offset && j < out + offset && (before() == 0 || j < min(f, front) || i > max(f, front)) &&
           (after() == 0 || j < min(b, back) || i > max(b, back));
  }
};
#define AXIS(a) int a##_length, int a##_out, int a##_offset, int a##_front, int a##_back
#define AXES int step, AXIS(d), AXIS(h), AXIS(w)
#define GATHERED(a) const Axis a = {a##_length, a##_out, a##_offset, a##_front, a##_back, step};
#define GATHERED_AXES GATHERED(d) GATHERED(h) GATHERED(w)

template <typename I> struct Place {  // of an element of an array (outer, depth, height, width, inner)
  I outer;
  int z, r, c;
  I lane;

  __device__ __forceinline__ Place(I i, int depth, int height, int width, I inner) {
    const I columns = inner == 1 ? i : i / inner, rows = columns / I(width), planes = rows / I(height);
    outer = planes / I(depth);
    z = int(planes - outer * I(depth));
    r = int(rows - planes * I(height));
    c = int(columns - rows * I(width));
    lane = i - columns * inner;
  }
  // On to the next element; whether it begins a row.
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

// 16 bytes from anywhere to a boundary of 16, by whole words: at most 7 bytes before and behind are read along.
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

// Whether `copy` may read from element p of n on.
template <typename E, typename I> __device__ __forceinline__ bool within(I p, I n) {
  constexpr I along = sizeof(E) < 8 ? 8 / sizeof(E) : 0;
  return p + 1 > along && p < n && n - p >= along + 16 / sizeof(E);
}

// Eight bytes hold the fill over and over.
template <typename T, int L> __device__ __forceinline__ Pack<T, L> filled(unsigned long long fill) {
  Pack<T, L> pack;
#pragma unroll
  for (int l = 0; l < L; ++l) pack.v[l] = T(fill);
  return pack;
}

template <typename T, int L, typename I>
__global__ void __launch_bounds__(256) pad_forward(const Pack<T, L>* __restrict__ x, Pack<T, L>* __restrict__ y,
    unsigned long long fill, I n_x, I n_y, I inner, AXES) {
  constexpr int V = 16 / sizeof(Pack<T, L>);
  GATHERED_AXES
  const I row = I(w.length) * inner;
  for (I i = (I(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < n_y; i += I(gridDim.x) * blockDim.x * V) {
    Place<I> at(i, d.out, h.out, w.out, inner);
    int z = d.shown(at.z), r = h.shown(at.r);
    I start = ((at.outer * I(d.length) + I(z)) * I(h.length) + I(r)) * row;  // of the row of x that is shown, if one is
    const I left = I(w.out - at.c) * inner - at.lane;      // elements of y's row
    const I first = I(at.c + w.offset) * inner + at.lane;  // in x's row: what lies before it wraps, and is behind it
    const bool copies = z >= 0 && r >= 0 && left >= V && first < row && row - first >= V;
    if (copies && within<Pack<T, L>>(start + first, n_x)) {
      copy(x + start + first, y + i);
      continue;
    }
    for (int v = 0; v < V && i + v < n_y; ++v) {
      const int c = w.shown(at.c);
      y[i + v] = z >= 0 && r >= 0 && c >= 0 ? x[start + I(c) * inner + at.lane] : filled<T, L>(fill);
      if (at.next(d.out, h.out, w.out, inner)) {
        z = d.shown(at.z), r = h.shown(at.r);
        start = ((at.outer * I(d.length) + I(z)) * I(h.length) + I(r)) * row;
      }
    }
  }
}

template <typename A, typename T, int L> __device__ __forceinline__ Pack<A, L> widened(const Pack<T, L>& v) {
  Pack<A, L> wide;
#pragma unroll
  for (int l = 0; l < L; ++l) wide.v[l] = A(widen(v.v[l]));
  return wide;
}

template <typename T, typename A, int L> __device__ __forceinline__ Pack<T, L> narrowed(const Pack<A, L>& v) {
  Pack<T, L> slim;
#pragma unroll
  for (int l = 0; l < L; ++l) slim.v[l] = narrow<T, A>(v.v[l]);
  return slim;
}

template <typename A, int L> __device__ __forceinline__ void add(Pack<A, L>& sum, const Pack<A, L>& v, bool first) {
#pragma unroll
  for (int l = 0; l < L; ++l) sum.v[l] = first ? v.v[l] : plus<A>(sum.v[l], v.v[l]);
}

template <typename T, int L, typename I>
__global__ void __launch_bounds__(256, 2) pad_backward(const Pack<T, L>* __restrict__ dy, Pack<T, L>* __restrict__ dx, I n_y,
    I n_x, I inner, AXES) {
  using A = typename Total<T>::type;
  constexpr int V = 16 / sizeof(Pack<T, L>);
  GATHERED_AXES
  for (I i = (I(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < n_x; i += I(gridDim.x) * blockDim.x * V) {
    Place<I> at(i, d.length, h.length, w.length, inner);
    Sources planes = d.sources(at.z), rows = h.sources(at.r);
    const auto cell = [&](int z, int r, int c) {  // the place's element at a cell of y
      return (((at.outer * I(d.out) + I(z)) * I(h.out) + I(r)) * I(w.out) + I(c)) * inner + at.lane;
    };
    if (planes.alone() && rows.alone() && I(w.length - at.c) * inner - at.lane >= V && w.once(at.c, at.c + V - 1)) {
      const I from = cell(planes.own, rows.own, at.c - w.offset);
      if (within<Pack<T, L>>(from, n_y)) {
        copy(dy + from, dx + i);
        continue;
      }
    }
    for (int v = 0; v < V && i + v < n_x; ++v) {
      const Sources columns = w.sources(at.c);
      if (planes.alone() && rows.alone() && columns.alone()) {
        dx[i + v] = dy[cell(planes.own, rows.own, columns.own)];
      } else {
        Pack<A, L> sum = {};
        for (int a = 0; a < planes.count(); ++a) {
          Pack<A, L> plane = {};
          for (int b = 0; b < rows.count() && planes[a] >= 0; ++b) {
            Pack<A, L> row = {};
            for (int c = 0; c < columns.count() && rows[b] >= 0; ++c) {
              Pack<A, L> g = {};
              if (columns[c] >= 0) {
                const Pack<T, L> shown = dy[cell(planes[a], rows[b], columns[c])];
                g = widened<A>(shown);
              }
              add(row, g, c == 0);
            }
            add(plane, row, b == 0);
          }
          add(sum, plane, a == 0);
        }
        dx[i + v] = narrowed<T>(sum);
      }
      if (at.next(d.length, h.length, w.length, inner)) planes = d.sources(at.z), rows = h.sources(at.r);
    }
  }
}
