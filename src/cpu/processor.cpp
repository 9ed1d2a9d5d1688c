// SPDX-License-Identifier: Apache-2.0
#include "cpu/processor.hpp"

#include <hwy/highway.h>

#if HWY_ARCH_X86
#include <cpuid.h>
#endif
#if HWY_ARCH_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace quire::cpu {
namespace {

#if HWY_ARCH_X86

/// A leaf of CPUID; zeros if the processor does not have it.
struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Leaf(unsigned leaf, unsigned subleaf) {
    __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx);
  }
};

constexpr bool has_bit(unsigned word, int bit) { return (word >> bit & 1U) != 0; }

/// Whether the system saves the tiles of AMX and lets this process have them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#if QUIRE_EMULATE_TILES
constexpr bool kEmulatesTiles = true;
#else
constexpr bool kEmulatesTiles = false;
#endif

Processor ask() {
  constexpr int kVbmi = 1;        // leaf 7, ecx
  constexpr int kAvx512Bf16 = 5;  // leaf 7.1, eax
  constexpr int kAmxBf16 = 22;    // leaf 7, edx
  constexpr int kAmxTile = 24;
  const Leaf features(7, 0);
  const Leaf more_features(7, 1);
  Processor found;
  // Highway looks at what the system saves.
  const bool avx512 = (hwy::SupportedTargets() & HWY_AVX3) != 0;
  found.avx512_bf16 =
      avx512 && has_bit(features.ecx, kVbmi) && has_bit(more_features.eax, kAvx512Bf16);
  found.amx_bf16 =
      found.avx512_bf16 && (kEmulatesTiles || (has_bit(features.edx, kAmxBf16) &&
                                               has_bit(features.edx, kAmxTile) && may_use_tiles()));
  return found;
}

#else

Processor ask() { return {}; }

#endif

}  // namespace

const Processor& processor() noexcept {
  static const Processor found = ask();
  return found;
}

}  // namespace quire::cpu
