// SPDX-License-Identifier: Apache-2.0
/// @file
/// A sampling profiler of the program's own thread, in a few lines: a timer whose signal notes where the processor was, and the names
/// of functions. Linux on x86-64 and AArch64; one thread.
#pragma once

#include <cxxabi.h>
#include <elf.h>
#include <link.h>
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace gqa::bench {

/// The program's own functions, from the symbol table of its file. dladdr() would know exported ones only, and compilers make local
/// copies of kernels that take fewer arguments.
class Functions {
 public:
  Functions() {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    const std::vector<char> image{std::istreambuf_iterator<char>(file), {}};
    if (image.size() < sizeof(ElfW(Ehdr))) throw std::runtime_error("/proc/self/exe cannot be read");
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(image.data());
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(image.data() + header->e_shoff);
    const auto take_first = [](dl_phdr_info* object, std::size_t, void* base) {  // the program, before its libraries
      *static_cast<ElfW(Addr)*>(base) = object->dlpi_addr;
      return 1;
    };
    dl_iterate_phdr(take_first, &base_);
    for (const auto* table = sections; table != sections + header->e_shnum; ++table) {
      if (table->sh_type != SHT_SYMTAB) continue;
      const char* const names = image.data() + sections[table->sh_link].sh_offset;
      const auto* symbol = reinterpret_cast<const ElfW(Sym)*>(image.data() + table->sh_offset);
      for (const auto* end = symbol + table->sh_size / sizeof *symbol; symbol != end; ++symbol)
        if ((symbol->st_info & 0xf) == STT_FUNC && symbol->st_size != 0)
          functions_[symbol->st_value] = {symbol->st_value + symbol->st_size, names + symbol->st_name};
    }
    if (functions_.empty())
      throw std::runtime_error("this program has been stripped: no function can be told from another");
  }

  /// The demangled name of the function at an address; empty for what is in a library.
  std::string name(std::uintptr_t address) const {
    auto after = functions_.upper_bound(address - base_);
    if (after == functions_.begin() || address - base_ >= (--after)->second.end) return {};
    int status = 0;
    // A compiler's copy, "name.isra.0", is demangled as the function that it is a copy of.
    const std::string mangled = after->second.name.substr(0, after->second.name.find('.'));
    const std::unique_ptr<char, void (*)(void*)> demangled(
        abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
    return status == 0 ? demangled.get() : mangled;
  }

 private:
  struct Function {
    ElfW(Addr) end = 0;
    std::string name;
  };
  std::map<ElfW(Addr), Function> functions_;
  ElfW(Addr) base_ = 0;
};

/// Where the timer's signal writes. The handler runs on the only thread.
struct Samples {
  std::uintptr_t* to = nullptr;  ///< null: samples are dropped
  std::size_t count = 0;
  std::size_t room = 0;
};
inline Samples& samples() {
  static Samples all;
  return all;
}

inline void take_sample(int, siginfo_t*, void* context) {
  const mcontext_t& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  const auto address = static_cast<std::uintptr_t>(machine.gregs[REG_RIP]);
#else
  const auto address = static_cast<std::uintptr_t>(machine.pc);
#endif
  Samples& all = samples();
  if (all.to != nullptr && all.count < all.room) all.to[all.count++] = address;
}

/// Starts the timer. Of real time, because timers of processor time only go off at the kernel's ticks, 100 to 1000 a second. It is
/// set again when the thread takes the signal: what others run meanwhile costs one sample at most.
inline void start_timer() {
  struct sigaction action {};
  action.sa_sigaction = take_sample;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  const itimerval every{{0, 997}, {0, 997}};  // microseconds; a sample takes up to 25 of them in a virtual machine
  if (sigaction(SIGALRM, &action, nullptr) != 0 || setitimer(ITIMER_REAL, &every, nullptr) != 0)
    throw std::runtime_error("no timer");
}

}  // namespace gqa::bench
