// SPDX-License-Identifier: Apache-2.0
#include "quire/attention.hpp"

extern "C" __attribute__((visibility("default"))) bool plugin_supports(
    const quire::AttentionSpec& spec) {
  return quire::supports(quire::Device::cpu(), spec).supported;
}
