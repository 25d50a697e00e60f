// pad_rows.cu - padding and its backward where the innermost axis is padded and its cells are single elements: channels first.
//
// Layout    contiguous (outer, D, H, W). Missing axes come first and have length 1.
// Modes     see pad.cuh. The backward of constant padding is its forward with x and y exchanged; the other modes' is
//           pad_rows_backward, which does not crop.
// Types     forward: T is an unsigned word, bits move untouched. backward: T is the element; floats are summed in Sum<T>,
//           subnormals kept, integers in their own type. int along an axis (launchers check that it fits); I for offsets:
//           unsigned below 2**31 elements, else unsigned long long.
// Thread    forward: 16 bytes of y, which lie in at most two rows (launchers check w_out >= V). backward: V cells of one row of
//           x (V divides it); where the row or a cell is at a border, the gradients of all of y's cells that copy it. The
//           cells of a thread are loaded at once, each by itself: y's rows begin at any address.
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

// `Fill`: a border cell is `fill`, eight bytes with the value repeated; otherwise it copies a cell of x.
template <typename T, int V, bool Fill, typename I>
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
    if constexpr (Fill) {
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
        out.v[v] = (behind ? rows[1] : rows[0])[w.source_cell(behind ? v - own : c + v)].v[0];
      }
    }
    if (n_y - i >= V) *reinterpret_cast<Line<T, V>*>(y + i) = out;
    else
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (i + v < n_y) y[i + v].v[0] = out.v[v];
  }
}

// The gradients of cells c to c + V - 1 of a row of x in `dy`, a row of y: `own`, which move untouched where nothing is added;
// `sum`, with those of the border cells that copy them. Returns a bit for each cell that has some of these.
template <int Step, typename T, typename A, int V>
__device__ __forceinline__ unsigned row_gradients(
    const Pack<T, 1>* __restrict__ dy, const Axis& w, int c, Pack<T, V>& own, A (&sum)[V]) {
  const int before = w.before(), after = w.after();
  const Pack<T, 1>* const cells = dy + (c - w.offset);
  unsigned changed = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) own.v[v] = cells[v].v[0];
  if constexpr (Step == 0) {  // all copy the first cell, or the last
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = A(widen(own.v[v]));
    if (c == 0)
      for (int k = 0; k < before; ++k, changed |= 1) sum[0] = plus<A>(sum[0], A(widen(dy[k].v[0])));
    if (c + V == w.length)
      for (int k = 1; k <= after; ++k, changed |= 1u << (V - 1)) sum[V - 1] = plus<A>(sum[V - 1], A(widen(dy[w.out - k].v[0])));
  } else {  // cell c + v is copied by cell to_front + Step * v of the border before, or to_back + Step * v of that behind
    const int to_front = before - 1 - Step * (w.front - c), to_back = Step * (c - w.back);
    const auto copied = [](int from, int number) {  // which cells
      return Step < 0 ? bits_between<V>(from - number + 1, from + 1) : bits_between<V>(-from, number - from);
    };
    const unsigned by_front = copied(to_front, before), by_back = copied(to_back, after), first = by_front ? by_front : by_back;
    T found[V];
    if (first) {  // threads at the two borders at the same time, before the first use of what was loaded
      const Pack<T, 1>* const border = dy + (by_front ? to_front : w.out - after + to_back);
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (first >> v & 1) found[v] = border[Step * v].v[0];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = A(widen(own.v[v]));
    if (first) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (first >> v & 1) sum[v] = plus<A>(sum[v], A(widen(found[v])));
    }
    if (by_front && by_back) {
      const Pack<T, 1>* const border = dy + (w.out - after + to_back);
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (by_back >> v & 1) sum[v] = plus<A>(sum[v], A(widen(border[Step * v].v[0])));
    }
    changed = by_front | by_back;
  }
  return changed;
}

// n: packs of dx. Volume: whether the depth is padded.
template <typename T, int V, int Step, bool Volume, typename I>
__global__ void __launch_bounds__(256, 4)
    pad_rows_backward(const Pack<T, 1>* __restrict__ dy, Pack<T, V>* __restrict__ dx, I n, DIVISORS, AXES) {
  using A = typename Total<T>::type;
  LOAD_AXES
  const Divisor<I> row = LOAD_DIVISOR(row, I(w.length / V)), height = LOAD_DIVISOR(height, I(h.length)),
                   depth = LOAD_DIVISOR(depth, I(d.length));
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I line = row.quotient(i);
    const int c = int(i - line * row.number) * V;
    const RowPosition<I> at(line, height, depth);
    const Sources planes = d.sources(at.z), rows = h.sources(at.r);
    const auto row_of = [&](int z, int r) {
      return dy + ((at.outer * I(d.out) + I(z)) * I(h.out) + I(r)) * I(w.out);
    };
    unsigned changed = ~0u;
    Pack<T, V> out;
    A total[V];
    if ((!Volume || planes.count() == 1) && rows.count() == 1) {
      changed = row_gradients<Step>(row_of(planes.interior, rows.interior), w, c, out, total);
    } else {
      for (int a = 0; a < (Volume ? planes.count() : 1); ++a) {
        A plane[V], sum[V];
        for (int b = 0; b < rows.count(); ++b) {
          row_gradients<Step>(row_of(planes[a], rows[b]), w, c, out, sum);
#pragma unroll
          for (int v = 0; v < V; ++v) plane[v] = b ? plus<A>(plane[v], sum[v]) : sum[v];
        }
#pragma unroll
        for (int v = 0; v < V; ++v) total[v] = a ? plus<A>(total[v], plane[v]) : plane[v];
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (changed >> v & 1) out.v[v] = narrow<T>(total[v]);
    dx[i] = out;
  }
}
