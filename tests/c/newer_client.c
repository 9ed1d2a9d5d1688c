/* SPDX-License-Identifier: Apache-2.0 */
/* A client built against a newer header, whose structs have fields that this library does not know:
 * fine while they are zero, a sentence when they are not. */
#include <string.h>

#include "expect.h"
#include "quire/quire.h"

typedef struct newer_spec {
  quire_attention_spec known;
  int32_t future[4];
} newer_spec;

typedef struct newer_limits {
  quire_batch_limits known;
  double future;
} newer_limits;

static const quire_device kCpu = {QUIRE_DEVICE_CPU, 0};

int main(void) {
  newer_spec spec;
  newer_limits limits;
  quire_attention* attention = NULL;

  memset(&spec, 0xa5, sizeof(spec));
  EXPECT_OK(quire_attention_spec_init(&spec.known, sizeof(spec)));
  EXPECT(spec.known.struct_size == sizeof(spec));
  EXPECT(spec.known.page_size == 16 && spec.known.window_left == -1);
  EXPECT(spec.future[0] == 0 && spec.future[3] == 0);
  EXPECT_OK(quire_batch_limits_init(&limits.known, sizeof(limits)));
  spec.known.num_qo_heads = spec.known.num_kv_heads = 1;
  spec.known.head_dim_qk = 64;
  EXPECT_OK(quire_attention_create(kCpu, &spec.known, &limits.known, NULL, &attention));

  memset(spec.future, 0xa5, sizeof(spec.future));
  EXPECT_OK(quire_attention_get_spec(attention, &spec.known));
  EXPECT(spec.known.head_dim_vo == 64);
  EXPECT(spec.future[0] == 0 && spec.future[3] == 0);
  quire_attention_destroy(attention);

  spec.future[2] = 1;
  EXPECT(quire_attention_create(kCpu, &spec.known, &limits.known, NULL, &attention) ==
         QUIRE_INVALID_ARGUMENT);
  EXPECT(attention == NULL);
  EXPECT(
      strcmp(quire_last_error(),
             "[quire_attention_create] spec: expected zeros beyond byte 80, all that "
             "quire " QUIRE_VERSION_STRING
             " knows of quire_attention_spec, got a value at byte 88; a newer library knows that "
             "field") == 0);
  return 0;
}
