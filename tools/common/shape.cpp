// SPDX-License-Identifier: Apache-2.0
#include "common/shape.hpp"

#include <cmath>

namespace quire::tool {

AttentionSpec Shape::spec() const {
  AttentionSpec spec;
  spec.num_qo_heads = heads.qo;
  spec.num_kv_heads = heads.kv;
  spec.head_dim_qk = head_dim;
  spec.head_dim_vo = head_dim;
  spec.q_dtype = query_dtype();
  spec.kv_dtype = cache_dtype();
  spec.o_dtype = dtype;
  spec.page_size = page_size;
  spec.window_left = window;
  spec.sm_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
  spec.logits_soft_cap = static_cast<float>(soft_cap);
  spec.kv_scale =
      kv_scale.value_or(spec.kv_dtype == DType::kInt8 ? KvScale::kPerTensor : KvScale::kNone);
  return spec;
}

std::unique_ptr<Executor> make_threads(std::int32_t num_threads) {
  return num_threads == 0 ? nullptr : make_thread_pool(num_threads);
}

}  // namespace quire::tool
