/* SPDX-License-Identifier: Apache-2.0 */
/** @file
 *  `QUIRE_API` marks what leaves the library. Everything else is hidden, in the shared library and
 *  in the static one. */
#ifndef QUIRE_EXPORT_H_
#define QUIRE_EXPORT_H_

#if defined(QUIRE_STATIC)
#define QUIRE_API
#elif defined(__cplusplus)
#define QUIRE_API [[gnu::visibility("default")]]
#elif defined(__GNUC__)
#define QUIRE_API __attribute__((visibility("default")))
#else
#define QUIRE_API
#endif

#endif /* QUIRE_EXPORT_H_ */
