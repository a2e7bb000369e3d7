// SPDX-License-Identifier: Apache-2.0
// The instruction set in use. Each kernel is compiled once for every one of them, into a namespace of its name.
#pragma once

namespace ddfast {

enum class Capability { portable, avx2, avx512, amx };

// The widest that this machine has, unless another was chosen.
Capability capability();

// Compilers that know AMX build for it too.
#if defined(DDFAST_AMX)
#define DDFAST_IF_AMX(...) __VA_ARGS__
#else
#define DDFAST_IF_AMX(...)
#endif

#if defined(__x86_64__)
// `name` of the instruction set in use: a function that every instruction set has.
#define DDFAST_DISPATCH(name) \
  (DDFAST_IF_AMX(::ddfast::capability() == ::ddfast::Capability::amx ? &::ddfast::amx::name :) \
   ::ddfast::capability() == ::ddfast::Capability::avx512 ? &::ddfast::avx512::name \
   : ::ddfast::capability() == ::ddfast::Capability::avx2 ? &::ddfast::avx2::name \
                                                          : &::ddfast::portable::name)
// Declares `declarations` in the namespace of every instruction set.
#define DDFAST_EVERYWHERE(...) \
  namespace portable { __VA_ARGS__ } \
  namespace avx2 { __VA_ARGS__ } \
  namespace avx512 { __VA_ARGS__ } \
  DDFAST_IF_AMX(namespace amx { __VA_ARGS__ })
#else
#define DDFAST_DISPATCH(name) (&::ddfast::portable::name)
#define DDFAST_EVERYWHERE(...) \
  namespace portable { __VA_ARGS__ }
#endif

}  // namespace ddfast
