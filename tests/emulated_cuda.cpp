// SPDX-License-Identifier: Apache-2.0
// The CUDA kernel of covariance matching, run by threads of the CPU: a block is as many threads with a barrier, and blocks
// follow one another. What is indexed, added up and waited for is the GPU's; under ThreadSanitizer a missing
// __syncthreads is a data race.
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

struct Dim {
  unsigned x, y;
};
thread_local Dim threadIdx;
Dim blockIdx, gridDim;
std::barrier<>* block_barrier;

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline unsigned atomicAdd(unsigned* address, unsigned value) { return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST); }
template <class T>
T __ldcg(const T* address) {
  return *address;
}

#include "cuda/matching.cuh"

template <class T>
void run(const ddfast::Matching& matching) {
  using namespace ddfast;
  std::barrier<> barrier(THREADS);
  block_barrier = &barrier;
  gridDim = {unsigned(matching.classes * matching.parts), 1};
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < unsigned(THREADS); ++number)
    threads.emplace_back([&, number] {
      threadIdx = {number % PART, number / PART};
      for (unsigned block = 0; block < gridDim.x; ++block) {
        if (number == 0) blockIdx = {block, 0};
        __syncthreads();
        match<T, T>(matching);
        __syncthreads();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

extern "C" void match_float(const ddfast::Matching* matching) { run<float>(*matching); }
extern "C" void match_double(const ddfast::Matching* matching) { run<double>(*matching); }
