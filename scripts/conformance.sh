#!/usr/bin/env bash
# Runs pjdfstest and fsx on the exact view: as root on a mount outside a sandbox, where every id exists,
# and, as an ordinary user, inside a sandbox, where there is one (pjdfstest skips what needs more; a root
# without rights, which a sandbox has too, it takes for one with all). Then in a layer, as a caller who is
# root and as an ordinary user. Beside them the bare file system and, for the layer, a plain overlay of
# the same kind that ringfence has no part in: what fails there too is overlayfs's own.
#   scripts/conformance.sh [--seeds N] [--operations N] [--only mount|sandbox|layer]
# Anybody but root tries the sandbox and the layer only. The suites are installed from crates.io into
# $CONFORMANCE_TOOLS (default: a directory below the target directory) and run in temporary directories,
# which are removed. $RINGFENCE_BIN is tried instead of a debug build where it is set. Exits with 1 where a
# suite fails that does not fail on the bare file system or, in a layer, on the plain overlay.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=3 operations=20000 only=
while [ $# -gt 0 ]; do
  case $1 in
    --seeds) seeds=$2; shift ;;
    --operations) operations=$2; shift ;;
    --only) only=$2; shift ;;
    *) echo "usage: scripts/conformance.sh [--seeds N] [--operations N] [--only mount|sandbox|layer]" >&2; exit 2 ;;
  esac
  shift
done
target=${CARGO_TARGET_DIR:-target}
tools=${CONFORMANCE_TOOLS:-$target/conformance}
for suite in pjdfstest@0.2.2 fsx@0.3.2; do
  [ -x "$tools/bin/${suite%@*}" ] || cargo install -q --locked --root "$tools" "$suite"
done
[ -n "${RINGFENCE_BIN:-}" ] || cargo build -q -p ringfence-cli --bin ringfence
cargo build -q -p ringfence-layers --example view

work=$(mktemp -d "${TMPDIR:-/tmp}/conformance.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/bin" "$work/home"
# Where every user reaches them.
cp "$tools/bin/pjdfstest" "$tools/bin/fsx" "${RINGFENCE_BIN:-$target/debug/ringfence}" "$target/debug/examples/view" "$work/bin"
cat >"$work/bin/pjdfstest.toml" <<'END'
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
END
cat >"$work/bin/suites" <<'END'
# suites DIRECTORY SEEDS OPERATIONS: the last line of each
cd "$1" && here=${0%/*}
"$here/pjdfstest" -c "$here/pjdfstest.toml" -p "$1" 2>&1 | sed -n 's/^Summary: /pjdfstest: /p; s/^\([a-z_0-9:]*\) .*FAILED$/  failed: \1/p'
seed=1
while [ "$seed" -le "$2" ]; do
  "$here/fsx" -q -N "$3" -S "$seed" -P /tmp fsx.data >fsx.log 2>&1 && last=passed || last="FAILED: $(tail -n 3 fsx.log)"
  echo "fsx: seed $seed, $3 operations: $last"
  seed=$((seed + 1))
done
END
cat >"$work/bin/mounted" <<'END'
# mounted MORE...: the suites on a view of a directory, in a mount namespace of its own
here=${0%/*} && work=${here%/*} && real=$work/real && at=$work/at
mkdir "$real" "$at" && chmod 755 "$real" "$at" && mkfifo "$work/end"
"$here/view" "$real" "$at" - 0 $1 <"$work/end" >"$work/ready" 2>&1 & server=$!
exec 9>"$work/end"
until grep -q ready "$work/ready"; do kill -0 "$server" || { cat "$work/ready"; exit 1; }; sleep 0.05; done
sh "$here/suites" "$at" "$2" "$3"
exec 9>&-
wait "$server"; umount "$at"; rm -rf "$real" "$at" "$work/end" "$work/ready"
END
# An ordinary user gets a node of the device that it may open.
cat >"$work/bin/ordinary" <<'END'
d=$(mktemp -d) && mount -t tmpfs -o mode=755 private "$d" && mknod -m 666 "$d/fuse" c 10 229 &&
  mount --bind "$d/fuse" /dev/fuse && umount -l "$d" && rmdir "$d" &&
  exec setpriv --reuid 54321 --regid 54321 --clear-groups -- "$@"
END
cat >"$work/bin/overlaid" <<'END'
# overlaid DIRECTORY COMMAND...: the suites on a plain overlay below it, in a mount namespace of its own
d=$1 && shift && mkdir "$d/lower" "$d/upper" "$d/work" "$d/at" && chmod 755 "$d/upper" &&
  mount -t overlay overlay -o "userxattr,lowerdir=$d/lower,upperdir=$d/upper,workdir=$d/work" "$d/at" && exec "$@"
END
status=0
run() { # TITLE COMMAND...
  echo "== $1"
  shift
  "$@" | tee "$work/out" || status=1
  ! grep -q 'failed: \|FAILED' "$work/out" || status=1
  grep -q '^pjdfstest: 0 failed' "$work/out" || status=1
}
inside() { # PREFIX...: the suites in a workspace, served exactly
  rm -rf "$work/project" && mkdir "$work/project"
  [ "$#" = 0 ] || chown -R 54321:54321 "$work/project" "$work/home"
  (cd "$work/project" && HOME=$work/home "$@" "$work/bin/ringfence" run --exact --no-config \
    --lift guard --lift secret -r "$work/bin" -- /bin/sh "$work/bin/suites" "$work/project" "$seeds" "$operations")
}
bare() {
  mkdir "$work/bare"
  sh "$work/bin/suites" "$work/bare" 1 "$operations"
  rm -rf "$work/bare"
}
layer() { # PREFIX...: the suites in a layer over a workspace
  rm -rf "$work/project" && mkdir "$work/project" && : >"$work/project/of-the-host"
  [ "$#" = 0 ] || chown -R 54321:54321 "$work/project" "$work/home"
  (cd "$work/project" && HOME=$work/home "$@" "$work/bin/ringfence" run --layer conformance --no-config \
    --lift guard --lift secret -r "$work/bin" -- /bin/sh "$work/bin/suites" "$work/project" "$seeds" "$operations")
  (cd "$work/project" && HOME=$work/home "$@" "$work/bin/ringfence" discard conformance >/dev/null)
  [ "$(ls -A "$work/project")" = of-the-host ] || { echo "FAILED: the real directory was changed"; return 1; }
}
plain() { # PREFIX...: the suites on an overlay without ringfence
  rm -rf "$work/plain" && mkdir "$work/plain"
  [ "$#" = 0 ] || chown 54321:54321 "$work/plain"
  if [ "$(id -u)" = 0 ] && [ "$#" = 0 ]; then
    # A root without rights, and the only one there is: what a caller who is root becomes inside.
    unshare --user --map-root-user --mount --propagation private sh "$work/bin/overlaid" "$work/plain" \
      setpriv --bounding-set -all --inh-caps -all -- \
      sh "$work/bin/suites" "$work/plain/at" "$seeds" "$operations"
  else
    # An overlay takes rights in a namespace, the suites are to have none.
    local id && id=$("$@" id -u)
    "$@" unshare --user --map-root-user --mount --propagation private sh "$work/bin/overlaid" "$work/plain" \
      unshare --user --map-user="$id" --map-group="$id" sh "$work/bin/suites" "$work/plain/at" "$seeds" "$operations"
  fi
  rm -rf "$work/plain"
}
# For a caller who is root the filter answers a change of owner as done (nobody else exists inside), so
# that package managers go on: what expects an error of chown does not get one, in a layer or not.
owners='^  failed: chown::'
compared() { # TITLE PREFIX...: a layer; what fails on a plain overlay too is told, and no failure
  local title=$1 && shift
  [ "$#" = 0 ] && [ "$(id -u)" = 0 ] || owners='^$'
  echo "== a plain overlay $title"
  plain "$@" | tee "$work/control"
  echo "== a layer $title"
  layer "$@" | tee "$work/out" || status=1
  grep -q '^pjdfstest: ' "$work/out" || status=1
  ! grep 'failed: \|FAILED' "$work/out" | grep -vxFf "$work/control" | grep -v "$owners" || status=1
}
run "the bare file system" bare
if [ "$(id -u)" = 0 ] && [ "$only" != sandbox ] && [ "$only" != layer ]; then
  for more in "" plain; do
    run "exact view, mounted by root${more:+, no passthrough}" \
      unshare --mount --propagation private sh "$work/bin/mounted" "$more" "$seeds" "$operations"
  done
fi
if [ "$only" != mount ] && [ "$only" != sandbox ]; then
  if [ "$(id -u)" = 0 ]; then
    compared "as root"
    compared "as an ordinary user" setpriv --reuid 54321 --regid 54321 --clear-groups --
  else
    compared "as an ordinary user"
  fi
fi
if [ "$only" != mount ] && [ "$only" != layer ]; then
  if [ "$(id -u)" = 0 ]; then
    run "exact view, inside a sandbox, as an ordinary user" \
      inside unshare --mount --propagation private sh "$work/bin/ordinary"
  else
    run "exact view, inside a sandbox" inside
  fi
fi
exit "$status"
