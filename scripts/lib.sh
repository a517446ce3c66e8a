# shellcheck shell=bash
# Shared by the scripts beside this file; source it, do not run it.
# It stays within bash 3.2, because that is the bash of macOS.
#
# Everything that is fetched or made lives in one cache folder outside the checkout:
#   models/<sha256>/NAME.gguf   test models         (scripts/fetch-model)
#   prompts/<sha256>/NAME.jsonl outside prompt sets (scripts/fetch-prompts)
#   python/<name>-<key>/        Python environments (ensure_python_env, the wheels of ensure_build_tools)
#   vulkan-headers/             headers of a newer Debian, where the system's are too old (ensure_vulkan_tools)
#   lavapipe/                   Vulkan in software of a newer Debian, where the system's is too old (use_newer_lavapipe)
#   llama-tools/                llama-bench and llama-quantize of a newer Debian (llama_tools)
#   quickstart/                 what scripts/quickstart wrote

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="${ROSI_CACHE:-${XDG_CACHE_HOME:-${HOME:?set HOME or ROSI_CACHE}/.cache}/rosi-gguf}"

# stdout is for data, so people are told things on stderr.
say() { printf '%s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# The folder that cargo builds into.
target_directory() {
  cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

job_count() { nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2; }

# at_least FOUND WANTED: compares dotted versions number by number (`sort -V` is not everywhere).
at_least() {
  awk -v found="$1" -v wanted="$2" 'BEGIN {
    split(found, f, /[^0-9]+/); split(wanted, w, /[^0-9]+/)
    for (i = 1; i <= 3; i++) if (f[i] + 0 != w[i] + 0) exit !(f[i] + 0 > w[i] + 0)
  }'
}

can_apt() { [ "$(id -u)" = 0 ] && have apt-get; }

# Package lists may be old or absent on a fresh machine, so they are read anew before the first install.
APT_UPDATED=
apt_install() {
  if [ -z "$APT_UPDATED" ]; then
    apt-get update -qq >&2 || say "warning: apt-get update failed; going on with the package lists there are"
    APT_UPDATED=1
  fi
  say "installing with apt-get: $*"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
    die "apt-get could not install: $*"
}

# ---- Rust ----

ensure_cargo() {
  local wanted found how
  wanted="$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$ROOT/Cargo.toml" | head -n 1)"
  how="install it with rustup (https://rustup.rs), or, where rustup is there already, run 'rustup update stable'"
  # rustup's folder is often not on the PATH of a non-login shell.
  if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  fi
  have cargo || die "cargo is missing. Rust $wanted or newer is needed: $how"
  found="$(cd "$ROOT" && rustc --version | awk '{ print $2 }')"
  at_least "$found" "$wanted" || die "Rust $found is too old. Rust $wanted or newer is needed: $how"
}

# ---- Python ----

python_version_ok() { python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
python_has_venv() { python3 -c 'import venv, ensurepip' 2>/dev/null; }

ensure_python() {
  if { ! have python3 || ! python_has_venv; } && can_apt; then
    apt_install python3 python3-venv
  fi
  have python3 || die "python3 is missing (Debian/Ubuntu: apt-get install python3 python3-venv; macOS: xcode-select --install)"
  python_version_ok || die "Python 3.10 or newer is needed, this is $(python3 --version) (macOS: brew install python3)"
  python_has_venv || die "python3 lacks its venv module (Debian/Ubuntu: apt-get install python3-venv)"
}

# make_venv NAME REQUIREMENTS: prints the folder of a virtual environment with what the file REQUIREMENTS lists
# ('' for nothing but pip). Its key holds the file and the Python, so a change of either gives a new one. It is built
# in a folder of its own and renamed: two scripts at once do not meet, and a broken one never bears the final name.
# Because of that renaming, use `bin/python -m …`: the scripts beside it name the folder it was built in.
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
      die "the Python environment '$name' could not be made (see above)"
    }
    # rename fails where another script was faster; then its environment is as good as ours.
    python3 -c 'import os, sys; os.rename(sys.argv[1], sys.argv[2])' "$building" "$dir" 2>/dev/null || rm -rf "$building"
    [ -x "$dir/bin/python" ] || die "$dir is in the way: remove it and try again"
  fi
  printf '%s\n' "$dir"
}

fill_venv() {
  python3 -m venv "$1" >&2 || return 1
  if [ -n "$2" ]; then
    say "fetching Python packages: $(grep -c '==' "$2") listed in ${2##*/}"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r "$2" >&2 || return 1
  fi
}

# Sets PYTHON to an interpreter with what the oracles in tests/oracles import.
ensure_python_env() {
  local venv
  ensure_python
  # `die` in a command substitution ends only that; the caller may have turned `set -e` off by `||`.
  venv="$(make_venv oracles "$ROOT/tests/oracles/requirements.txt")" || exit 1
  export PYTHON="$venv/bin/python"
}

# ---- files that are carried by Python packages; nothing of those packages is installed or run ----

# SHA-256 by Python, because its command has another name on each system.
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

# download_wheel PACKAGE==VERSION FOLDER: leaves the package's wheel in the empty FOLDER.
download_wheel() {
  local venv
  venv="$(make_venv pip '')" || exit 1
  "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary=:all: \
    --dest "$2" "$1" >&2 || die "$1 could not be downloaded"
}

# make_checked FILE SHA256 MAKER: MAKER writes to the path it is given, and may use the folder $temp; what it wrote gets
# the name FILE only if its SHA-256 is right.
make_checked() {
  local file="$1" sha256="$2" maker="$3" made found
  mkdir -p "$(dirname "$file")"
  # A unique name beside the final one: two runs at once do not meet, and the rename is atomic.
  temp="$(mktemp -d "$(dirname "$file")/.fetching.XXXXXX")"
  trap 'rm -rf "$temp"' EXIT
  trap 'exit 130' INT TERM
  made="$temp/$(basename "$file")"
  "$maker" "$made"
  found="$(sha256_of "$made")"
  [ "$found" = "$sha256" ] || die "what was downloaded for ${file##*/} is another file: its SHA-256 is $found, not $sha256"
  mv -f "$made" "$file"
}

# ---- what llama.cpp's build needs: cmake, make, a C++ compiler, libclang ----

ensure_build_tools() {
  ensure_cargo
  case "$(uname -s)" in
    Darwin) xcode-select -p >/dev/null 2>&1 || die "the compiler is missing: run 'xcode-select --install'" ;;
    *) ensure_compiler ;;
  esac
  ensure_cmake_and_libclang
  # bindgen needs clang's own headers (stdbool.h); where only the library is there, the compiler's serve as well.
  if [ "$(uname -s)" != Darwin ] && [ -z "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] && ! have_clang_headers; then
    BINDGEN_EXTRA_CLANG_ARGS="-I$(c++ -print-file-name=include)"
    export BINDGEN_EXTRA_CLANG_ARGS
  fi
  export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(job_count)}"
}

ensure_compiler() {
  have c++ && have make && return
  can_apt && apt_install g++ make
  have c++ || die "a C++ compiler is missing and cannot be installed from here (Debian/Ubuntu: sudo apt-get install g++ make)"
  have make || die "make is missing and cannot be installed from here (Debian/Ubuntu: sudo apt-get install make)"
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

# Without root (or apt-get): the PyPI wheels of cmake and libclang carry the programs themselves.
use_wheels() {
  local venv packages
  say "not on this system: $*; taking them from Python wheels"
  ensure_python
  venv="$(make_venv build-tools "$ROOT/scripts/build-tools.txt")" || exit 1
  packages="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')"
  have cmake || export PATH="$packages/cmake/data/bin:$PATH"
  have_libclang || export LIBCLANG_PATH="$packages/clang/native"
  if ! have cmake || ! have_libclang; then
    die "cmake and libclang are needed (Debian/Ubuntu: sudo apt-get install cmake libclang-dev; macOS: brew install cmake llvm)"
  fi
}

# The places where bindgen looks (it takes no other, so a library elsewhere does not count). Named so as to leave out
# libclang-cpp, which is something else.
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

# True if one of its arguments exists; a pattern that matches nothing arrives as itself.
any_exists() {
  local path
  for path in "$@"; do
    [ -e "$path" ] && return
  done
  return 1
}

# ---- what the Vulkan backend's build and its test need: headers, a shader compiler, Vulkan in software (lavapipe) ----

# What llama.cpp's Vulkan backend was written against; with older headers it does not compile.
VULKAN_HEADERS_WANTED=1.3.280

ensure_vulkan_tools() {
  local missing=()
  have glslc || missing+=(glslc)
  any_exists /usr/lib/*/libvulkan.so /usr/lib*/libvulkan.so || missing+=(libvulkan-dev)
  any_exists /usr/share/cmake/SPIRV-Headers /usr/lib*/cmake/SPIRV-Headers || missing+=(spirv-headers)
  any_exists /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json || missing+=(mesa-vulkan-drivers)
  if [ "${#missing[@]}" -gt 0 ]; then
    can_apt || die "Vulkan's tools are missing (Debian/Ubuntu: sudo apt-get install ${missing[*]})"
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

# The headers of Debian 13 are unpacked, not installed: nothing else of the system changes.
use_newer_vulkan_headers() {
  local dir="$CACHE/vulkan-headers"
  if ! have dpkg-deb || ! have apt-get; then
    die "Vulkan headers $VULKAN_HEADERS_WANTED or newer are needed (https://vulkan.lunarg.com), these are $(vulkan_headers_version /usr/include)"
  fi
  if [ ! -d "$dir" ]; then
    say "Vulkan headers older than $VULKAN_HEADERS_WANTED: taking those of Debian 13"
    unpack_debian trixie "$dir" : libvulkan-dev spirv-headers
  fi
  # CMake looks here first, and the crate's build script hands this on to it.
  export CMAKE_PREFIX_PATH="$dir/usr${CMAKE_PREFIX_PATH:+;$CMAKE_PREFIX_PATH}"
}

# Vulkan in software (lavapipe) before Mesa 23 corrupts the heap under llama.cpp's shaders, so that of Debian 13 is unpacked, with
# its own C library, and programs are run by its loader: cargo runs tests through the runner, and they run ours through it.
LAVAPIPE_WANTED=23

use_newer_lavapipe() {
  local dir="$CACHE/lavapipe" found
  found="$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null || echo 99)"
  if [ -n "${GGML_VK_VISIBLE_DEVICES:-}" ] || [ "$(uname -m)" != x86_64 ] || at_least "$found" "$LAVAPIPE_WANTED"; then
    return 0
  fi
  if [ ! -d "$dir" ]; then
    say "Mesa $found is too old: taking Vulkan in software of Debian 13"
    unpack_debian trixie "$dir" lavapipe_runner lavapipe_needs
  fi
  export VK_DRIVER_FILES="$dir/lavapipe.json" ROSI_TEST_RUNNER="$dir/run" CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$dir/run"
}

# What the driver and ours need of Debian 13: everything that is depended on, but for what configures a system.
lavapipe_needs() {
  debian_apt trixie "$1" cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances mesa-vulkan-drivers libvulkan1 libgomp1 libstdc++6 2>/dev/null |
    grep '^[a-z]' | sort -u | grep -v 'debconf\|^libc-\|gconv\|newt\|readline\|slang\|perl\|dpkg'
}

# The driver's place is told from that of the file that tells it.
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

# unpack_debian SUITE FOLDER FINISH PACKAGE...: unpacks packages of another suite to FOLDER, which gets its name when FINISH,
# called with what was unpacked, has added to it; nothing of the system changes. In place of packages stands the name of a
# function that prints them, given a folder for the package list.
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
  mv -T "$temp/root" "$dir" 2>/dev/null || [ -d "$dir" ] || die "what was unpacked could not be moved to $dir"
  rm -rf "$temp"
}

# debian_packages SUITE FOLDER PACKAGE...: leaves packages of another suite of the machine's own Debian mirror in FOLDER,
# with a package list of its own, so that the machine's apt is as it was.
debian_packages() {
  local suite="$1" folder="$2"
  shift 2
  debian_lists "$suite" "$folder"
  (cd "$folder" && debian_apt "$suite" "$folder" get download -qq "$@" >&2) || die "could not be downloaded: $*"
}

# The package list of another suite, in FOLDER.
debian_lists() {
  local suite="$1" folder="$2" mirror
  [ ! -e "$folder/sources.list" ] || return 0
  # shellcheck disable=SC2016 # $(SITE) is apt-get's own
  mirror="$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -v security | grep '/debian$' | head -n 1)"
  [ -n "$mirror" ] || die "apt has no Debian mirror to take packages of $suite from"
  any_exists /usr/share/keyrings/debian-archive-keyring.gpg || ! can_apt || apt_install debian-archive-keyring
  mkdir -p "$folder/lists/partial"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite" >"$folder/sources.list"
  debian_apt "$suite" "$folder" get update -qq >&2 || die "the package list of Debian's $suite could not be read"
}

# debian_apt SUITE FOLDER get|cache ARGUMENT...: apt with that list and no other.
debian_apt() {
  local suite="$1" folder="$2" tool="$3"
  shift 3
  debian_lists "$suite" "$folder"
  "apt-$tool" -o APT::Sandbox::User=root -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o "Dir::State::Lists=$folder/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

# ---- another llama.cpp, to measure ours beside ----

# Prints a folder with llama-bench and llama-quantize as a newer Debian has them. They are unpacked with their own C library
# and run by their own loader, so nothing of the system changes.
llama_tools() {
  local dir="$CACHE/llama-tools"
  if [ ! -d "$dir" ]; then
    if [ "$(uname -m)" != x86_64 ] || ! have dpkg-deb || ! have apt-get; then
      say "skipped: llama-bench and llama-quantize are taken from Debian's packages for x86-64"
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

# ggml's CPU code comes in a library for each kind of CPU, and is looked for where Debian installs it.
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
