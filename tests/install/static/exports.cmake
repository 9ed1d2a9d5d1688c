# SPDX-License-Identifier: Apache-2.0
# The library exports its own function and nothing with quire in its name.
execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE symbols
                COMMAND_ERROR_IS_FATAL ANY)
if(NOT symbols MATCHES "plugin_supports")
  message(FATAL_ERROR "plugin_supports is not exported:\n${symbols}")
endif()
string(REGEX MATCHALL "[^\n]*5quire[^\n]*|[^\n]* quire_[^\n]*" leaked "${symbols}")
if(leaked)
  list(JOIN leaked "\n" leaked)
  message(FATAL_ERROR "visible from outside:\n${leaked}")
endif()
