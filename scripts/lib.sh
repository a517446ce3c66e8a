# shellcheck shell=bash
# Shared by the scripts beside this file; source it, do not run it.
# Limited to bash 3.2, the version on macOS.
#
# All downloads and generated files live in one cache directory outside the checkout:
#   models/<sha256>/NAME.gguf   test models         (scripts/fetch-model)
#   prompts/<sha256>/NAME.jsonl prompt sets by other authors (scripts/fetch-prompts)
#   python/<name>-<key>/        Python environments (ensure_python_env, the wheels of ensure_build_tools)
#   vulkan-headers/             headers from a newer Debian, if the system's are too old (ensure_vulkan_tools)
#   lavapipe/                   lavapipe from a newer Debian, if the system's is too old (use_newer_lavapipe)
#   llama-tools/                llama-bench and llama-quantize from a newer Debian (llama_tools)
#   quickstart/                 output of scripts/quickstart

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="${ROSI_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or ROSI_CACHE}/.cache}/rosi-gguf}"

# Messages go to stderr; stdout is for data.
say() { printf '%s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Prints cargo's target directory.
target_directory() {
  cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

job_count() { nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2; }

# at_least FOUND WANTED: compares dotted versions number by number (`sort -V` is not available everywhere).
at_least() {
  awk -v found="$1" -v wanted="$2" 'BEGIN {
    split(found, f, /[^0-9]+/); split(wanted, w, /[^0-9]+/)
    for (i = 1; i <= 3; i++) if (f[i] + 0 != w[i] + 0) exit !(f[i] + 0 > w[i] + 0)
  }'
}

can_apt() { [ "$(id -u)" = 0 ] && have apt-get; }

# Package lists may be old or missing on a fresh machine, so they are updated before the first install.
APT_UPDATED=
apt_install() {
  if [ -z "$APT_UPDATED" ]; then
    apt-get update -qq >&2 || say "warning: apt-get update failed; continuing with the existing package lists"
    APT_UPDATED=1
  fi
  say "installing with apt-get: $*"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
    die "apt-get cannot install: $*"
}

# ---- Rust ----

ensure_cargo() {
  local wanted found how
  wanted="$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$ROOT/Cargo.toml" | head -n 1)"
  how="install it with rustup (https://rustup.rs), or run 'rustup update stable' if you have rustup"
  # rustup's directory is often not on the PATH of a non-login shell.
  if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  fi
  have cargo || die "cargo is missing; expected Rust $wanted or newer: $how"
  found="$(cd "$ROOT" && rustc --version | awk '{ print $2 }')"
  at_least "$found" "$wanted" || die "expected Rust $wanted or newer, found $found: $how"
}

# ---- Python ----

python_version_ok() { python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
python_has_venv() { python3 -c 'import venv, ensurepip' 2>/dev/null; }

ensure_python() {
  if { ! have python3 || ! python_has_venv; } && can_apt; then
    apt_install python3 python3-venv
  fi
  have python3 || die "python3 is missing (Debian/Ubuntu: apt-get install python3 python3-venv; macOS: xcode-select --install)"
  python_version_ok || die "expected Python 3.10 or newer, found $(python3 --version) (macOS: brew install python3)"
  python_has_venv || die "python3 lacks its venv module (Debian/Ubuntu: apt-get install python3-venv)"
}

# make_venv NAME REQUIREMENTS: prints the directory of a virtual environment with the packages in the file REQUIREMENTS
# ('' for pip alone). Its key hashes the file and the Python version, so a change of either gives a new environment. It
# is built in a temporary directory and renamed, so that concurrent scripts do not collide and a broken one never gets
# the final name. Because of the renaming, use `bin/python -m …`: the scripts beside it refer to the temporary
# directory.
make_venv() {
  local name="$1" requirements="$2" key dir building
  key="$(python3 - "$requirements" <<'PY'
import hashlib, sys
text = open(sys.argv[1], "rb").read() if sys.argv[1] else b""
print(hashlib.sha256(text + sys.version.encode() + sys.base_prefix.encode()).hexdigest()[:16])
PY
)"
  dir="$CACHE/python/$name-$key"
  if [ ! -x "$dir/bin/python" ]; then
    mkdir -p "$CACHE/python"
    building="$(mktemp -d "$CACHE/python/.building.XXXXXX")"
    fill_venv "$building" "$requirements" || {
      rm -rf "$building"
      die "cannot create the Python environment '$name' (see above)"
    }
    # The rename fails if another script was faster; its environment is equivalent.
    python3 -c 'import os, sys; os.rename(sys.argv[1], sys.argv[2])' "$building" "$dir" 2>/dev/null || rm -rf "$building"
    [ -x "$dir/bin/python" ] || die "$dir exists but is not a Python environment: remove it and try again"
  fi
  printf '%s\n' "$dir"
}

fill_venv() {
  python3 -m venv "$1" >&2 || return 1
  if [ -n "$2" ]; then
    say "fetching $(grep -c '==' "$2") Python packages listed in ${2##*/}"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r "$2" >&2 || return 1
  fi
}

# Sets PYTHON to an interpreter that has the packages that tests/oracles import.
ensure_python_env() {
  local venv
  ensure_python
  # `die` ends only the command substitution, and the caller may have disabled `set -e` with `||`.
  venv="$(make_venv oracles "$ROOT/tests/oracles/requirements.txt")" || exit 1
  export PYTHON="$venv/bin/python"
}

# ---- files from Python packages; nothing in those packages is installed or run ----

# Prints the SHA-256 of a file. Python computes it, because the command differs between systems.
sha256_of() {
  python3 - "$1" <<'PY'
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while chunk := file.read(1 << 20):
        digest.update(chunk)
print(digest.hexdigest())
PY
}

# download_wheel PACKAGE==VERSION DIRECTORY: downloads the package's wheel to the empty DIRECTORY.
download_wheel() {
  local venv
  venv="$(make_venv pip '')" || exit 1
  "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary=:all: \
    --dest "$2" "$1" >&2 || die "cannot download $1 (see above)"
}

# make_checked FILE SHA256 MAKER: MAKER writes to the path that it is given, and may use the directory $temp. Its output
# is renamed to FILE only if its SHA-256 matches.
make_checked() {
  local file="$1" sha256="$2" maker="$3" made found
  mkdir -p "$(dirname "$file")"
  # A unique name beside the final one: concurrent runs do not collide, and the rename is atomic.
  temp="$(mktemp -d "$(dirname "$file")/.fetching.XXXXXX")"
  trap 'rm -rf "$temp"' EXIT
  trap 'exit 130' INT TERM
  made="$temp/$(basename "$file")"
  "$maker" "$made"
  found="$(sha256_of "$made")"
  [ "$found" = "$sha256" ] || die "downloaded ${file##*/} is a different file: expected SHA-256 $sha256, found $found"
  mv -f "$made" "$file"
}

# ---- build requirements of llama.cpp: cmake, make, a C++ compiler, libclang ----

ensure_build_tools() {
  ensure_cargo
  case "$(uname -s)" in
    Darwin) xcode-select -p >/dev/null 2>&1 || die "the C++ compiler is missing: run 'xcode-select --install'" ;;
    *) ensure_compiler ;;
  esac
  ensure_cmake_and_libclang
  # bindgen needs clang's own headers (stdbool.h). If only the library is installed, the compiler's headers work as
  # well.
  if [ "$(uname -s)" != Darwin ] && [ -z "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] && ! have_clang_headers; then
    BINDGEN_EXTRA_CLANG_ARGS="-I$(c++ -print-file-name=include)"
    export BINDGEN_EXTRA_CLANG_ARGS
  fi
  export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(job_count)}"
}

ensure_compiler() {
  have c++ && have make && return
  can_apt && apt_install g++ make
  have c++ || die "the C++ compiler is missing, and this script cannot install it (Debian/Ubuntu: sudo apt-get install g++ make)"
  have make || die "make is missing, and this script cannot install it (Debian/Ubuntu: sudo apt-get install make)"
}

ensure_cmake_and_libclang() {
  local missing=()
  have cmake || missing+=(cmake)
  have_libclang || missing+=(libclang-dev)
  [ "${#missing[@]}" -gt 0 ] || return 0
  if can_apt; then
    apt_install "${missing[@]}"
  else
    use_wheels "${missing[@]}"
  fi
}

# Without root or apt-get, the PyPI wheels of cmake and libclang provide the programs.
use_wheels() {
  local venv packages
  say "missing on this system: $*; using Python wheels instead"
  ensure_python
  venv="$(make_venv build-tools "$ROOT/scripts/build-tools.txt")" || exit 1
  packages="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')"
  have cmake || export PATH="$packages/cmake/data/bin:$PATH"
  have_libclang || export LIBCLANG_PATH="$packages/clang/native"
  if ! have cmake || ! have_libclang; then
    die "cmake or libclang is missing (Debian/Ubuntu: sudo apt-get install cmake libclang-dev; macOS: brew install cmake llvm)"
  fi
}

# The places where bindgen looks; it ignores libraries elsewhere. The patterns exclude libclang-cpp, a different
# library.
have_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return
  local folder
  for folder in /usr/lib/llvm*/lib /usr/lib /usr/lib64 /usr/lib/*-linux-* /usr/lib64/llvm*/lib* /usr/local/lib /usr/local/lib64 \
    /usr/local/llvm*/lib /usr/local/opt/llvm*/lib /opt/homebrew/opt/llvm*/lib /Library/Developer/CommandLineTools/usr/lib \
    /Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib; do
    any_exists "$folder"/libclang.so* "$folder"/libclang-[0-9]*.so* "$folder"/libclang.dylib && return
  done
  return 1
}

have_clang_headers() {
  [ -n "${LIBCLANG_PATH:-}" ] && any_exists "$LIBCLANG_PATH"/clang/*/include/stdbool.h && return
  [ -z "${LIBCLANG_PATH:-}" ] || return 1
  any_exists /usr/lib/llvm*/lib/clang/*/include/stdbool.h /usr/lib*/clang/*/include/stdbool.h \
    /usr/local/lib*/clang/*/include/stdbool.h
}

# Succeeds if any argument exists; a pattern without a match arrives unexpanded.
any_exists() {
  local path
  for path in "$@"; do
    [ -e "$path" ] && return
  done
  return 1
}

# ---- requirements of the Vulkan build and its test: headers, a shader compiler, Vulkan in software (lavapipe) ----

# llama.cpp's Vulkan backend does not compile with older headers.
VULKAN_HEADERS_WANTED=1.3.280

ensure_vulkan_tools() {
  local missing=()
  have glslc || missing+=(glslc)
  any_exists /usr/lib/*/libvulkan.so /usr/lib*/libvulkan.so || missing+=(libvulkan-dev)
  any_exists /usr/share/cmake/SPIRV-Headers /usr/lib*/cmake/SPIRV-Headers || missing+=(spirv-headers)
  any_exists /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json || missing+=(mesa-vulkan-drivers)
  if [ "${#missing[@]}" -gt 0 ]; then
    can_apt || die "Vulkan tools are missing (Debian/Ubuntu: sudo apt-get install ${missing[*]})"
    apt_install "${missing[@]}"
  fi
  at_least "$(vulkan_headers_version /usr/include)" "$VULKAN_HEADERS_WANTED" && return
  use_newer_vulkan_headers
}

vulkan_headers_version() {
  local core="$1/vulkan/vulkan_core.h"
  [ -e "$core" ] || { echo 0 && return; }
  sed -n 's/^#define VK_HEADER_VERSION \([0-9]*\)$/\1/p; s/^#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, \([0-9]*\), \([0-9]*\),.*/\1.\2/p' \
    "$core" | tr '\n' ' ' | awk '{ print $2 "." $1 }'
}

# Unpacks the headers of Debian 13 instead of installing them, so that the system does not change.
use_newer_vulkan_headers() {
  local dir="$CACHE/vulkan-headers"
  if ! have dpkg-deb || ! have apt-get; then
    die "expected Vulkan headers $VULKAN_HEADERS_WANTED or newer (https://vulkan.lunarg.com), found $(vulkan_headers_version /usr/include)"
  fi
  if [ ! -d "$dir" ]; then
    say "Vulkan headers are older than $VULKAN_HEADERS_WANTED; using those of Debian 13"
    unpack_debian trixie "$dir" : libvulkan-dev spirv-headers
  fi
  # CMake looks here first; the crate's build script passes the variable on to it.
  export CMAKE_PREFIX_PATH="$dir/usr${CMAKE_PREFIX_PATH:+;$CMAKE_PREFIX_PATH}"
}

# Lavapipe (Vulkan in software) before Mesa 23 corrupts the heap under llama.cpp's shaders. The one of Debian 13 is
# unpacked with its own C library, and its loader runs the programs: cargo runs tests through the runner, and tests run
# ours through it.
LAVAPIPE_WANTED=23

use_newer_lavapipe() {
  local dir="$CACHE/lavapipe" found
  found="$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null || echo 99)"
  if [ -n "${GGML_VK_VISIBLE_DEVICES:-}" ] || [ "$(uname -m)" != x86_64 ] || at_least "$found" "$LAVAPIPE_WANTED"; then
    return 0
  fi
  if [ ! -d "$dir" ]; then
    say "Mesa $found is too old; using lavapipe of Debian 13"
    unpack_debian trixie "$dir" lavapipe_runner lavapipe_needs
  fi
  export VK_DRIVER_FILES="$dir/lavapipe.json" ROSI_TEST_RUNNER="$dir/run" CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$dir/run"
}

# Prints the packages of Debian 13 that the driver and our programs need: all dependencies, except those that only
# configure a system.
lavapipe_needs() {
  debian_apt trixie "$1" cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances mesa-vulkan-drivers libvulkan1 libgomp1 libstdc++6 2>/dev/null |
    grep '^[a-z]' | sort -u | grep -v 'debconf\|^libc-\|gconv\|newt\|readline\|slang\|perl\|dpkg'
}

# The driver's path is relative to the JSON file that names it.
lavapipe_runner() {
  local libraries=usr/lib/x86_64-linux-gnu
  printf '{"file_format_version": "1.0.0", "ICD": {"api_version": "1.4.305", "library_path": "./%s"}}\n' \
    "$libraries/libvulkan_lvp.so" >"$1/lavapipe.json"
  cat >"$1/run" <<EOF
#!/bin/sh
libraries="\$(cd "\$(dirname "\$0")" && pwd)/$libraries"
exec "\$libraries/ld-linux-x86-64.so.2" --library-path "\$libraries" "\$@"
EOF
  chmod +x "$1/run"
}

# unpack_debian SUITE DIRECTORY FINISH PACKAGE...: unpacks packages of another suite to DIRECTORY without changing the
# system. The directory gets its final name after FINISH, called with the unpacked files, has added to them. Instead of
# packages, the name of a function may follow, which gets a directory for the package list and prints the packages.
unpack_debian() {
  local suite="$1" dir="$2" finish="$3" temp deb
  shift 3
  mkdir -p "$CACHE"
  temp="$(mktemp -d "$CACHE/.unpacking.XXXXXX")"
  # shellcheck disable=SC2046 # names of packages
  [ "$(type -t "$1")" != function ] || set -- $("$1" "$temp")
  debian_packages "$suite" "$temp" "$@"
  mkdir "$temp/root"
  for deb in "$temp"/*.deb; do dpkg-deb -x "$deb" "$temp/root"; done
  "$finish" "$temp/root"
  mv -T "$temp/root" "$dir" 2>/dev/null || [ -d "$dir" ] || die "cannot move the unpacked packages to $dir"
  rm -rf "$temp"
}

# debian_packages SUITE DIRECTORY PACKAGE...: downloads packages of another suite from the machine's Debian mirror to
# DIRECTORY, with a separate package list, so that the machine's apt does not change.
debian_packages() {
  local suite="$1" folder="$2"
  shift 2
  debian_lists "$suite" "$folder"
  (cd "$folder" && debian_apt "$suite" "$folder" get download -qq "$@" >&2) || die "cannot download: $*"
}

# debian_lists SUITE DIRECTORY: fetches the package list of another suite to DIRECTORY.
debian_lists() {
  local suite="$1" folder="$2" mirror
  [ ! -e "$folder/sources.list" ] || return 0
  # shellcheck disable=SC2016 # $(SITE) is apt-get's own
  mirror="$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -v security | grep '/debian$' | head -n 1)"
  [ -n "$mirror" ] || die "found no Debian mirror in apt for packages of $suite"
  any_exists /usr/share/keyrings/debian-archive-keyring.gpg || ! can_apt || apt_install debian-archive-keyring
  mkdir -p "$folder/lists/partial"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite" >"$folder/sources.list"
  debian_apt "$suite" "$folder" get update -qq >&2 || die "cannot fetch the package list of Debian's $suite"
}

# debian_apt SUITE DIRECTORY get|cache ARGUMENT...: runs apt with that package list only.
debian_apt() {
  local suite="$1" folder="$2" tool="$3"
  shift 3
  debian_lists "$suite" "$folder"
  "apt-$tool" -o APT::Sandbox::User=root -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o "Dir::State::Lists=$folder/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

# ---- another llama.cpp, for comparison ----

# Prints a directory with llama-bench and llama-quantize from a newer Debian. They are unpacked with their own C library
# and run by their own loader, so that the system does not change.
llama_tools() {
  local dir="$CACHE/llama-tools"
  if [ ! -d "$dir" ]; then
    if [ "$(uname -m)" != x86_64 ] || ! have dpkg-deb || ! have apt-get; then
      say "skipped: llama-bench and llama-quantize need x86-64, dpkg-deb and apt-get"
      return 1
    fi
    unpack_debian forky "$dir" wrap_llama_tools \
      llama.cpp-tools libllama0 libggml0 libc6 libgcc-s1 libstdc++6 libgomp1 libssl3t64 zlib1g libzstd1
  fi
  printf '%s\n' "$dir"
}

wrap_llama_tools() {
  local program
  for program in llama-bench llama-quantize; do
    wrapped "$program" >"$1/$program"
    chmod +x "$1/$program"
  done
}

# ggml has one library per kind of CPU, and searches for it where Debian installs it.
wrapped() {
  cat <<EOF
#!/bin/sh
here="\$(cd "\$(dirname "\$0")" && pwd)"
libraries="\$here/usr/lib/x86_64-linux-gnu"
cpu=x64
! grep -qw avx2 /proc/cpuinfo || cpu=haswell
! grep -qw avx512_vnni /proc/cpuinfo || cpu=icelake
export GGML_BACKEND_PATH="\$libraries/ggml/backends0/libggml-cpu-\$cpu.so"
exec "\$libraries/ld-linux-x86-64.so.2" --library-path "\$libraries:\$libraries/llama" "\$here/usr/bin/$1" "\$@"
EOF
}
