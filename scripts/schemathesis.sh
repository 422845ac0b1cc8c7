#!/usr/bin/env bash
# Holds a daemon to its own OpenAPI document: thousands of requests that the document allows, and as many
# that it forbids. `scripts/schemathesis.sh RINGFENCE [SECONDS]`, with `schemathesis` in $SCHEMATHESIS or
# $PATH. Needs root, since requests are made up: the daemon runs as a user that owns nothing else, and all
# that it can write to is a small file system of its own, which is gone at the end. With $SCHEMATHESIS_SEED the
# requests are the same ones each time.
set -euo pipefail
binary=$(realpath "${1:?the program}")
seconds=${2:-60}
tool=${SCHEMATHESIS:-$(command -v schemathesis || true)}
here=$(cd "$(dirname "$0")" && pwd)
if ! [ -x "$tool" ]; then echo "skipped: there is no schemathesis"; exit 0; fi
if [ "$(id -u)" != 0 ]; then echo "skipped: not root, so there is no user for the daemon alone"; exit 0; fi
if [ -z "${RINGFENCE_SCHEMATHESIS_INSIDE:-}" ]; then
  # /tmp and the shared memory of this mount namespace are small, and nobody else's.
  RINGFENCE_SCHEMATHESIS_INSIDE=$(mktemp -d "${TMPDIR:-/tmp}/ringfence-schemathesis.XXXXXX")
  export RINGFENCE_SCHEMATHESIS_INSIDE
  trap 'rm -rf "$RINGFENCE_SCHEMATHESIS_INSIDE"' EXIT
  chmod 755 "$RINGFENCE_SCHEMATHESIS_INSIDE"
  unshare --mount --propagation private "$0" "$binary" "$seconds"
  exit
fi
place=$RINGFENCE_SCHEMATHESIS_INSIDE id=54329
mount -t tmpfs -o size=512m,mode=755 ringfence-schemathesis "$place"
mount -t tmpfs -o size=16m,mode=1777 ringfence-schemathesis /dev/shm
mkdir -p "$place/home/work" "$place/run" "$place/report"
cp "$binary" "$place/ringfence"
chown -R "$id:$id" "$place/home" "$place/run"
chmod 700 "$place/run"
as_user() {
  setpriv --reuid "$id" --regid "$id" --clear-groups -- env -i HOME="$place/home" PATH="$PATH" \
    XDG_RUNTIME_DIR="$place/run" RINGFENCE_STATE="$place/home/state" LANG=C.UTF-8 "$@"
}
ringfence() { (cd "$place/home/work" && as_user "$place/ringfence" "$@"); }

address=127.0.0.1:$((20000 + $$ % 20000))
(cd "$place/home/work" && as_user "$place/ringfence" daemon --listen "$address") >"$place/log" 2>&1 &
daemon=$!
# Nothing else is that user's.
trap 'pkill -u "$id" || true; wait "$daemon" 2>/dev/null || true; pkill -KILL -u "$id" || true' EXIT
for _ in $(seq 100); do
  if ringfence daemon status >/dev/null 2>&1; then break; fi
  sleep 0.1
done
mkdir "$place/home/tree" "$place/home/tree/src"
echo text >"$place/home/tree/readme"
echo 'int main(void) { return 0; }' >"$place/home/tree/src/main.c"
ringfence codebase create app --from "$place/home/tree" >/dev/null
ringfence create --name box --codebase app --layer=kept >/dev/null
ringfence create --name still --codebase app >/dev/null
ringfence exec still -- sh -c 'echo more >> readme'
ringfence stop still >/dev/null

code=0
(cd "$place/report" && HOME=$place/report "$tool" --config-file "$here/schemathesis.toml" run \
  "http://$address/v1/openapi.json" --header "Authorization: Bearer $(cat "$place/home/state/daemon/token")" \
  --max-time "$seconds" ${SCHEMATHESIS_SEED:+--seed "$SCHEMATHESIS_SEED"} --no-color --warnings off) || code=$?
if ! kill -0 "$daemon" 2>/dev/null; then
  echo "the daemon ended:"
  cat "$place/log"
  exit 1
fi
if grep -q 'panicked at' "$place/log"; then
  cat "$place/log"
  exit 1
fi
exit "$code"
