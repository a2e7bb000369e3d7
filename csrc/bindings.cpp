// SPDX-License-Identifier: Apache-2.0
// The module ddfast._C. Operators register themselves, in csrc/cpu/<stem>_op.cpp; here is what else Python may ask.
#include <pybind11/pybind11.h>

#include <atomic>
#include <string>
#include <vector>

#include "cpu/capability.h"

namespace py = pybind11;

namespace ddfast {
namespace {

// In the order of `Capability`, each wider than the one before.
const char* const NAMES[] = {"portable", "avx2", "avx512"};

int widest() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  auto has = [](bool first, bool second, bool third, bool fourth) { return first && second && third && fourth; };
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool f16c = avx2;  // every CPU with AVX2 converts half precision as well
  const bool avx512 = has(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512vl"),
                          __builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512dq"));
  return f16c ? (avx512 ? 2 : 1) : 0;
#else
  return 0;
#endif
}

std::atomic<int> current{widest()};

void set_capability(const std::string& name) {
  const int most = widest();
  for (int i = 0; i <= most; ++i) {
    if (name == NAMES[i]) {
      current = i;
      return;
    }
  }
  std::string had = NAMES[0];
  for (int i = 1; i <= most; ++i) had += std::string(", ") + NAMES[i];
  throw std::invalid_argument("the instruction set must be one that this machine has, " + had + "; got '" + name + "'");
}

}  // namespace

Capability capability() { return static_cast<Capability>(current.load(std::memory_order_relaxed)); }

}  // namespace ddfast

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of ddfast; loading it registers them with PyTorch.";
  m.def("set_capability", &ddfast::set_capability, py::arg("name"));
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["flags"] = DDFAST_FLAGS;
    info["capabilities"] = std::vector<std::string>(std::begin(ddfast::NAMES), std::end(ddfast::NAMES)).size();
    info["commit"] = DDFAST_COMMIT;
    return info;
  });
}
