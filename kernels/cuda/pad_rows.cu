// pad_rows.cu - padding and its backward where the innermost axis is padded and its cells are single elements: channels first.
//
// Layout    contiguous (outer, D, H, W). Missing axes come first and have length 1.
// Modes     see pad.cuh. The backward of constant padding is its forward with x and y exchanged; the other modes' is
//           pad_rows_backward, which does not crop.
// Types     forward: T is an unsigned word, bits move untouched. backward: T is the element; floats are summed in Sum<T>,
//           subnormals kept, integers in their own type. int along an axis (launchers check that it fits); I for offsets:
//           unsigned below 2**31 elements, else unsigned long long.
// Thread    forward: 16 bytes of y, which lie in at most two rows (launchers check w_out >= V). backward: 16 bytes of a row of
//           x, whose cells are loaded at once, each by itself, since y's rows begin at any address; where two cells of y's
//           height or depth copy the row, both rows. Cells that the row's own borders copy are added up again, one by one, and
//           so are all cells where more rows meet.
// Bytes     x once, y once; dy once, dx once: the least. What borders read again comes from the caches.
// Source    functional/pad.py; the tests compare these kernels with it bit for bit.
#include "common.cuh"
#include "pad.cuh"

#define DIVISORS DIVISOR(row), DIVISOR(height), DIVISOR(depth)

template <typename I> struct RowPosition {  // the coordinates of a row of (outer, depth, height)
  I outer;
  int z, r;

  __device__ __forceinline__ RowPosition(I line, const Divisor<I>& height, const Divisor<I>& depth) {
    const I plane = height.quotient(line);
    outer = depth.number > 1 ? depth.quotient(plane) : plane;
    z = int(plane - outer * depth.number);
    r = int(line - plane * height.number);
  }
  __device__ __forceinline__ RowPosition next(int height, int depth) const {
    RowPosition moved = *this;
    const bool below = r + 1 == height, behind = below && z + 1 == depth;
    moved.r = below ? 0 : r + 1;
    moved.z = behind ? 0 : below ? z + 1 : z;
    moved.outer += behind;
    return moved;
  }
};

// Of V bits those from `first` up to `end`, cut off at both ends.
template <int V> __device__ __forceinline__ unsigned bits_between(int first, int end) {
  const int low = min(max(first, 0), V), high = min(max(end, 0), V);
  return ((1u << high) - 1) & ~((1u << low) - 1);
}

// Step: pad.cuh's `step`, known: or FILL, where border cells are `fill`, eight bytes with the value repeated.
constexpr int FILL = 2;

template <typename T, int V, int Step, typename I>
__global__ void __launch_bounds__(256)
    pad_rows(const Pack<T, 1>* __restrict__ x, Pack<T, 1>* __restrict__ y, unsigned long long fill, I n_y, DIVISORS, AXES) {
  LOAD_AXES
  const Divisor<I> row = LOAD_DIVISOR(row, I(w.out)), height = LOAD_DIVISOR(height, I(h.out)),
                   depth = LOAD_DIVISOR(depth, I(d.out));
  for (I i = (I(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < n_y; i += I(gridDim.x) * blockDim.x * V) {
    const I line = row.quotient(i);
    const int c = int(i - line * I(w.out)), own = w.out - c;  // own: elements that are left of the first row
    const RowPosition<I> first(line, height, depth), second = own < n_y - i ? first.next(h.out, d.out) : first;
    const Pack<T, 1>* rows[2];
    bool there[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const RowPosition<I> at = k ? second : first;
      const int z = d.source_cell(at.z), r = h.source_cell(at.r);
      there[k] = z >= 0 && r >= 0;
      rows[k] = x + ((at.outer * I(d.length) + I(z)) * I(h.length) + I(r)) * I(w.length);
    }
    Line<T, V> out;
    if constexpr (Step == FILL) {
      const int cell = c + w.offset, next_cell = w.offset - own;  // of each row that which the first element would copy
      const unsigned in_first = there[0] ? bits_between<V>(-cell, min(own, w.length - cell)) : 0u;
      const unsigned in_second = there[1] ? bits_between<V>(max(own, -next_cell), w.length - next_cell) : 0u;
      const Pack<T, 1>*cells = rows[0] + cell, *next_cells = rows[1] + next_cell;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        out.v[v] = T(fill);
        if (in_first >> v & 1) out.v[v] = cells[v].v[0];
        if (in_second >> v & 1) out.v[v] = next_cells[v].v[0];
      }
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const bool behind = v >= own;
        out.v[v] = (behind ? rows[1] : rows[0])[w.copied_cell<Step>(behind ? v - own : c + v)].v[0];
      }
    }
    if (n_y - i >= V) *reinterpret_cast<Line<T, V>*>(y + i) = out;
    else
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (i + v < n_y) y[i + v].v[0] = out.v[v];
  }
}

// Cells of a row of x that one border of y's row copies: from `low` to before `end`, each by `copies` cells of y. The first of
// cell c's is at `first` + Step * c (counted from the copy of cell 0 inside the border), the next one `apart` further.
struct Copied {
  int low, end, first, copies, apart;
};

// On the left and on the right of the row.
template <int Step> __device__ __forceinline__ Copied copied_on(bool right, const Axis& w) {
  const bool by_after = right == (Step <= 0);
  const int before = -w.offset, after = w.out - before - w.length, number = by_after ? after : before;
  const int nearest = by_after ? w.back : w.front, cells = Step ? number : number > 0;
  const int first = by_after ? w.length + (Step ? 0 : after - 1) : Step ? -1 : -before;
  const int low = by_after == (Step > 0) ? nearest : nearest - cells + 1;
  return {low, low + cells, first - Step * nearest, Step ? 1 : number, by_after ? -1 : 1};
}

// The sum of cell c's gradients in a row of y, `cells` from the copy of cell 0 on.
template <int Step, typename T>
__device__ __forceinline__ typename Total<T>::type row_sum(const Pack<T, 1>* __restrict__ cells, const Copied& copied, int c) {
  using A = typename Total<T>::type;
  A sum = A(widen(cells[c].v[0]));
#pragma unroll 1
  for (int k = 0; k < (Step ? 1 : copied.copies); ++k)
    sum = plus<A>(sum, A(widen(cells[copied.first + Step * c + copied.apart * k].v[0])));
  return sum;
}

// n: packs of V cells of dx's rows; the last of a row may be shorter. S: cells of a store. Volume: whether the depth is padded.
template <typename T, int V, int S, int Step, bool Volume, typename I>
__global__ void __launch_bounds__(256, 4)
    pad_rows_backward(const Pack<T, 1>* __restrict__ dy, T* __restrict__ dx, I n, DIVISORS, AXES) {
  using A = typename Total<T>::type;
  LOAD_AXES
  const Divisor<I> row = LOAD_DIVISOR(row, I((w.length + V - 1) / V)), height = LOAD_DIVISOR(height, I(h.length)),
                   depth = LOAD_DIVISOR(depth, I(Volume ? d.length : 1));
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I line = row.quotient(i);
    const int c = int(i - line * row.number) * V;
    const RowPosition<I> at(line, height, depth);
    const Sources planes = Volume ? d.sources(at.z) : Sources{}, rows = h.sources(at.r);
    const auto row_of = [&](int z, int r) {  // the copy of its cell 0
      return dy + (((Volume ? at.outer * I(d.out) + I(z) : at.outer) * I(h.out) + I(r)) * I(w.out) - w.offset);
    };
    T* const to = dx + (line * I(w.length) + I(c));
    int from = c, end = S == V ? c + V : min(c + V, w.length);  // cells whose gradients are added up one by one
    const int number = planes.count() * rows.count();
    if (number <= 2) {
      const bool two = number == 2;
      const Pack<T, 1>* const first = row_of(planes.interior, rows.interior);
      const Pack<T, 1>* const second = !two ? first
          : Volume && planes.count() == 2   ? row_of(planes[1], rows.interior)
                                            : row_of(planes.interior, rows[1]);
      Pack<T, V> sum = {}, more = {};
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (S == V || c + v < end) sum.v[v] = (first + c)[v].v[0];
      if (two) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          if (S == V || c + v < end) more.v[v] = (second + c)[v].v[0];
        sum = plus_packs(sum, more);
      }
#pragma unroll
      for (int v = 0; v < V; v += S)
        if (S == V || c + v < end) *reinterpret_cast<Pack<T, S>*>(to + v) = *reinterpret_cast<Pack<T, S>*>(sum.v + v);
      const Copied left = copied_on<Step>(false, w), right = copied_on<Step>(true, w);
      if (c >= left.end || end <= right.low) {  // else some may be copied on both sides
        const Copied copied = c < left.end ? left : right;
        from = max(c, copied.low), end = min(end, copied.end);
#pragma unroll 1
        for (; from < end; ++from) {
          A total = row_sum<Step, T>(first, copied, from);
          if (two) total = plus<A>(total, row_sum<Step, T>(second, copied, from));
          to[from - c] = narrow<T>(total);
        }
      }
    }
#pragma unroll 1
    for (; from < end; ++from) {
      const auto load = [&](int z, int r, int c) { return (row_of(z, r) + w.offset)[c]; };
      to[from - c] = gradient<T, 1>(planes, rows, w.sources(from), load).v[0];
    }
  }
}
