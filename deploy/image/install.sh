#!/bin/sh
# The install steps of the image, which tests run too: install.sh packages|launcher|wheel|tutti VENV [VARIANT]
#
#   packages   the locked packages into a new virtual environment: all that changes rarely, a layer of its own
#   launcher   for CUDA: what Triton would compile at run time, so that the image needs no compiler
#   wheel      the server from the current folder as a wheel, beside the locks in dist/
#   tutti      that wheel into the environment, which is small: a layer of its own too
#
# VARIANT is cpu or cuda. PYTHON is the interpreter (python3), TORCH_INDEX a package index to take torch from
# instead of where pip is configured to look.
set -eu
step=$1 venv=$2 variant=${3:-}
source=$(dirname "$0")/../..
locks=$source/requirements

# The interpreter's own pip: the environment needs none. What it installs it compiles; itself, in the image, it need not.
pip() {
    PYTHONDONTWRITEBYTECODE=1 "${PYTHON:-python3}" -m pip --python "$venv/bin/python" --disable-pip-version-check --quiet "$@"
}

case $step in
packages)
    set -- -r "$locks/serve.lock"
    case $variant in
    cpu) ;;
    cuda) set -- "$@" -r "$locks/vllm-cuda.lock" ;;
    *) echo "install.sh: there is no variant '$variant'; allowed: cpu, cuda" >&2; exit 2 ;;
    esac
    "${PYTHON:-python3}" -m venv --without-pip "$venv"
    # Of torch each index has a build of its own; what is installed already satisfies the lock's pin.
    if [ -n "${TORCH_INDEX:-}" ]; then
        pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' "$locks/serve.lock")"
    fi
    pip install --no-deps "$@"
    # What the build of torch that has come needs beyond the lock: CUDA's libraries, where the index has a CUDA build.
    pip install -c "$locks/serve.lock" "$(grep '^torch==' "$locks/serve.lock")"
    ;;
launcher)
    [ "$variant" = cuda ] || exit 0
    if ! command -v gcc >/dev/null; then
        apt-get update
        apt-get install --yes --no-install-recommends gcc libc6-dev
    fi
    libexec=$venv/libexec
    triton=$("$venv/bin/python" -c 'import importlib.util as u; print(u.find_spec("triton").submodule_search_locations[0])')
    python=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    mkdir -p "$libexec"
    # The driver is the host's; to link against it its name will do.
    driver=$(mktemp -d)
    gcc -shared -x c /dev/null -o "$driver/libcuda.so.1"
    gcc "$triton/backends/nvidia/driver.c" -O3 -shared -fPIC -Wno-psabi -o "$libexec/cuda_utils.so" \
        -I"$triton/backends/nvidia/include" -I"$python" -L"$driver" -Wl,--no-as-needed -l:libcuda.so.1
    install --mode=755 "$(dirname "$0")/cc" "$libexec/cc"
    rm -r "$driver"
    ;;
wheel)
    # The backend is pinned in pyproject.toml and is needed for this step alone.
    pip wheel --no-deps --wheel-dir "$source/dist" .
    ;;
tutti)
    pip install --no-deps --no-index --no-cache-dir "$source"/dist/tutti_server-*.whl
    ;;
*)
    echo "install.sh: there is no step '$step'; allowed: packages, launcher, wheel, tutti" >&2
    exit 2
    ;;
esac
