#!/bin/sh
# Creates .venv from requirements.lock, and does nothing when it is already there. Needs Python 3.11, for which the lock
# was resolved, and a package registry as configured for pip; no root. Used by the Makefile.
set -eu
cd "$(dirname "$0")/.."
UV_VERSION=0.13.8
stamp=.venv/.locked

for candidate in ${PYTHON:-python3 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then found=$candidate; break; fi
done
[ -n "${found:-}" ] || {
    echo "headwater: tried ${PYTHON:-python3, python3.11}, none is Python 3.11: set PYTHON to one that is" >&2
    exit 1
}
PYTHON=$found
digest=$("$PYTHON" -c 'import hashlib,sys; print(hashlib.sha256(b"".join(open(f,"rb").read() for f in sys.argv[1:])).hexdigest())' requirements.lock pyproject.toml)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ] && exit 0

if command -v uv >/dev/null 2>&1; then
    uv=uv
else
    uv=.uv/bin/uv
    if [ ! -x "$uv" ]; then
        echo "headwater: installing uv $UV_VERSION" >&2
        rm -rf .uv
        if "$PYTHON" -m venv .uv >/dev/null 2>&1; then
            .uv/bin/pip install -q "uv==$UV_VERSION"
        elif "$PYTHON" -m pip --version >/dev/null 2>&1; then # Debian without python3-venv
            "$PYTHON" -m pip install -q --target .uv "uv==$UV_VERSION"
        elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then # neither venv nor pip
            apt-get update -qq && apt-get install -y -qq python3-venv
            rm -rf .uv && "$PYTHON" -m venv .uv && .uv/bin/pip install -q "uv==$UV_VERSION"
        else
            echo "headwater: $PYTHON has neither venv nor pip: install python3-venv" >&2
            exit 1
        fi
    fi
fi
# uv does not read pip's configuration: hand over an index that was configured there.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=$("$PYTHON" -m pip config get global.index-url 2>/dev/null || true)
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
fi
echo "headwater: creating .venv from requirements.lock" >&2
[ -x .venv/bin/python ] || "$uv" venv -q --python "$PYTHON" .venv
export VIRTUAL_ENV="$PWD/.venv"
"$uv" pip sync -q requirements.lock
"$uv" pip install -q --no-deps -e .
echo "$digest" >"$stamp"
