#!/usr/bin/env bash
# Installs mlaas_ray from this checkout (editable) at the versions of constraints.txt, with the extra `gpu`
# where there is a GPU.
# usage: deploy/install.sh PIP [EXTRA]    PIP is the pip to use; EXTRA one of pyproject.toml's: dev, s3, xgboost
set -euo pipefail
pip=$(realpath -s "$(command -v "${1:?name the pip to use}")")
extras=${2:-}
cd "$(dirname "$0")/.."

index=()
if nvidia-smi --list-gpus >/dev/null 2>&1; then
  extras=${extras:+$extras,}gpu
elif [ -z "${PIP_FIND_LINKS:-}" ] && ! "$pip" config get global.find-links >/dev/null 2>&1; then
  # PyTorch's default wheels bring some gigabytes of CUDA libraries. Its index of CPU builds has the same
  # versions with a suffix (2.13.0+cpu), which pip prefers. Where pip was told of wheels that lie elsewhere,
  # it is left to find the build there.
  index=(--extra-index-url https://download.pytorch.org/whl/cpu)
fi
"$pip" install --quiet --disable-pip-version-check -c constraints.txt ${index[@]+"${index[@]}"} -e ".${extras:+[$extras]}"
