# SPDX-License-Identifier: Apache-2.0
# Finds a CUDA 13 compiler and enables the language. Looks at, in this order: CMAKE_CUDA_COMPILER,
# the variable CUDACXX, nvcc on PATH and in /usr/local/cuda/bin, and the compiler that
# scripts/install_dependencies.sh puts into the project's .venv. Downloads nothing.
set(QUIRE_MIN_CUDA 13.0)

set(QUIRE_CUDA_ARCHS "80;90a" CACHE STRING
    "GPUs that kernels are compiled for: N is code for sm_N and PTX for later ones, Na just code")

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

# quire_read_cuda_archs(VARIABLE NVCC): QUIRE_CUDA_ARCHS in CMake's words. Kernels need sm_80; what
# ends in an `a` has instructions of its own, from sm_90 on, which no later GPU can run.
function(quire_read_cuda_archs variable nvcc)
  execute_process(COMMAND ${nvcc} --list-gpu-code OUTPUT_VARIABLE text ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+" known "${text}")
  list(FILTER known EXCLUDE REGEX "^[1-7][0-9]$")
  list(SORT known COMPARE NATURAL)
  list(TRANSFORM known APPEND a OUTPUT_VARIABLE own_instructions)
  list(FILTER own_instructions EXCLUDE REGEX "^8[0-9]a$")
  foreach(arch IN LISTS QUIRE_CUDA_ARCHS)
    if(arch IN_LIST known)
      list(APPEND architectures ${arch})
    elseif(arch IN_LIST own_instructions)
      list(APPEND architectures ${arch}-real)
    else()
      list(APPEND unknown ${arch})
    endif()
  endforeach()
  if(unknown OR NOT architectures)
    list(JOIN known ", " known)
    list(JOIN own_instructions ", " own_instructions)
    if(NOT unknown)
      set(unknown none)
    endif()
    message(FATAL_ERROR "QUIRE_CUDA_ARCHS: expected some of ${known}, ${own_instructions}, "
                        "got ${unknown}")
  endif()
  set(${variable} ${architectures} PARENT_SCOPE)
endfunction()

if(CMAKE_CUDA_COMPILER)
  set(nvcc ${CMAKE_CUDA_COMPILER})
elseif(DEFINED ENV{CUDACXX})
  set(nvcc $ENV{CUDACXX})
else()
  quire_find_nvcc(CMAKE_CUDA_COMPILER)
  set(nvcc ${CMAKE_CUDA_COMPILER})
endif()
if(PROJECT_IS_TOP_LEVEL AND DEFINED CMAKE_CUDA_ARCHITECTURES)
  message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES: expected QUIRE_CUDA_ARCHS in its place")
endif()
quire_read_cuda_archs(CMAKE_CUDA_ARCHITECTURES ${nvcc})
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
