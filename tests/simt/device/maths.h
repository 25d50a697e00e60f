// maths.h - loads and stores with cache hints, and the intrinsics of CUDA's maths library that <math.h> lacks.
#pragma once

#define SIMT_LOAD(name) template <class T> __forceinline__ T name(const T* p) { return *p; }
#define SIMT_STORE(name) template <class T> __forceinline__ void name(T* p, T v) { *p = v; }
SIMT_LOAD(__ldg) SIMT_LOAD(__ldca) SIMT_LOAD(__ldcg) SIMT_LOAD(__ldcs) SIMT_LOAD(__ldlu) SIMT_LOAD(__ldcv)
SIMT_STORE(__stwb) SIMT_STORE(__stcg) SIMT_STORE(__stcs) SIMT_STORE(__stwt)

// On the device min and max of floats are fmin and fmax: a NaN loses.
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<C>::value) return C(a) != C(a) ? C(b) : C(b) < C(a) ? C(b) : C(a);
  else return C(b) < C(a) ? C(b) : C(a);
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<C>::value) return C(a) != C(a) ? C(b) : C(a) < C(b) ? C(b) : C(a);
  else return C(a) < C(b) ? C(b) : C(a);
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float exp10f(float x) { return powf(10.0f, x); }

// Approximations on the device; exact here.
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 1 ? 1 : x > 0 ? x : 0; }

// Rounded to nearest even, and never joined into a fused multiply-add.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double x) { return 1.0 / x; }
inline double __dsqrt_rn(double x) { return sqrt(x); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// Out of range, a conversion takes the nearest integer there is, and a NaN gives 0.
namespace simt {
template <class I, class F> I to_integer(F x) {
  using Limits = std::numeric_limits<I>;
  if (x != x) return 0;
  if (x < F(Limits::min())) return Limits::min();
  return x >= F(2) * F(Limits::max() / 2 + 1) ? Limits::max() : I(x);
}
}  // namespace simt
inline int __float2int_rn(float x) { return simt::to_integer<int>(rintf(x)); }
inline int __float2int_rz(float x) { return simt::to_integer<int>(truncf(x)); }
inline int __float2int_rd(float x) { return simt::to_integer<int>(floorf(x)); }
inline int __float2int_ru(float x) { return simt::to_integer<int>(ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return simt::to_integer<unsigned>(rintf(x)); }
inline unsigned __float2uint_rz(float x) { return simt::to_integer<unsigned>(truncf(x)); }
inline int __double2int_rn(double x) { return simt::to_integer<int>(rint(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}
inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

#define SIMT_BITS(name, From, To)          \
  inline To name(From f) {                 \
    static_assert(sizeof(To) == sizeof f); \
    To t;                                  \
    memcpy(&t, &f, sizeof t);              \
    return t;                              \
  }
SIMT_BITS(__float_as_int, float, int)
SIMT_BITS(__float_as_uint, float, unsigned)
SIMT_BITS(__int_as_float, int, float)
SIMT_BITS(__uint_as_float, unsigned, float)
SIMT_BITS(__double_as_longlong, double, long long)
SIMT_BITS(__longlong_as_double, long long, double)

inline void __nanosleep(unsigned) { simt::yield(); }
inline void __trap() { simt::fail("__trap() was reached"); }
#define assert(condition) \
  ((condition) ? (void)0 : ::simt::fail("assert(%s) at %s:%d does not hold", #condition, __FILE__, __LINE__))
