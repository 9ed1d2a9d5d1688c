# SPDX-License-Identifier: Apache-2.0
# example(NAME SOURCE TARGET): an example that must print what the README says.
function(example name source target)
  add_executable(${name} ${EXAMPLES}/${source})
  target_link_libraries(${name} PRIVATE ${target})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES
    PASS_REGULAR_EXPRESSION "decode 6\\.0, prompt 0\\.0 1\\.0 2\\.0")
endfunction()
