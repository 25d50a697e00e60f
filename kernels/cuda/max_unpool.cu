// max_unpool.cu - max unpooling: values go to the cells that indices name.
//
// Layout    contiguous (outer, entries, inner) x, indices and reached, (outer, plane, inner) y and dy: entries and plane are
//           the cells of a spatial plane before and after, inner is 1 (channels first) or the channels (channels last).
// Types     T is any float, moved bit for bit. J is an index: int or long long. R, the same for a cell of a plane in the
//           backward. O is a position in x: int where all arrays have fewer than 2**31 elements, else long long.
// Repeats   An index twice in a plane: the last in C order wins, which is the largest position in x. An atomicMax of
//           positions finds it whatever the order of threads, so the bits are fixed. An index outside the plane is dropped.
// Thread    claim: one entry of x. write: V neighbouring cells of y, which take the winning entries and record their cells in
//           `reached`. backward: V neighbouring entries. What a thread loads from one array it loads at once.
// Bytes     a cell of y: owner written (by the fill that sets it to -1) and read, 2 O, y written, T; an entry: x and its
//           index read, owner changed, reached written twice, T + J + 2 O + 2 R.
// Source    the portable code in functional/max_unpool.py; the tests compare these kernels with it.
#include "common.cuh"

template <typename O> struct Offset {
  using type = unsigned;
};
template <> struct Offset<long long> {
  using type = unsigned long long;
};

// n entries; owner, an O for each cell of y, is -1 everywhere before.
template <typename J, typename R, typename O>
__global__ void __launch_bounds__(256)
    max_unpool_claim(const J* __restrict__ indices, O* __restrict__ owner, R* __restrict__ reached, typename Offset<O>::type n,
        typename Offset<O>::type entries, typename Offset<O>::type plane, typename Offset<O>::type inner) {
  using I = typename Offset<O>::type;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const I column = i / inner, lane = i - column * inner;
    const unsigned long long cell = static_cast<long long>(indices[i]);  // a negative one is too large
    reached[i] = -1;
    if (cell < plane) atomicMax(owner + (column / entries * plane + I(cell)) * inner + lane, O(i));
  }
}

// n packs of cells of y.
template <typename T, typename R, typename O, int V>
__global__ void __launch_bounds__(256)
    max_unpool_write(const T* __restrict__ x, const Pack<O, V>* __restrict__ owner, Pack<T, V>* __restrict__ y,
        R* __restrict__ reached, typename Offset<O>::type n, typename Offset<O>::type plane, typename Offset<O>::type inner,
        DIVISOR(plane), DIVISOR(inner)) {
  using I = typename Offset<O>::type;
  const Divisor<I> by_plane = LOAD_DIVISOR(plane, plane), by_inner = LOAD_DIVISOR(inner, inner);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Pack<O, V> entries = owner[i];
    Pack<T, V> values;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values.v[v] = T(0.f);
      if (entries.v[v] >= 0) values.v[v] = x[entries.v[v]];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const I cells = by_inner.quotient(i * V + v);
      if (entries.v[v] >= 0) reached[entries.v[v]] = R(cells - by_plane.quotient(cells) * plane);
    }
    y[i] = values;
  }
}

// n packs of entries of dx.
template <typename T, typename R, typename O, int V>
__global__ void __launch_bounds__(256)
    max_unpool_backward(const T* __restrict__ dy, const Pack<R, V>* __restrict__ reached, Pack<T, V>* __restrict__ dx,
        typename Offset<O>::type n, typename Offset<O>::type plane, typename Offset<O>::type inner, typename Offset<O>::type entries,
        DIVISOR(entries), DIVISOR(inner)) {
  using I = typename Offset<O>::type;
  const Divisor<I> by_entries = LOAD_DIVISOR(entries, entries), by_inner = LOAD_DIVISOR(inner, inner);
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x) {
    const Pack<R, V> cells = reached[i];
    Pack<T, V> values;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const I column = by_inner.quotient(i * V + v), lane = i * V + v - column * inner;
      values.v[v] = T(0.f);
      if (cells.v[v] >= 0) values.v[v] = dy[(by_entries.quotient(column) * plane + I(cells.v[v])) * inner + lane];
    }
    dx[i] = values;
  }
}
