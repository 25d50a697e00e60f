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
