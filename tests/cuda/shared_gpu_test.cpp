// SPDX-License-Identifier: Apache-2.0
// A GPU that several processes share interrupts kernels in the middle and continues them later. What
// they compute must not change.
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "support/device_batch.hpp"

extern char** environ;

namespace quire {
namespace {

using testing::DeviceBatch;
using testing::DeviceWorkspaces;
using testing::kGpu;
using testing::RandomBatch;
using testing::RandomBatchOptions;

constexpr int kProcesses = 5;
constexpr int kRuns = 200;  // of several milliseconds each
constexpr const char* kExpected = "QUIRE_TEST_EXPECTED_DIGEST";

/// A prompt whose attention lasts longer than a time slice.
RandomBatchOptions long_prompt() {
  RandomBatchOptions options = testing::edgy_options(DType::kFloat16, 8, 1, 128);
  options.spec.mask = Mask::kNone;
  options.requests = {{16'000, 24'007}, {1, 4'000}};
  return options;
}

std::string digest_of(const std::vector<std::byte>& bytes) {
  std::uint64_t digest = 0xcbf2'9ce4'8422'2325U;
  for (const std::byte byte : bytes) {
    digest = (digest ^ static_cast<std::uint64_t>(byte)) * 0x100'0000'01b3U;
  }
  return std::to_string(digest);
}

class LongPrompt {
 public:
  LongPrompt()
      : host_(long_prompt()),
        batch_(host_),
        attention_(kGpu, host_.spec, host_.limits()),
        workspaces_(attention_.workspace_sizes(), batch_.stream) {}

  std::string run() {
    batch_.launch(attention_, workspaces_).throw_if_error();
    return digest_of(batch_.result_bytes());
  }
  /// Many runs, of which the last is looked at.
  std::string run_often() {
    for (int i = 1; i < kRuns; ++i) batch_.launch(attention_, workspaces_).throw_if_error();
    return run();
  }

 private:
  RandomBatch host_;
  DeviceBatch batch_;
  Attention attention_;
  DeviceWorkspaces workspaces_;
};

TEST(ChildProcess, GetsWhatItsParentGot) {
  const char* expected = std::getenv(kExpected);
  if (expected == nullptr) GTEST_SKIP() << "run by SharedGpu only";
  LongPrompt prompt;
  for (int i = 0; i < 4; ++i) EXPECT_EQ(prompt.run_often(), expected);
}

TEST(SharedGpu, GivesEveryProcessTheSameBits) {
  if (std::getenv(kExpected) != nullptr) GTEST_SKIP() << "a child";
  const std::string expected = LongPrompt().run();
  ASSERT_EQ(setenv(kExpected, expected.c_str(), 1), 0);
  std::vector<pid_t> children(kProcesses);
  for (pid_t& child : children) {
    std::string program = "/proc/self/exe";
    std::string filter = "--gtest_filter=ChildProcess.*";
    std::array<char*, 3> arguments{program.data(), filter.data(), nullptr};
    ASSERT_EQ(posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments.data(), environ), 0);
  }
  ASSERT_EQ(unsetenv(kExpected), 0);
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

}  // namespace
}  // namespace quire
