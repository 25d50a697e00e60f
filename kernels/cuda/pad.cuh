// pad.cuh - how padding maps cells: which cell of x a cell of y copies, and which cells of y copy a cell of x.
//
// Modes     are three numbers: the border cell next to x copies x's cell `front` or `back`, and each further cell outwards the
//           one `step` cells away. Constant -1, -1, 0 (no cell: the fill value); edge 0, length - 1, 0; reflect 1, length - 2,
//           -1; symmetric 0, length - 1, -1; wrap period - 1, length - period, 1.
// Order     that of functional/pad.py: the innermost axis first; for a cell its own gradient (0 if y crops it), then the
//           border before it, then the border behind it, each from the outermost cell inwards. A single gradient moves
//           untouched.
#pragma once

template <typename T, bool = IsFloat<T>::value> struct Total {
  using type = T;
};
template <typename T> struct Total<T, true> {
  using type = typename Sum<T>::type;
};

struct Sources {           // the cells of y that copy one cell of x, in the order in which their gradients are added
  int interior;            // the cell of y inside the border; -1 if y crops it
  int front, front_count;  // cells of the border before: the first, how many; forwards
  int back, back_count;    // cells of the border behind: the last, how many; backwards

  __device__ __forceinline__ int count() const { return 1 + front_count + back_count; }
  __device__ __forceinline__ bool single() const { return interior >= 0 && front_count + back_count == 0; }
  __device__ __forceinline__ int operator[](int k) const {
    return k == 0 ? interior : k <= front_count ? front + (k - 1) : back - (k - 1 - front_count);
  }
};

struct Axis {
  int length, out;        // cells of x and of y
  int offset;             // y's cell o is cell o + offset of x, if there is one
  int front, back, step;  // the mode (see above)

  __device__ __forceinline__ int source_cell(int o) const {  // the cell of x that y's cell o copies; -1 if none
    const int i = o + offset;
    return i < 0 ? front + step * (i + 1) : i < length ? i : back + step * (i - length);
  }
  // The same where `step` is known and no cell is a fill value, without a branch.
  template <int Step> __device__ __forceinline__ int copied_cell(int o) const {
    const int i = o + offset;
    if (Step == 0) return min(max(i, front), back);
    if (Step < 0) return min(max(i, front - 1 - i), back + length - i);
    return i < 0 ? i + front + 1 : i < length ? i : i + back - length;
  }
  __device__ __forceinline__ int before() const { return offset < 0 ? -offset : 0; }
  __device__ __forceinline__ int after() const { return out + offset > length ? out + offset - length : 0; }

  __device__ __forceinline__ Sources sources(int i) const {
    const int interior = i >= offset && i < out + offset ? i - offset : -1;
    if (step == 0) return {interior, 0, i == front ? before() : 0, out - 1, i == back ? after() : 0};
    const int to_front = step * (front - i), to_back = step * (i - back);  // border cells between x and the one that copies i
    return {interior, before() - 1 - to_front, to_front >= 0 && to_front < before(), out - after() + to_back,
        to_back >= 0 && to_back < after()};
  }
  // Whether y has each of x's cells i to j exactly once.
  __device__ __forceinline__ bool copied_once(int i, int j) const {
    const int f = front - step * (before() - 1), b = back + step * (after() - 1);  // what the outermost border cells copy
    return i >= offset && j < out + offset && (before() == 0 || j < min(f, front) || i > max(f, front)) &&
           (after() == 0 || j < min(b, back) || i > max(b, back));
  }
};
#define AXIS(a) int a##_length, int a##_out, int a##_offset, int a##_front, int a##_back
#define AXES int step, AXIS(d), AXIS(h), AXIS(w)
#define LOAD_AXIS(a) const Axis a = {a##_length, a##_out, a##_offset, a##_front, a##_back, step};
#define LOAD_AXES LOAD_AXIS(d) LOAD_AXIS(h) LOAD_AXIS(w)

// The words that a thread writes.
template <typename T, int V> struct alignas(sizeof(T) * V) Line {
  T v[V];
};

template <typename A, int L> __device__ __forceinline__ void add_pack(Pack<A, L>& sum, const Pack<A, L>& v, bool first) {
#pragma unroll
  for (int l = 0; l < L; ++l) sum.v[l] = first ? v.v[l] : plus<A>(sum.v[l], v.v[l]);
}

// The sums of two gradients each.
template <typename T, int V> __device__ __forceinline__ Pack<T, V> plus_packs(const Pack<T, V>& a, const Pack<T, V>& b) {
  using A = typename Total<T>::type;
  Pack<T, V> sum;
  if constexpr (IsFloat<T>::value && sizeof(T) == 2 && V > 1) {
    unsigned x[V / 2], y[V / 2];
    memcpy(x, &a, sizeof(a)), memcpy(y, &b, sizeof(b));
#pragma unroll
    for (int k = 0; k < V / 2; ++k) x[k] = plus_pair<T>(x[k], y[k]);
    memcpy(&sum, x, sizeof(sum));
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) sum.v[v] = narrow<T>(plus<A>(A(widen(a.v[v])), A(widen(b.v[v]))));
  }
  return sum;
}

// The gradient of an element of x: the sum over the cells of y that copy it. `load(z, r, c)`: y's element there.
template <typename T, int L, typename F> __device__ __forceinline__ Pack<T, L> gradient(
    const Sources& planes, const Sources& rows, const Sources& columns, F load) {
  using A = typename Total<T>::type;
  const int lines = planes.count() * rows.count(), number = lines * columns.count();
  constexpr bool AtOnce = L > 1 && sizeof(T) == 2;  // fewer cells of larger types are summed: one after another is as fast
  if (!AtOnce && number <= 2 && planes.interior >= 0 && rows.interior >= 0 && columns.interior >= 0) {
    const Pack<T, L> first = load(planes.interior, rows.interior, columns.interior);
    if (number == 1) return first;
    return plus_packs(first, load(planes[planes.count() - 1], rows[rows.count() - 1], columns[columns.count() - 1]));
  }
  if constexpr (AtOnce) {  // up to four large loads, all before the first sum
    if (lines <= 2 && columns.count() <= 2 && planes.interior >= 0 && rows.interior >= 0 && columns.interior >= 0) {
      const int z = planes[planes.count() - 1], r = rows[rows.count() - 1], c = columns[1];
      const bool two_lines = lines == 2, two_columns = columns.count() == 2;
      const Pack<T, L> first = load(planes.interior, rows.interior, columns.interior);
      Pack<T, L> beside = {}, below = {}, across = {}, total;
      if (two_columns) beside = load(planes.interior, rows.interior, c);
      if (two_lines) below = load(z, r, columns.interior);
      if (two_lines && two_columns) across = load(z, r, c);
      if (number == 1) return first;
      if (number == 2) return plus_packs(first, two_lines ? below : beside);
#pragma unroll
      for (int l = 0; l < L; ++l) {
        const A near = plus<A>(widen(first.v[l]), widen(beside.v[l])), far = plus<A>(widen(below.v[l]), widen(across.v[l]));
        total.v[l] = narrow<T, A>(plus<A>(near, far));
      }
      return total;
    }
  }
  Pack<A, L> sum = {};
  for (int a = 0; a < planes.count(); ++a) {
    Pack<A, L> plane = {};
    for (int b = 0; b < rows.count() && planes[a] >= 0; ++b) {
      Pack<A, L> row = {};
      for (int c = 0; c < columns.count() && rows[b] >= 0; ++c) {
        Pack<A, L> wide = {};
        if (columns[c] >= 0) {
          const Pack<T, L> cell = load(planes[a], rows[b], columns[c]);
#pragma unroll
          for (int l = 0; l < L; ++l) wide.v[l] = A(widen(cell.v[l]));
        }
        add_pack(row, wide, c == 0);
      }
      add_pack(plane, row, b == 0);
    }
    add_pack(sum, plane, a == 0);
  }
  Pack<T, L> total;
#pragma unroll
  for (int l = 0; l < L; ++l) total.v[l] = narrow<T, A>(sum.v[l]);
  return total;
}
