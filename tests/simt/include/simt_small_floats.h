// simt_small_floats.h - rounding to 16-bit floats, and what __half and __nv_bfloat16 have in common.
//
// As on the device: to nearest even with subnormals, NaN becomes 0x7fff. Arithmetic is done in float and rounded once
// more, which gives the same bits as rounding once (a float has more than twice the digits).
#pragma once

namespace simt {
inline uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// `d` as a float whose last bit is set where something was cut off: rounding that once more rounds d once.
inline float rounded_to_odd(double d) {
  const float f = float(d);
  if (f != f || double(f) == d) return f;
  const uint32_t u = bits_of(f) - (fabs(double(f)) > fabs(d));
  return float_of(u | 1);
}

inline uint16_t half_bits(float f) {
  const uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, size = u & 0x7fffffff;
  if (size > 0x7f800000) return 0x7fff;
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);  // from 65520 on: infinite
  if (size < 0x38800000)  // subnormal: the addition rounds at the last of its bits
    return uint16_t(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000));
  return uint16_t(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}
inline float half_value(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, size = h & 0x7fff;
  if (size > 0x7c00) return float_of(0x7fffffff);  // a NaN loses its sign and payload, as in cvt.f32.f16
  if (size == 0x7c00) return float_of(sign | 0x7f800000);
  if (size < 0x400) return float_of(bits_of(float(size) * 0x1p-24f) | sign);
  return float_of(sign | ((size << 13) + 0x38000000));
}

inline uint16_t bfloat16_bits(float f) {
  const uint32_t u = bits_of(f);
  return f != f ? uint16_t(0x7fff) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float bfloat16_value(uint16_t b) { return float_of(uint32_t(b) << 16); }

inline double sticky(long long i) {  // exact to 54 bits, and of what is cut off a trace is left
  const auto bits = static_cast<unsigned long long>(i), size = i < 0 ? 0ull - bits : bits;
  const double d = size >> 53 ? double(size >> 11 | ((size & 0x7ff) != 0)) * 2048.0 : double(size);
  return i < 0 ? -d : d;
}
}  // namespace simt

// A struct body: bits, constructors and conversions as CUDA declares them, so that an ambiguity there is one here.
#define SIMT_SMALL_FLOAT_FROM(Name, Integer) \
  Name(Integer i) : Name(simt::sticky(static_cast<long long>(i))) {}
#define SIMT_SMALL_FLOAT_TO(Integer) \
  operator Integer() const { return static_cast<Integer>(static_cast<float>(*this)); }
#define SIMT_SMALL_FLOAT(Name, to_bits, to_value)                                                            \
  struct alignas(2) Name {                                                                                   \
    uint16_t bits;                                                                                           \
    Name() = default;                                                                                        \
    Name(float f) : bits(to_bits(f)) {}                                                                      \
    Name(double d) : bits(to_bits(simt::rounded_to_odd(d))) {}                                               \
    SIMT_SMALL_FLOAT_FROM(Name, short)                                                                       \
    SIMT_SMALL_FLOAT_FROM(Name, unsigned short)                                                              \
    SIMT_SMALL_FLOAT_FROM(Name, int)                                                                         \
    SIMT_SMALL_FLOAT_FROM(Name, unsigned)                                                                    \
    SIMT_SMALL_FLOAT_FROM(Name, long long)                                                                   \
    Name(unsigned long long i) : Name(simt::sticky(static_cast<long long>(i >> 1 | (i & 1))) * 2.0) {}       \
    operator float() const { return to_value(bits); }                                                        \
    operator bool() const { return (bits & 0x7fff) != 0; }                                                   \
    SIMT_SMALL_FLOAT_TO(signed char)                                                                         \
    SIMT_SMALL_FLOAT_TO(unsigned char)                                                                       \
    SIMT_SMALL_FLOAT_TO(short)                                                                               \
    SIMT_SMALL_FLOAT_TO(unsigned short)                                                                      \
    SIMT_SMALL_FLOAT_TO(int)                                                                                 \
    SIMT_SMALL_FLOAT_TO(unsigned)                                                                            \
    SIMT_SMALL_FLOAT_TO(long long)                                                                           \
    SIMT_SMALL_FLOAT_TO(unsigned long long)                                                                  \
  };                                                                                                         \
  inline Name operator+(const Name& a, const Name& b) { return Name(float(a) + float(b)); }                  \
  inline Name operator-(const Name& a, const Name& b) { return Name(float(a) - float(b)); }                  \
  inline Name operator*(const Name& a, const Name& b) { return Name(float(a) * float(b)); }                  \
  inline Name operator/(const Name& a, const Name& b) { return Name(float(a) / float(b)); }                  \
  inline Name& operator+=(Name& a, const Name& b) { return a = a + b; }                                      \
  inline Name& operator-=(Name& a, const Name& b) { return a = a - b; }                                      \
  inline Name& operator*=(Name& a, const Name& b) { return a = a * b; }                                      \
  inline Name& operator/=(Name& a, const Name& b) { return a = a / b; }                                      \
  inline Name operator+(const Name& a) { return a; }                                                         \
  inline Name operator-(const Name& a) {                                                                     \
    Name r = a;                                                                                              \
    r.bits ^= 0x8000;                                                                                        \
    return r;                                                                                                \
  }                                                                                                          \
  inline bool operator==(const Name& a, const Name& b) { return float(a) == float(b); }                      \
  inline bool operator!=(const Name& a, const Name& b) { return float(a) != float(b); }                      \
  inline bool operator<(const Name& a, const Name& b) { return float(a) < float(b); }                        \
  inline bool operator<=(const Name& a, const Name& b) { return float(a) <= float(b); }                      \
  inline bool operator>(const Name& a, const Name& b) { return float(a) > float(b); }                        \
  inline bool operator>=(const Name& a, const Name& b) { return float(a) >= float(b); }                      \
  inline Name __hadd(Name a, Name b) { return a + b; }                                                       \
  inline Name __hsub(Name a, Name b) { return a - b; }                                                       \
  inline Name __hmul(Name a, Name b) { return a * b; }                                                       \
  inline Name __hdiv(Name a, Name b) { return a / b; }                                                       \
  inline Name __hfma(Name a, Name b, Name c) { return Name(fma(double(a), double(b), double(c))); }          \
  inline Name __hneg(Name a) { return -a; }                                                                  \
  inline Name __habs(Name a) {                                                                               \
    a.bits &= 0x7fff;                                                                                        \
    return a;                                                                                                \
  }                                                                                                          \
  inline bool __heq(Name a, Name b) { return a == b; }                                                       \
  inline bool __hne(Name a, Name b) { return a < b || a > b; }                                               \
  inline bool __hneu(Name a, Name b) { return a != b; }                                                      \
  inline bool __hlt(Name a, Name b) { return a < b; }                                                        \
  inline bool __hle(Name a, Name b) { return a <= b; }                                                       \
  inline bool __hgt(Name a, Name b) { return a > b; }                                                        \
  inline bool __hge(Name a, Name b) { return a >= b; }                                                       \
  inline bool __hisnan(Name a) { return float(a) != float(a); }                                              \
  inline Name __hmax(Name a, Name b) { return __hisnan(a) ? b : __hisnan(b) || a >= b ? a : b; }             \
  inline Name __hmin(Name a, Name b) { return __hisnan(a) ? b : __hisnan(b) || a <= b ? a : b; }             \
  struct alignas(4) Name##2 {                                                                                \
    Name x, y;                                                                                               \
  };                                                                                                         \
  inline Name __low2##Name(Name##2 v) { return v.x; }                                                        \
  inline float __low2float(Name##2 v) { return float(v.x); }                                                 \
  inline float __high2float(Name##2 v) { return float(v.y); }
