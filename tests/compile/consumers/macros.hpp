// SPDX-License-Identifier: Apache-2.0
// Macros that headers of systems and of older libraries define (windows.h, rpcndr.h, complex.h, X11's), before the library's own headers.
// The standard library's headers come first: they undefine some, or do not stand others.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define abs(a) (((a) < 0) ? -(a) : (a))
#define I not_an_identifier[1]
#define small char
#define near
#define far
#define interface struct
#define IN
#define OUT
#define OPTIONAL
#define ERROR 0
#define None 0L
#define Bool int
#define Status int
#define Success 0
#define Always 2
#define Complex 1
#define FALSE 0
#define TRUE 1
#define DEBUG 1
#define PI 3.14
#define major(x) (x)
#define minor(x) (x)
