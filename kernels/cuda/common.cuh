// common.cuh - what every kernel shares. Compiles with NVRTC, nvcc and the tests' host emulator; sm_75 and up.
//
// Spliced into each source in place of its #include (kernels/cuda/compile.py), because CuPy's disk cache knows only the
// source's own text. CuPy compiles with -ftz=true: float arithmetic and comparisons flush subnormals, so kernels that
// promise bits compare by integers (`rank`), and move values untouched.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T> struct IsFloat {
  static constexpr bool value = false;
};
template <> struct IsFloat<__half> {
  static constexpr bool value = true;
};
template <> struct IsFloat<__nv_bfloat16> {
  static constexpr bool value = true;
};
template <> struct IsFloat<float> {
  static constexpr bool value = true;
};
template <> struct IsFloat<double> {
  static constexpr bool value = true;
};

// What a type's sums are kept in: double for double, float for the other floats; integers wrap, as NumPy's do.
template <typename T, bool = IsFloat<T>::value> struct Sum {
  using type = float;
};
template <typename T> struct Sum<T, false> {
  using type = unsigned long long;
};
template <> struct Sum<double, true> {
  using type = double;
};

template <typename T> __device__ __forceinline__ typename Sum<T>::type widen(T v) {
  return static_cast<typename Sum<T>::type>(v);
}
template <> __device__ __forceinline__ float widen<__half>(__half v) { return __half2float(v); }
template <> __device__ __forceinline__ float widen<__nv_bfloat16>(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T, typename A> __device__ __forceinline__ T narrow(A v) { return static_cast<T>(v); }
template <> __device__ __forceinline__ __half narrow<__half, float>(float v) { return __float2half(v); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16, float>(float v) { return __float2bfloat16(v); }

// a + b and a / b without the flush to zero that -ftz=true puts into a float's operators: bits as NumPy's.
template <typename A> __device__ __forceinline__ A plus(A a, A b) { return a + b; }
template <typename A> __device__ __forceinline__ A quotient(A a, A b) { return a / b; }
#ifndef SIMT_HOST
template <> __device__ __forceinline__ float plus<float>(float a, float b) {
  float c;
  asm("add.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
template <> __device__ __forceinline__ float quotient<float>(float a, float b) {
  float c;
  asm("div.rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
#endif

// exp(v) and a / b for elements of type T: of 16 bits by the device's own instructions, whose errors are less than their
// rounding.
template <typename T, typename A> __device__ __forceinline__ A exponential(A v) {
  if constexpr (sizeof(T) == 2) return __expf(v);
  else return exp(v);
}
template <typename T, typename A> __device__ __forceinline__ A ratio(A a, A b) {
  if constexpr (sizeof(T) == 2) return __fdividef(a, b);
  else return a / b;
}

// V neighbours, moved by one load or store of up to 16 bytes.
template <typename T, int V> struct alignas(sizeof(T) * V) Pack {
  T v[V];
};

// Division by a number that a whole launch shares. 32 bits: by a multiplication, right below 2**31 (launch.py's `divisor`
// gives the multiplier, 2**(31 + shift) / number rounded up, with 2**shift >= number).
template <typename I> struct Divisor {
  I number;
  unsigned multiplier, shift;

  __device__ __forceinline__ I quotient(I i) const {
    if constexpr (sizeof(I) == 4) return __umulhi(2 * i, multiplier) >> shift;
    else return i / number;
  }
};
#define DIVISOR(a) unsigned a##_multiplier, unsigned a##_shift
#define LOAD_DIVISOR(a, number) {number, a##_multiplier, a##_shift}

// The signed integer of a type's size, and its bits: for order and equality without flushing.
template <int Bytes> struct Bits;
template <> struct Bits<1> {
  using type = signed char;
};
template <> struct Bits<2> {
  using type = short;
};
template <> struct Bits<4> {
  using type = int;
};
template <> struct Bits<8> {
  using type = long long;
};

template <typename T> __device__ __forceinline__ typename Bits<sizeof(T)>::type bits(T v) {
  typename Bits<sizeof(T)>::type b;
  memcpy(&b, &v, sizeof(T));
  return b;
}

// The bits of +inf.
template <typename T> struct Infinity;
template <> struct Infinity<__half> {
  static constexpr short value = 0x7c00;
};
template <> struct Infinity<__nv_bfloat16> {
  static constexpr short value = 0x7f80;
};
template <> struct Infinity<float> {
  static constexpr int value = 0x7f800000;
};
template <> struct Infinity<double> {
  static constexpr long long value = 0x7ff0000000000000LL;
};

// a + b of two 16-bit floats each: the bits of sums in float, which have more than twice the digits. A NaN becomes 0x7fff.
template <typename T> __device__ __forceinline__ unsigned plus_pair(unsigned a, unsigned b) {
  unsigned sum;
#if !defined(SIMT_HOST) && __CUDA_ARCH__ >= 800
  if constexpr (Infinity<T>::value == 0x7c00) asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  else asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));  // a times 1
#else
  T x[2], y[2];
  memcpy(x, &a, 4), memcpy(y, &b, 4);
  for (int k = 0; k < 2; ++k) x[k] = narrow<T>(plus(widen(x[k]), widen(y[k])));
  memcpy(&sum, x, 4);
#endif
  return sum;
}

// A type's order as integers: NaNs above all numbers and equal to each other, −0 equal to +0.
template <typename T> __device__ __forceinline__ auto rank(T v) {
  if constexpr (IsFloat<T>::value) {
    using B = typename Bits<sizeof(T)>::type;
    const B b = bits(v), magnitude = B(b & ~(B(1) << (8 * sizeof(T) - 1)));
    const B top = B(Infinity<T>::value + 1);  // any NaN
    return magnitude >= top ? top : b < 0 ? B(-magnitude) : magnitude;
  } else {
    return v;
  }
}

// The least value of a type: -inf, or an integer type's lowest.
template <typename T> __device__ __forceinline__ T lowest() {
  T v;
  if constexpr (IsFloat<T>::value) {
    using B = typename Bits<sizeof(T)>::type;
    const B b = B(Infinity<T>::value | B(1) << (8 * sizeof(T) - 1));
    memcpy(&v, &b, sizeof(T));
  } else {
    v = T(-1) < T(0) ? T(T(1) << (8 * sizeof(T) - 1)) : T(0);
  }
  return v;
}
