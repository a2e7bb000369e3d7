// SPDX-License-Identifier: Apache-2.0
// The module ddfast._C. Operators register themselves, in csrc/cpu/<stem>_op.cpp; here is what else Python may ask.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(DDFAST_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/capability.h"

namespace ddfast {
namespace {

// Whether amx was compiled, the processor has it, and the system lets this process use the tiles' state.
bool has_amx() {
#if defined(DDFAST_AMX) && defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned AVX512_BF16 = 1u << 5;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & AVX512_BF16)) return false;
#if defined(DDFAST_EMULATE_AMX)
  return true;
#else
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE);
  return has && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#endif
#else
  return false;
#endif
}

// What this machine can run of what was compiled, in the order of `Capability`.
std::vector<std::string> capabilities() {
  std::vector<std::string> names{"portable"};
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 and FMA converts half precision as well, which __builtin_cpu_supports cannot be asked.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    names.push_back("avx2");
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
      names.push_back("avx512");
      if (has_amx()) names.push_back("amx");
    }
  }
#endif
  return names;
}

// The widest, but amx only when asked for: it has not yet run on a processor that has it.
std::atomic<Capability> current{std::min(Capability(capabilities().size() - 1), Capability::avx512)};

void set_capability(const std::string& name) {
  const std::vector<std::string> names = capabilities();
  std::string listed;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) {
      current = Capability(i);
      return;
    }
    listed += (i ? ", " : "") + names[i];
  }
  throw std::invalid_argument("the instruction set must be one that this machine has, " + listed + ", got '" + name +
                              "'");
}

pybind11::dict build_info() {
  pybind11::dict info;
#if defined(__clang__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
  info["flags"] = DDFAST_FLAGS;
  info["architecture"] = DDFAST_ARCHITECTURE;
  info["instruction sets"] = DDFAST_INSTRUCTION_SETS;
  info["in use"] = capabilities()[size_t(capability())];
  info["commit"] = DDFAST_COMMIT;
  return info;
}

}  // namespace

Capability capability() { return current.load(std::memory_order_relaxed); }

}  // namespace ddfast

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native operators; loading it registers them.";
  module.def("build_info", &ddfast::build_info, "How this was compiled, and which instruction set is in use.");
  module.def("capabilities", &ddfast::capabilities, "The instruction sets that this machine can run.");
  module.def("set_capability", &ddfast::set_capability, pybind11::arg("name"), "Chooses one of them, for all threads.");
  if (const char* name = std::getenv("DDFAST_CAPABILITY")) ddfast::set_capability(name);
}
