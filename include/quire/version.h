/* SPDX-License-Identifier: Apache-2.0 */
/** @file
 *  Version of the headers. The version of the library that is linked is `quire::version()` or
 *  `quire_version()`. */
#ifndef QUIRE_VERSION_H_
#define QUIRE_VERSION_H_

#define QUIRE_VERSION_MAJOR 0        /**< Changes when something covered by the promise breaks. */
#define QUIRE_VERSION_MINOR 1        /**< Changes with additions; before 1.0 also with breaks. */
#define QUIRE_VERSION_PATCH 0        /**< Changes with fixes. */
#define QUIRE_VERSION_STRING "0.1.0" /**< The three with dots. */

#endif /* QUIRE_VERSION_H_ */
