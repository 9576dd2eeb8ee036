#!/usr/bin/env bash
# An environment with Petals itself, from PyPI. Usage: setup.sh VENV
# Petals 2.2.0.post1 pins an old hivemind whose build fetches a binary; the same binary is in an older wheel.
set -euo pipefail
VENV=$1
[ -x "$VENV/bin/python" ] || python3 -m venv "$VENV"
PIP="$VENV/bin/pip"
$PIP install -q -U pip "setuptools<70" wheel
$PIP install -q "torch==2.2.2" "numpy<2" "transformers==4.34.1" "accelerate==0.24.1" "peft==0.5.0" "huggingface-hub<0.18" \
    "safetensors<0.5" sentencepiece "async-timeout>=4.0.2" "Dijkstar>=2.6.0" humanfriendly "speedtest-cli==2.1.3" \
    "pydantic<2,>=1.10" PyYAML "scipy<1.14" prefetch_generator msgpack sortedcontainers uvloop configargparse \
    "multiaddr==0.0.9" pymultihash "cryptography<43" "protobuf<5" "grpcio-tools<1.63" psutil packaging
$PIP install -q --no-deps cpufeature==0.2.1 tensor-parallel==1.0.23 bitsandbytes==0.41.1
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK"
$PIP download -q hivemind==1.1.10.post2 --no-deps --no-binary :all: --no-build-isolation
$PIP download -q hivemind==1.1.9 --no-deps --only-binary :all:
tar xf hivemind-1.1.10.post2.tar.gz
python3 - <<'PY'
import hashlib, os, zipfile
binary = zipfile.ZipFile("hivemind-1.1.9-py3-none-any.whl").read("hivemind/hivemind_cli/p2pd")
path = "hivemind-1.1.10.post2/hivemind/hivemind_cli/p2pd"
open(path, "wb").write(binary)
os.chmod(path, 0o755)
setup = open("hivemind-1.1.10.post2/setup.py").read()
expected = "a9d456006e915d3cbbc8e5e9902d5b1a3120235f317e113137d6b631e2c810ac"
open("hivemind-1.1.10.post2/setup.py", "w").write(setup.replace(expected, hashlib.sha256(binary).hexdigest()))
PY
$PIP install -q --no-deps --no-build-isolation --force-reinstall ./hivemind-1.1.10.post2
$PIP install -q --no-deps petals==2.2.0.post1
chmod +x "$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/hivemind/hivemind_cli/p2pd"
