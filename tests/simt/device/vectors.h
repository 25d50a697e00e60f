// vectors.h - CUDA's built-in vector types, with the device's alignments.
#pragma once

#define SIMT_VECTORS(T, N, A2, A4)                                              \
  struct N##1 { T x; };                                                         \
  struct alignas(A2) N##2 { T x, y; };                                          \
  struct N##3 { T x, y, z; };                                                   \
  struct alignas(A4) N##4 { T x, y, z, w; };                                    \
  inline N##1 make_##N##1(T x) { return {x}; }                                  \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; }                          \
  inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                  \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTORS(signed char, char, 2, 4)
SIMT_VECTORS(unsigned char, uchar, 2, 4)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(unsigned short, ushort, 4, 8)
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(unsigned, uint, 8, 16)
SIMT_VECTORS(long long, longlong, 16, 16)
SIMT_VECTORS(unsigned long long, ulonglong, 16, 16)
SIMT_VECTORS(float, float, 8, 16)
SIMT_VECTORS(double, double, 16, 16)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
