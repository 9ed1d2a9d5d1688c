/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of the C clients: say what failed and where, and leave. */
#ifndef QUIRE_TESTS_C_EXPECT_H_
#define QUIRE_TESTS_C_EXPECT_H_

#include <stdio.h>
#include <stdlib.h>

#define EXPECT(condition)                                                      \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

#define EXPECT_OK(call)                                                                    \
  do {                                                                                     \
    if ((call) != QUIRE_OK) {                                                              \
      fprintf(stderr, "%s:%d: %s\n  %s\n", __FILE__, __LINE__, #call, quire_last_error()); \
      exit(1);                                                                             \
    }                                                                                      \
  } while (0)

#endif /* QUIRE_TESTS_C_EXPECT_H_ */
