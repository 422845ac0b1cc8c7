#!/usr/bin/env bash
# Shows that `ringfence bench compare` finds a regression that was planted, and says nothing of two that are
# the same. Nothing is built: three wrappers start the same ringfence, one of them after a busy loop that
# takes a part of a cold start as it is measured here.
#   scripts/planted.sh [-b|--binary PATH] [-p|--percent N] [-n|--runs N] [-o|--output DIR] [--allow-debug]
# 5 percent and 300 rounds, if not said otherwise; results go to DIR (default ./benchmarks/planted). It ends
# with 0 where the planted one was found and the other not. On a quiet machine, please; where that is not to
# be had, `compare` says at its end how many rounds are needed.
set -euo pipefail
binary= percent=5 runs=300 output=./benchmarks/planted debug=()
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    -b|--binary) binary=${2:?$1 needs a path}; shift ;;
    -p|--percent) percent=${2:?$1 needs a number}; shift ;;
    -n|--runs) runs=${2:?$1 needs a number}; shift ;;
    -o|--output) output=${2:?$1 needs a directory}; shift ;;
    --allow-debug) debug=(--allow-debug) ;;
    -h|--help) usage; exit 0 ;;
    *) echo "planted.sh: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
  esac
  shift
done
binary=$(realpath "${binary:-$(command -v ringfence)}")
mkdir -p "$output/bin"
output=$(realpath "$output")
loop='while [ $i -gt 0 ]; do i=$((i-1)); done'
wrapper() {
  printf '#!/bin/sh\n# %s\ni=%s\n%s\nexec %q "$@"\n' "$1" "$2" "$loop" "$binary" >"$output/bin/$1"
  chmod 755 "$output/bin/$1"
}
measure() {
  local name=$1
  shift
  "$binary" bench cold --only true --peers none --output "$output/$name" "${debug[@]}" "$@" \
    >"$output/$name.md" 2>"$output/log" || { cat "$output/log" >&2; exit 125; }
}
# Microseconds that a round of the loop takes: the least of some, without the shell's own start.
took() {
  local least=999999999 begin end
  for _ in 1 2 3 4 5 6 7; do
    begin=$(date +%s%N)
    /bin/sh -c "i=$1; $loop"
    end=$(date +%s%N)
    [ $((end - begin)) -ge "$least" ] || least=$((end - begin))
  done
  echo "$least"
}
wrapper plain 0
wrapper again 0
measure start --runs 30 --binary "$output/bin/plain"
start=$(awk '/"name": "ringfence",/ { on = 1 } on && /"p50":/ { gsub(/[^0-9.]/, "", $2); print $2; exit }' \
  "$output/start/cold.json")
rounds=200000
many=$(took $rounds) none=$(took 0)
count=$(awk -v us="$start" -v percent="$percent" -v ns=$((many - none)) -v n=$rounds \
  'BEGIN { printf "%d", us * 1000 * percent / 100 / (ns / n) }')
wrapper slower "$count"
echo "a start takes $start us; $percent % of it are $count rounds of a busy loop"
measure planted --runs "$runs" --binary "$output/bin/slower" --against "$output/bin/plain"
measure same --runs "$runs" --binary "$output/bin/again" --against "$output/bin/plain"
compared() { "$binary" bench compare "$output/$1/against/cold.json" "$output/$1/cold.json"; }
status=0
echo "with $percent % planted:"
found=0
compared planted || found=$?
[ "$found" = 1 ] || { echo "planted.sh: it was not found (exit code $found)" >&2; status=1; }
echo "the same:"
found=0
compared same || found=$?
[ "$found" = 0 ] || { echo "planted.sh: what is the same is not (exit code $found)" >&2; status=1; }
exit "$status"
