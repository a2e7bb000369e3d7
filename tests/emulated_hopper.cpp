// SPDX-License-Identifier: Apache-2.0
// The moments kernel for Hopper, run by threads of the CPU: a block is as many threads with a barrier, and blocks follow
// one another. Index maps, layouts of operands and fragments, the order of sums and what waits for what are the GPU's.
// What is asynchronous is done as late as the kernel allows: products when they are waited for, from the registers and the
// operands as they are then; bulk copies likewise, and until then their target is NaN. Products read the right operand by
// its descriptor, and truncate their sums every 16 columns, as tensor cores do.
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

using std::max;
using std::min;

struct Dim {
  unsigned x;
};
thread_local Dim threadIdx;

#define __device__
constexpr int BLOCK_THREADS = 256, GROUP_THREADS = 128;
std::barrier<>* block_barrier;
std::barrier<>* group_barriers[BLOCK_THREADS / GROUP_THREADS];
std::atomic<int> votes;
char* shared_memory;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() {}  // only between one thread's arrival_expect and other threads' copies: any order is allowed

inline bool __syncthreads_or(int vote) {
  if (vote) ++votes;
  __syncthreads();
  const bool any = votes > 0;
  __syncthreads();
  if (vote) --votes;  // a vote may come only after the next barrier of the block, by which this is done
  return any;
}

inline void atomicMax(unsigned* address, unsigned value) {
  std::atomic_ref<unsigned> at(*address);
  for (unsigned old = at; old < value && !at.compare_exchange_weak(old, value);) {
  }
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

namespace ddfast {
namespace {

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
};

struct Arrival {
  std::mutex mutex;
  unsigned phase = 0;  // how many are over
  uint32_t expected = 0, asked = 0;
  std::vector<Copy> copies;
};

Arrival arrivals[16];

inline Arrival& arrival_of(uint64_t* arrival) { return arrivals[*arrival]; }

inline void arrival_init(uint64_t* arrival) {
  static uint64_t next = 0;  // by one thread
  *arrival = next++ % 16;
  Arrival& it = arrival_of(arrival);
  it.phase = it.expected = it.asked = 0;
  it.copies.clear();
}

inline void arrival_expect(uint64_t* arrival, uint32_t bytes) {
  Arrival& it = arrival_of(arrival);
  const std::lock_guard lock(it.mutex);
  it.expected += bytes;
}

inline void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* arrival) {
  Arrival& it = arrival_of(arrival);
  const std::lock_guard lock(it.mutex);
  if (bytes % 16 || uintptr_t(from) % 16 || (static_cast<char*>(to) - shared_memory) % 16) std::abort();
  memset(to, 0xff, bytes);
  it.copies.push_back({to, from, bytes});
  it.asked += bytes;
}

inline void arrival_wait(uint64_t* arrival, uint32_t parity) {
  Arrival& it = arrival_of(arrival);
  for (;;) {
    {
      const std::lock_guard lock(it.mutex);
      if (it.phase % 2 != parity) return;
      if (it.expected > 0 && it.asked == it.expected) {
        for (const Copy& copy : it.copies) memcpy(copy.to, copy.from, copy.bytes);
        it.copies.clear();
        it.expected = it.asked = 0;
        ++it.phase;
        return;
      }
    }
    std::this_thread::yield();
  }
}

inline uint32_t shared_address(const void* pointer) {
  return uint32_t(static_cast<const char*>(pointer) - shared_memory);
}

inline void publish() {}

inline float half_value(uint16_t bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return float(value);
}

inline uint16_t half_bits(float value) {
  const auto half = _Float16(value);
  uint16_t bits;
  memcpy(&bits, &half, 2);
  return bits;
}

inline uint32_t halves(float first, float second) { return half_bits(first) | uint32_t(half_bits(second)) << 16; }
inline float first_half(uint32_t pair) { return half_value(uint16_t(pair)); }
inline float second_half(uint32_t pair) { return half_value(uint16_t(pair >> 16)); }
inline uint32_t doubled_halves(uint32_t pair) { return halves(2 * first_half(pair), 2 * second_half(pair)); }

inline uint32_t larger_halves(uint32_t so_far, uint32_t pair) {
  return halves(fmaxf(first_half(so_far), fabsf(first_half(pair))),
                fmaxf(second_half(so_far), fabsf(second_half(pair))));
}

struct Product {
  float (*part)[64];
  const uint32_t (*a)[4];
  uint64_t b;
  bool add;
};
thread_local std::vector<Product> products;
constexpr int MOST = 16;
uint32_t fragments[BLOCK_THREADS][MOST][4];

inline void products_begin() {}
inline void products_commit() {}

inline void multiply(float (&part)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
  products.push_back({&part, &a, b, add});
  for (float& sum : part) sum = NAN;  // nobody's until the end
}

// Toward zero, as tensor cores round.
inline float truncated(double sum) {
  const float nearest = float(sum);
  return std::isfinite(nearest) && std::fabs(double(nearest)) > std::fabs(sum) ? std::nextafterf(nearest, 0.0f) : nearest;
}

// Element (n, slot) of the right operand: core matrices of 8 rows of 16 bytes.
inline float right(uint64_t descriptor, int n, int slot) {
  if (descriptor >> 62) std::abort();  // swizzled
  const uint64_t start = (descriptor & 0x3fff) << 4, along_k = (descriptor >> 16 & 0x3fff) << 4;
  const uint64_t along_n = (descriptor >> 32 & 0x3fff) << 4;
  uint16_t bits;
  memcpy(&bits, shared_memory + start + n / 8 * along_n + slot / 8 * along_k + n % 8 * 16 + slot % 8 * 2, 2);
  return half_value(bits);
}

template <int STEPS>
void products_end(float (&part)[64], uint32_t (&)[STEPS][4]) {
  const int thread = threadIdx.x, group = thread / GROUP_THREADS, warp = thread / 32, lane = thread % 32;
  const int count = int(products.size());
  if (count > MOST) std::abort();
  for (int number = 0; number < count; ++number) memcpy(fragments[thread][number], *products[number].a, 16);
  group_barriers[group]->arrive_and_wait();
  for (int number = 0; number < count; ++number) {
    const Product& product = products[number];
    if (product.part != &part) std::abort();
    float left[2][16];  // rows lane/4 and lane/4 + 8 of the warp's 16
    for (int second = 0; second < 2; ++second)
      for (int slot = 0; slot < 16; ++slot) {
        const int owner = warp * 32 + lane / 4 * 4 + slot % 8 / 2;
        const uint32_t pair = fragments[owner][number][slot / 8 * 2 + second];
        left[second][slot] = slot % 2 ? second_half(pair) : first_half(pair);
      }
    for (int i = 0; i < 64; ++i) {
      const int n = i / 4 * 8 + 2 * (lane % 4) + i % 2, second = i % 4 / 2;
      double sum = product.add ? part[i] : 0.0;
      for (int slot = 0; slot < 16; ++slot) sum += double(left[second][slot]) * right(product.b, n, slot);
      part[i] = truncated(sum);
    }
  }
  products.clear();
  group_barriers[group]->arrive_and_wait();
}

}  // namespace
}  // namespace ddfast

#include "cuda/moments_hopper.cuh"

extern "C" void run_moments(const ddfast::Moments* call) {
  using namespace ddfast;
  static HopperShared shared;
  shared_memory = reinterpret_cast<char*>(&shared);
  std::barrier<> block(BLOCK_THREADS), first(GROUP_THREADS), second(GROUP_THREADS);
  block_barrier = &block, group_barriers[0] = &first, group_barriers[1] = &second;
  const int64_t programs = call->classes * (call->real.splits + call->syn.splits);
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < BLOCK_THREADS; ++number)
    threads.emplace_back([&, number] {
      threadIdx = {number};
      for (int64_t program = 0; program < programs; ++program) {
        __syncthreads();
        if (number == 0) memset(&shared, 0xff, sizeof shared);
        __syncthreads();
        moments(*call, program, shared);
      }
    });
  for (std::thread& thread : threads) thread.join();
}
