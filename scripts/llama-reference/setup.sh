#!/usr/bin/env bash
# Builds llama.cpp's benchmarks into a folder. Usage: setup.sh FOLDER     ten minutes on two idle cores
# The sources come inside the Python package llama-cpp-python, at a fixed version; cmake and ninja come as Python packages.
set -euo pipefail
FOLDER=${1:?setup.sh: into which folder?}
VERSION=0.3.36
mkdir -p "$FOLDER"
[ -x "$FOLDER/venv/bin/python" ] || python3 -m venv "$FOLDER/venv"
"$FOLDER/venv/bin/pip" install -q cmake ninja numpy pyyaml tqdm requests scikit-build-core
if [ ! -f "$FOLDER/source/CMakeLists.txt" ]; then
    "$FOLDER/venv/bin/pip" download -q --no-deps --no-binary :all: --no-build-isolation -d "$FOLDER" "llama-cpp-python==$VERSION"
    tar -xzf "$FOLDER/llama_cpp_python-$VERSION.tar.gz" -C "$FOLDER" --transform "s,^[^/]*,package,"
    mv "$FOLDER/package/vendor/llama.cpp" "$FOLDER/source"
    rm -r "$FOLDER/package"
fi
PATH="$FOLDER/venv/bin:$PATH"
cmake -G Ninja -S "$FOLDER/source" -B "$FOLDER/build" -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=ON -DGGML_RPC=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF > "$FOLDER/cmake.log"
ninja -C "$FOLDER/build" llama-bench llama-batched-bench ggml-rpc-server llama-quantize llama-perplexity > "$FOLDER/ninja.log"
