// SPDX-License-Identifier: Apache-2.0
// The fixed problems whose instructions are counted. Made to run under callgrind, which counts inside counted_call() only and
// writes a file whenever it returns: file N belongs to the N-th problem that this prints.
//
//   guard_calls PATH        prints why PATH can run, then a line for each problem; exit status 77: PATH cannot run here
#include <cmath>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "gqa/gqa.hpp"
#include "support/random.hpp"
#include "support/tensors.hpp"

namespace {

using gqa::ElementType;
using gqa::Index;
using gqa::Path;

constexpr Index head_dim = 128;

/// The last `queries` of `tokens` tokens.
struct Problem {
  const char* operation;
  const char* family;
  Index query_heads;
  Index kv_heads;
  Index queries;
  Index tokens;

  std::string name(ElementType type, Path path) const {
    return std::string(operation) + "/" + family + "_" + std::to_string(query_heads) + "_" + std::to_string(kv_heads) +
           "/" + gqa::element_name(type) + "/" + std::to_string(tokens) + "/" + gqa::path_name(path);
  }
};

// Few heads and short caches, because callgrind takes some fifty times as long. Where it can be, a decode step is long enough to be
// split into spans, and nothing is a whole number of blocks. decode_tiny is what a call costs by itself.
constexpr Problem wide_problems[] = {
    {"decode", "mha", 8, 8, 1, 600},   {"decode", "gqa", 8, 2, 1, 600},    {"decode", "mqa", 8, 1, 1, 600},
    {"verify_4", "gqa", 8, 2, 4, 600}, {"prefill", "gqa", 8, 2, 100, 100}, {"decode_tiny", "mha", 1, 1, 1, 16}};
// One product and sum at a time.
constexpr Problem portable_problems[] = {{"decode", "mha", 8, 8, 1, 100},
                                         {"decode", "gqa", 8, 2, 1, 100},
                                         {"decode", "mqa", 8, 1, 1, 100},
                                         {"verify_4", "gqa", 8, 2, 4, 100},
                                         {"prefill", "gqa", 8, 2, 20, 20}};

std::vector<std::byte> normal_elements(ElementType type, Index count, std::uint64_t seed) {
  gqa::test::Random random(seed);
  std::vector<float> period(4093);  // divides no row
  for (float& value : period) value = random.normal();
  const Index size = gqa::element_bytes(type);
  std::vector<std::byte> elements(static_cast<std::size_t>(count * size));
  for (Index i = 0; i < count; ++i)
    gqa::test::write_element(elements.data() + i * size, type, period[static_cast<std::size_t>(i) % period.size()]);
  return elements;
}

class Call {
 public:
  Call(const Problem& problem, ElementType type, Path path)
      : query_(normal_elements(type, problem.queries * problem.query_heads * head_dim, 1)),
        keys_(normal_elements(type, problem.tokens * problem.kv_heads * head_dim, 2)),
        values_(normal_elements(type, problem.tokens * problem.kv_heads * head_dim, 3)),
        out_(static_cast<std::size_t>(problem.queries * problem.query_heads * head_dim)) {
    q_.data = query_.data();
    q_.type = type;
    q_.tokens = problem.queries;
    q_.heads = problem.query_heads;
    q_.dim = head_dim;
    q_.strides = {problem.query_heads * head_dim, head_dim, 1};
    kv_.k = keys_.data();
    kv_.v = values_.data();
    kv_.k_type = kv_.v_type = type;
    kv_.length = problem.tokens;
    kv_.kv_heads = problem.kv_heads;
    kv_.head_dim = kv_.value_dim = head_dim;
    kv_.k_strides = kv_.v_strides = gqa::KvStrides::head_major(problem.kv_heads, problem.tokens, head_dim);
    options_.path = path;
  }

  [[gnu::noinline]] void operator()() {
    attention_(q_, kv_, gqa::TensorView(out_.data(), q_.tokens, q_.heads, q_.dim), options_);
  }
  bool finite() const {
    for (const float value : out_)
      if (!std::isfinite(value)) return false;
    return true;
  }

 private:
  std::vector<std::byte> query_, keys_, values_;
  std::vector<float> out_;
  gqa::ConstTensorView q_;
  gqa::KvCacheView kv_;
  gqa::Options options_;
  gqa::DynamicAttention attention_;
};

}  // namespace

// callgrind finds it by its name. What is behind the call keeps the compiler from jumping there instead, past the return that
// callgrind waits for.
extern "C" [[gnu::noinline]] void counted_call(Call& call) {
  call();
  asm volatile("" ::: "memory");
}

int main(int argc, char** argv) {
  for (const Path path : {Path::portable, Path::avx2}) {
    if (argc != 2 || std::strcmp(argv[1], gqa::path_name(path)) != 0) continue;
    const gqa::ActivePath active = gqa::active_path();
    std::printf("# best path: %s, %s\n", gqa::path_name(active.path), active.reason);
    if (!gqa::path_available(path)) return 77;
    for (const Problem& problem : path == Path::portable ? std::span<const Problem>(portable_problems) : wide_problems)
      for (const ElementType type : {ElementType::f32, ElementType::bf16, ElementType::f16}) {
        Call call(problem, type, path);
        call();  // allocates scratch; binds what the C library binds late
        counted_call(call);
        if (!call.finite()) return 1;
        std::printf("%s\n", problem.name(type, path).c_str());
      }
    return 0;
  }
  std::fprintf(stderr, "usage: %s portable|avx2\n", argv[0]);
  return 2;
}
