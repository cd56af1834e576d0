#!/usr/bin/env bash
# Makes a folder in which the ARM build of LiteRT runs on this machine, emulated, for tests/deployment/aarch64_test:
#   tools/aarch64_root.sh FOLDER              200 MB, in two minutes; does nothing where it is made already
#   FOLDER/python ARGUMENTS                   the ARM Python; QEMU_CPU=cortex-a53 picks another processor
# Installs nothing: packages are downloaded and unpacked below FOLDER, and apt keeps its state there. Debian's
# signatures vouch for its packages, the hashes of requirements_lock.txt for the wheels.
# QEMU comes from Debian 13, whatever runs here: under Debian 12's 7.2 LiteRT 2.2 and 2.3 end in a segmentation fault.
set -euo pipefail

readonly release=trixie python=3.13
readonly mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { echo "aarch64_root: $*" >&2; }
fail() {
  say "$*"
  exit 1
}

[[ $# == 1 && $1 != -* ]] || fail "usage: tools/aarch64_root.sh FOLDER"
for program in apt-get dpkg python3; do
  command -v "$program" >/dev/null || fail "needs $program: works on Debian and Ubuntu only"
done
python3 -m pip --version >/dev/null 2>&1 || fail "$(command -v python3) has no pip: use the project's environment"
[[ -r $keyring ]] || fail "$keyring is missing: install debian-archive-keyring"

# Their rows of the lock file, so that both sides of the comparison run the same version.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock=$repository/requirements_lock.txt
requirements=$(awk '/^[^ ]/ { taken = /^(ai-edge-litert|ml-dtypes|numpy)==/ } taken' "$lock")
made_from=$(cat "${BASH_SOURCE[0]}" - <<<"$requirements" | sha256sum | cut -d' ' -f1)

folder=$(realpath -m "$1")
starts() {
  "$1/python" -c 'import platform, importlib.metadata as m
from ai_edge_litert import compiled_model, interpreter
print("LiteRT", m.version("ai-edge-litert"), "on", platform.machine())'
}
if [[ -e $folder/made_from ]]; then
  if [[ $(<"$folder/made_from") == "$made_from" ]] && starts "$folder"; then
    exit 0
  fi
  say "$folder is of another version or does not start: making it anew"
elif [[ -e $folder ]] && [[ ! -d $folder || -n $(ls -A "$folder") ]]; then
  fail "$folder is not empty and was not made here: give another folder"
fi

# All of it or nothing: what is being made lies beside FOLDER until it has started once.
mkdir -p "$(dirname "$folder")"
new=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$new"' EXIT
chmod 755 "$new"

say "downloading Debian's packages"
host=$(dpkg --print-architecture)
apt=$new/apt
mkdir -p "$apt"/{lists,archives}/partial
touch "$apt/status"
echo "deb [signed-by=$keyring] $mirror $release main" >"$apt/sources.list"
# Of the machine's own settings only the way to the net: the rest has sources and hooks for what is installed.
apt-config dump | grep -E '^Acquire::https?::' >"$apt/apt.conf" || true
cat >>"$apt/apt.conf" <<EOF
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "/dev/null";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$apt";
Dir::State::Status "$apt/status";
Dir::Cache "$apt";
APT::Architecture "arm64";
APT::Architectures { "arm64"; "$host"; };
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
Acquire::Retries "3";
EOF
export APT_CONFIG=$apt/apt.conf
apt-get update -qq --error-on=any || fail "no list of packages from $mirror (DEBIAN_MIRROR names another mirror)"
apt-get install -qq -y --download-only \
  "qemu-user:$host" "libpython$python-stdlib" "python$python-minimal" libstdc++6 >/dev/null ||
  fail "no packages from $mirror"

say "unpacking"
mkdir -p "$new/debian/usr/lib"
ln -s usr/lib "$new/debian/lib"
for package in "$apt"/archives/*_arm64.deb; do
  [[ $package == */qemu-user_* ]] || dpkg -x "$package" "$new/debian"
done
dpkg --fsys-tarfile "$apt"/archives/qemu-user_*_"$host".deb |
  tar -x -C "$new" --strip-components=3 ./usr/bin/qemu-aarch64
rm -rf "$apt"

say "downloading LiteRT and what it imports"
echo "$requirements" >"$new/requirements.txt"
platforms=()
for glibc in 2_17 2_27 2_28; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
  --no-deps --require-hashes --only-binary=:all: "${platforms[@]}" --python-version "$python" \
  --target "$new/site-packages" -r "$new/requirements.txt" ||
  fail "pip found no wheels for aarch64 and Python $python with the hashes of requirements_lock.txt"

cat >"$new/python" <<EOF
#!/bin/sh
# The ARM Python. Nothing of the caller's environment but QEMU_CPU, whose default is a phone's core of 2018.
here=\$(dirname "\$(realpath "\$0")")
exec env -i PATH="\$PATH" PYTHONPATH="\$here/site-packages" QEMU_LD_PREFIX="\$here/debian" \\
  QEMU_CPU="\${QEMU_CPU:-cortex-a76}" "\$here/qemu-aarch64" "\$here/debian/usr/bin/python$python" -S -P "\$@"
EOF
chmod +x "$new/python"
starts "$new" || fail "the emulated LiteRT does not start"
echo "$made_from" >"$new/made_from"

rm -rf "$folder"
mv "$new" "$folder"
