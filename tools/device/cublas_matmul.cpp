// SPDX-License-Identifier: Apache-2.0
#include <cublas_v2.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <string>

#include "common/exit_code.hpp"
#include "device/matmul.hpp"

namespace quire::tool {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;  // what a graph may not allocate

// By its C signature: the header overloads the name.
using GemmEx = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int,
                                  int, const void*, const void*, cudaDataType, int, const void*,
                                  cudaDataType, int, const void*, void*, cudaDataType, int,
                                  cublasComputeType_t, cublasGemmAlgo_t);

class CublasMatmul final : public Matmul {
 public:
  explicit CublasMatmul(void* library)
      : destroy_(find<decltype(&cublasDestroy_v2)>(library, "cublasDestroy_v2")),
        set_stream_(find<decltype(&cublasSetStream_v2)>(library, "cublasSetStream_v2")),
        set_workspace_(find<decltype(&cublasSetWorkspace_v2)>(library, "cublasSetWorkspace_v2")),
        gemm_(find<GemmEx>(library, "cublasGemmEx")) {
    require(find<decltype(&cublasCreate_v2)>(library, "cublasCreate_v2")(&handle_));
    if (cudaMalloc(&workspace_, kWorkspaceBytes) != cudaSuccess) workspace_ = nullptr;
  }
  CublasMatmul(const CublasMatmul&) = delete;
  CublasMatmul& operator=(const CublasMatmul&) = delete;
  ~CublasMatmul() override {
    destroy_(handle_);
    cudaFree(workspace_);
  }

  void multiply(std::byte* c, const std::byte* a, const std::byte* b, std::int32_t n,
                cudaStream_t stream) override {
    const float one = 1;
    const float zero = 0;
    require(set_stream_(handle_, stream));
    if (workspace_ != nullptr) require(set_workspace_(handle_, workspace_, kWorkspaceBytes));
    require(gemm_(handle_, CUBLAS_OP_T, CUBLAS_OP_N, n, n, n, &one, a, CUDA_R_16BF, n, b,
                  CUDA_R_16BF, n, &zero, c, CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                  CUBLAS_GEMM_DEFAULT));
  }

 private:
  template <typename Function>
  static Function find(void* library, const char* name) {
    void* const symbol = dlsym(library, name);
    if (symbol == nullptr) {
      throw CommandError(ExitCode::kFailed, fmt::format("cuBLAS: expected {} in it", name));
    }
    return reinterpret_cast<Function>(symbol);
  }
  static void require(cublasStatus_t status) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw CommandError(ExitCode::kFailed,
                       fmt::format("cuBLAS: status {}", static_cast<int>(status)));
  }

  decltype(&cublasDestroy_v2) destroy_;
  decltype(&cublasSetStream_v2) set_stream_;
  decltype(&cublasSetWorkspace_v2) set_workspace_;
  GemmEx gemm_;
  cublasHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace

std::unique_ptr<Matmul> open_matmul() {
  const std::string name = fmt::format("libcublas.so.{}", CUBLAS_VER_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  return library == nullptr ? nullptr : std::make_unique<CublasMatmul>(library);
}

}  // namespace quire::tool
