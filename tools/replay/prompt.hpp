// SPDX-License-Identifier: Apache-2.0
/// @file
/// Tokens for requests of a trace that says which blocks are equal, but not what stands in them.
#pragma once

#include <cstdint>
#include <vector>

#include "trace/request.hpp"

namespace quire::tool {

/// @param request  Whose prompt: equal blocks have equal tokens, others different ones, as far as 31
///                 bits a token can tell; tokens without a block are this request's alone.
/// @param id       The request's.
/// @param tokens   Replaced: `input_tokens` of them.
void write_prompt(const TraceRequest& request, std::uint64_t id, std::vector<std::int32_t>& tokens);

/// @return A token of the answer, `request`'s alone.
std::int32_t answer_token(std::uint64_t request, std::int32_t position);

}  // namespace quire::tool
