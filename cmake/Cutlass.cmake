# SPDX-License-Identifier: Apache-2.0
# quire::cutlass: the CuTe headers, as system headers. Looks at, in this order: the cache variable
# CUTLASS_INCLUDE_DIR, find_package(NvidiaCutlass), the package nvidia-cutlass in the project's .venv
# or in the Python on PATH. Downloads nothing.
include_guard(GLOBAL)

# quire_python_folders(VARIABLE): the site-packages that the package may be in.
function(quire_python_folders variable)
  file(GLOB folders ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages)
  find_program(QUIRE_PYTHON NAMES python3 DOC "Python whose packages are searched")
  mark_as_advanced(QUIRE_PYTHON)
  if(QUIRE_PYTHON)
    execute_process(
      COMMAND ${QUIRE_PYTHON} -c "import site; print(';'.join(site.getsitepackages()))"
      OUTPUT_VARIABLE active OUTPUT_STRIP_TRAILING_WHITESPACE)
    list(APPEND folders ${active})
  endif()
  set(${variable} ${folders} PARENT_SCOPE)
endfunction()

if(NOT CUTLASS_INCLUDE_DIR)
  find_package(NvidiaCutlass QUIET)
  if(TARGET nvidia::cutlass::cutlass)
    get_target_property(cutlass_hints nvidia::cutlass::cutlass INTERFACE_INCLUDE_DIRECTORIES)
  else()
    quire_python_folders(cutlass_hints)
    list(TRANSFORM cutlass_hints APPEND /cutlass_library/source/include)
  endif()
endif()
find_path(CUTLASS_INCLUDE_DIR cute/tensor.hpp HINTS ${cutlass_hints}
  DOC "Folder that holds cute/tensor.hpp")
if(NOT CUTLASS_INCLUDE_DIR)
  message(FATAL_ERROR
    "The CUDA backend needs the CuTe headers of CUTLASS 4.2; set CUTLASS_INCLUDE_DIR or run "
    "scripts/install_dependencies.sh cuda.")
endif()

add_library(quire_cutlass INTERFACE)
add_library(quire::cutlass ALIAS quire_cutlass)
target_include_directories(quire_cutlass SYSTEM INTERFACE ${CUTLASS_INCLUDE_DIR})
