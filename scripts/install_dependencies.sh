#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what quire is built and tested with, on Debian 12 and Ubuntu 24.04. Does nothing, and
# quickly, if all of it is there.
#
#   scripts/install_dependencies.sh GROUP...
#
#   build  compiler, CMake and the libraries that the library and the tool are made of
#   test   test frameworks, sanitizers, fuzzing, ABI tools
#   cuda   a CUDA 13 compiler unless nvcc 13 is on PATH, the CuTe headers and cuobjdump, into .venv
#   python what the Python package is checked, tested and built with, into .venv
#   lint   formatter and checkers
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(g++ cmake ninja-build libfmt-dev libhwy-dev libcli11-dev nlohmann-json3-dev
                zlib1g-dev)
test_packages=(libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev clang-19 libclang-rt-19-dev
               abigail-tools pkg-config python3 binutils)
cuda_packages=(python3-venv)
python_packages=(python3-venv)
lint_packages=(clang-format-19 doxygen shellcheck python3)

usage() {
  sed -n '3,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

is_installed() {
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
  local missing=() package
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    echo "install_dependencies: no apt-get here; please install: ${missing[*]}" >&2
    exit 1
  fi
  echo "Installing ${missing[*]}"
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# The packages of requirements-cuda.txt that this machine needs: all, or those behind the compiler.
needed_requirements() {
  if nvcc --version 2>/dev/null | grep -q 'release 13\.'; then
    sed -n '/^nvidia-cutlass/,$p' requirements-cuda.txt
  else
    cat requirements-cuda.txt
  fi
}

# install_into_venv FILE: the requirements on stdin, which FILE holds afterwards.
install_into_venv() {
  [ -x .venv/bin/python3 ] || /usr/bin/python3 -m venv .venv
  cat >"$1"
  .venv/bin/python3 -m pip install --quiet --no-deps --require-hashes --requirement "$1"
}

install_cuda() {
  local wanted=.venv/requirements-installed.txt
  cmp --silent "$wanted" <(needed_requirements) && return 0
  echo "Installing the CUDA packages of requirements-cuda.txt into .venv"
  install_into_venv .venv/requirements.txt < <(needed_requirements)
  local toolkit
  for toolkit in .venv/lib/python3*/site-packages/nvidia/cu13; do
    [ -d "$toolkit/lib" ] || continue
    ln -sfn lib "$toolkit/lib64"                         # where nvcc looks
    ln -sfn libcudart.so.13 "$toolkit/lib/libcudart.so"  # what CMake looks for
  done
  mv .venv/requirements.txt "$wanted"
}

install_python() {
  local wanted=.venv/requirements-python-installed.txt
  cmp --silent "$wanted" requirements-python.txt && return 0
  echo "Installing the packages of requirements-python.txt into .venv"
  install_into_venv .venv/requirements-python.txt <requirements-python.txt
  mv .venv/requirements-python.txt "$wanted"
}

[ $# -gt 0 ] || usage
packages=()
cuda=no
python=no
for group in "$@"; do
  case "$group" in
    build) packages+=("${build_packages[@]}") ;;
    test) packages+=("${test_packages[@]}") ;;
    lint) packages+=("${lint_packages[@]}") ;;
    cuda)
      packages+=("${cuda_packages[@]}")
      cuda=yes
      ;;
    python)
      packages+=("${python_packages[@]}")
      python=yes
      ;;
    *) usage ;;
  esac
done
install_packages "${packages[@]}"
[ "$cuda" = no ] || install_cuda
[ "$python" = no ] || install_python
