# SPDX-License-Identifier: Apache-2.0
# Finds a CUDA 13 compiler and enables the language. Looks at, in this order: CMAKE_CUDA_COMPILER,
# the variable CUDACXX, nvcc on PATH and in /usr/local/cuda/bin, and the compiler that
# scripts/install_dependencies.sh puts into the project's .venv. Downloads nothing.
set(QUIRE_MIN_CUDA 13.0)

# quire_cuda_version(VARIABLE NVCC): its release, or 0.
function(quire_cuda_version variable nvcc)
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE text ERROR_QUIET)
  set(version 0)
  if(text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(version ${CMAKE_MATCH_1})
  endif()
  set(${variable} ${version} PARENT_SCOPE)
endfunction()

# quire_find_nvcc(VARIABLE): the first one that is new enough.
function(quire_find_nvcc variable)
  string(REPLACE ":" ";" folders "$ENV{PATH}")
  file(GLOB venv ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13/bin)
  foreach(folder IN LISTS folders ITEMS /usr/local/cuda/bin ${venv})
    if(EXISTS ${folder}/nvcc)
      quire_cuda_version(version ${folder}/nvcc)
      if(version VERSION_GREATER_EQUAL QUIRE_MIN_CUDA)
        set(${variable} ${folder}/nvcc PARENT_SCOPE)
        return()
      endif()
      list(APPEND too_old "${folder}/nvcc is ${version}")
    endif()
  endforeach()
  list(JOIN too_old ", " found)
  if(NOT found)
    set(found none)
  endif()
  message(FATAL_ERROR
    "QUIRE_CUDA needs nvcc ${QUIRE_MIN_CUDA} or newer; found: ${found}. Install CUDA 13, set "
    "CMAKE_CUDA_COMPILER, or run scripts/install_dependencies.sh cuda.")
endfunction()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  quire_find_nvcc(CMAKE_CUDA_COMPILER)
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Hopper's own instructions, and what runs from Ampere on.
  set(CMAKE_CUDA_ARCHITECTURES 80 90a-real)
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it, nvcc does
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(CMAKE_VERSION VERSION_LESS 3.26 AND NOT TARGET CUDA::nvToolsExt)
  # Its module sets a property of this target, which CUDA 13 has no library for any more.
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
endif()
find_package(CUDAToolkit ${QUIRE_MIN_CUDA} REQUIRED)
