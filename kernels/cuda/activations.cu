// activations.cu - ReLU, leaky ReLU, GELU, sigmoid, tanh and dropout, forward and backward: one pass over contiguous arrays.
//
// Layout    flat: `n` elements, in packs of V; the last n % V are taken one by one.
// Types     T any float; computed in Sum<T> (float for halves) and rounded once. I (offsets) unsigned below 2**31 elements.
// Op        a struct of functions of single elements: forward(x, p), passes(x), the bool that is saved, and
//           backward(dy, saved, p). p is the op's parameter. Ops without that bool save x or y itself.
// NaN       stays NaN. What ReLU and leaky ReLU pass is moved untouched, and compared as integers, so that the flush to zero
//           of -ftz=true changes no subnormal number.
// Dropout   element i takes word i % 4 of Philox4x32-10's block i / 4; backends/random.py has the same numbers as array code.
// Thread    whole packs, a grid apart.
// Bytes     each array once.
// Source    functional/activations.py, relu.py and dropout.py; Philox: J. K. Salmon et al., Parallel random numbers: as easy as
//           1, 2, 3, SC 2011, https://doi.org/10.1145/2063384.2063405.
#include "common.cuh"

template <typename A> __device__ __forceinline__ A limited(A x) {  // within [-1e4, 1e4], NaN as it is
  return x > A(1e4) ? A(1e4) : x < A(-1e4) ? A(-1e4) : x;
}

// v, or 0. Of the bits, because a choice between 16-bit floats makes the compiler load packs in pieces on sm_100.
template <typename T> __device__ __forceinline__ T only_if(bool keep, T v) {
  const auto all = bits(v);
  const decltype(bits(v)) some = keep ? all : 0;
  memcpy(&v, &some, sizeof(T));
  return v;
}

struct Relu {
  template <typename T> static __device__ __forceinline__ bool passes(T x) { return rank(x) > 0; }
  template <typename T, typename A> static __device__ __forceinline__ T forward(T x, A) { return passes(x) ? x : T(0.f); }
  template <typename T, typename A> static __device__ __forceinline__ T backward(T dy, unsigned char passed, A) {
    return only_if(passed, dy);
  }
};

struct LeakyRelu {
  template <typename T> static __device__ __forceinline__ bool passes(T x) {
    return rank(x) > 0 && rank(x) <= Infinity<T>::value;
  }
  template <typename T, typename A> static __device__ __forceinline__ T forward(T x, A slope) {
    return backward(x, passes(x), slope);
  }
  template <typename T, typename A> static __device__ __forceinline__ T backward(T dy, unsigned char passed, A slope) {
    return passed ? dy : narrow<T>(widen(dy) * slope);
  }
};

// An op whose backward reads x or y: `value` and `slope` are in the type that is computed in.
template <typename Op> struct Smooth {
  template <typename T> static __device__ __forceinline__ bool passes(T) { return false; }
  template <typename T, typename A> static __device__ __forceinline__ T forward(T x, A p) {
    return narrow<T>(Op::template value<T>(widen(x), p));
  }
  template <typename T, typename A> static __device__ __forceinline__ T backward(T dy, T saved, A p) {
    return narrow<T>(widen(dy) * Op::template slope<T>(widen(saved), p));
  }
};

struct Gelu : Smooth<Gelu> {
  // Of a standard normal number: up to x, and `density` * sqrt(2 pi). Of 16 bits by a fit of exp(x * x / 2) times the
  // probability of -|x|, whose relative error is 6e-6.
  template <typename T, typename A> static __device__ __forceinline__ A probability(A x, A& density) {
    density = exponential<T>(A(-0.5) * (x * x));
    if constexpr (sizeof(T) == 2) {
      const A t = ratio<T>(A(1), A(1) + A(0.311127) * (x < A(0) ? -x : x));
      A fit = A(-0.07305208) * t + A(0.17532427);
      fit = ((fit * t + A(0.02036746)) * t + A(0.13179236)) * t;
      const A tail = density * t * ((fit + A(0.12128492)) * t + A(0.1242805));
      return x < A(0) ? tail : A(1) - tail;
    } else {
      return A(0.5) * erfc(x * A(-0.70710678118654752440));
    }
  }
  template <typename T, typename A> static __device__ __forceinline__ A value(A x, A) {
    A density;
    const A near = x < A(-1e4) ? A(-1e4) : x;
    return near * probability<T>(near, density);
  }
  template <typename T, typename A> static __device__ __forceinline__ A slope(A x, A) {
    A density;
    const A near = limited(x), up_to = probability<T>(near, density);
    return up_to + near * (density * A(0.39894228040143267794));
  }
};

template <typename T, typename A> __device__ __forceinline__ A logistic(A x) {
  const A small = exponential<T>(x < A(0) ? x : -x);  // at most 1
  return ratio<T>(x < A(0) ? small : A(1), A(1) + small);
}

struct GeluTanh : Smooth<GeluTanh> {  // (1 + tanh(u)) / 2 = logistic<T>(2 u), which loses no digits near 0
  template <typename T, typename A> static __device__ __forceinline__ A share(A x) {
    return logistic<T>(A(2 * 0.79788456080286535588) * (x + A(0.044715) * (x * x * x)));
  }
  template <typename T, typename A> static __device__ __forceinline__ A value(A x, A) {
    const A near = limited(x);
    return x > A(1e4) ? x : near * share<T>(near);
  }
  template <typename T, typename A> static __device__ __forceinline__ A slope(A x, A) {
    const A near = limited(x), s = share<T>(near);
    const A inner = A(2 * 0.79788456080286535588) * (A(1) + A(3 * 0.044715) * (near * near));
    return s + near * (s * (A(1) - s)) * inner;
  }
};

struct Sigmoid : Smooth<Sigmoid> {
  template <typename T, typename A> static __device__ __forceinline__ A value(A x, A) { return logistic<T>(x); }
  template <typename T, typename A> static __device__ __forceinline__ A slope(A y, A) { return y * (A(1) - y); }
};

struct Tanh : Smooth<Tanh> {
  template <typename T, typename A> static __device__ __forceinline__ A value(A x, A) { return tanh(x); }
  template <typename T, typename A> static __device__ __forceinline__ A slope(A y, A) { return (A(1) - y) * (A(1) + y); }
};

struct Dropout {
  template <typename T, typename A> static __device__ __forceinline__ T backward(T dy, unsigned char kept, A scale) {
    return only_if(kept, narrow<T>(widen(dy) * scale));
  }
};

// y, and in `passed` what the op passes, if Save.
template <typename T, typename Op, int V, bool Save, typename I>
__global__ void __launch_bounds__(256) activation(
    const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ passed, typename Sum<T>::type p, I n) {
  const I thread = I(blockIdx.x) * blockDim.x + threadIdx.x, threads = I(gridDim.x) * blockDim.x, packs = n / V;
  for (I i = thread; i < packs; i += threads) {
    const Pack<T, V> in = reinterpret_cast<const Pack<T, V>*>(x)[i];
    Pack<T, V> out;
    Pack<unsigned char, V> bools;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      out.v[v] = Op::forward(in.v[v], p);
      bools.v[v] = Op::passes(in.v[v]);
    }
    reinterpret_cast<Pack<T, V>*>(y)[i] = out;
    if constexpr (Save) reinterpret_cast<Pack<unsigned char, V>*>(passed)[i] = bools;
  }
  if constexpr (V > 1)
    if (thread < n - packs * V) {
      const I i = packs * V + thread;
      y[i] = Op::forward(x[i], p);
      if constexpr (Save) passed[i] = Op::passes(x[i]);
    }
}

// dx; S is the type of what was saved.
template <typename T, typename Op, typename S, int V, typename I>
__global__ void __launch_bounds__(256) activation_backward(
    const T* __restrict__ dy, const S* __restrict__ saved, T* __restrict__ dx, typename Sum<T>::type p, I n) {
  const I thread = I(blockIdx.x) * blockDim.x + threadIdx.x, threads = I(gridDim.x) * blockDim.x, packs = n / V;
  for (I i = thread; i < packs; i += threads) {
    const Pack<T, V> in = reinterpret_cast<const Pack<T, V>*>(dy)[i];
    const Pack<S, V> kept = reinterpret_cast<const Pack<S, V>*>(saved)[i];
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = Op::backward(in.v[v], kept.v[v], p);
    reinterpret_cast<Pack<T, V>*>(dx)[i] = out;
  }
  if constexpr (V > 1)
    if (thread < n - packs * V) {
      const I i = packs * V + thread;
      dx[i] = Op::backward(dy[i], saved[i], p);
    }
}

// ------------------------------------------------------------------------------------------------------------- dropout
struct Words {
  unsigned v[4];
};

__device__ __forceinline__ Words philox(unsigned long long block, unsigned long long key) {
  unsigned c0 = unsigned(block), c1 = unsigned(block >> 32), c2 = 0, c3 = 0, k0 = unsigned(key), k1 = unsigned(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A float of 24 random bits, 0 <= u < 1, is not below p: that element is kept.
__device__ __forceinline__ bool kept_by(const Words& words, unsigned word, float p) {
  return float(words.v[word] >> 8) * 0x1p-24f >= p;
}

// y and the mask of what is kept. The key is *drawn, or `seed` where that is null.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(256) dropout(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ mask,
    const unsigned long long* __restrict__ drawn, unsigned long long seed, float p, typename Sum<T>::type scale, I n) {
  const unsigned long long key = drawn ? *drawn : seed;
  const I thread = I(blockIdx.x) * blockDim.x + threadIdx.x, threads = I(gridDim.x) * blockDim.x, packs = n / V;
  for (I i = thread; i < packs; i += threads) {
    const Pack<T, V> in = reinterpret_cast<const Pack<T, V>*>(x)[i];
    Pack<T, V> out;
    Pack<unsigned char, V> bools;
    Words words;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const I element = i * V + v;
      if (v % 4 == 0) words = philox(element / 4, key);
      bools.v[v] = kept_by(words, unsigned(element % 4), p);
      out.v[v] = Dropout::backward(in.v[v], bools.v[v], scale);
    }
    reinterpret_cast<Pack<T, V>*>(y)[i] = out;
    reinterpret_cast<Pack<unsigned char, V>*>(mask)[i] = bools;
  }
  if constexpr (V > 1)
    if (thread < n - packs * V) {
      const I i = packs * V + thread;
      mask[i] = kept_by(philox(i / 4, key), unsigned(i % 4), p);
      y[i] = Dropout::backward(x[i], mask[i], scale);
    }
}
