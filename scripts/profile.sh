#!/usr/bin/env bash
# Where the time of a cold start goes:
#   scripts/profile.sh [-b|--binary PATH] [-o|--output DIR] [-n|--runs N] [-- COMMAND...]
# Writes to DIR (default ./profile): trace.json and trace.html, the steps of one start; strace.txt, calls by
# their number and time; stat.txt, context switches and page faults of N starts; perf.data and flame.txt,
# folded stacks, where perf may sample. What cannot be had here is said and left out.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
binary= output=./profile runs=50
while [ $# -gt 0 ]; do
  case $1 in
    -b|--binary) binary=${2:?$1 needs a path}; shift ;;
    -o|--output) output=${2:?$1 needs a directory}; shift ;;
    -n|--runs) runs=${2:?$1 needs a number}; shift ;;
    -h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --) shift; break ;;
    *) echo "profile.sh: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
  esac
  shift
done
[ $# -gt 0 ] || set -- true
built() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1; }
if [ -z "$binary" ]; then
  binary=$(cd "$root" && cargo build -q --release -p ringfence-cli --bin ringfence --message-format=json | built)
fi
mkdir -p "$output"
start=("$binary" run --no-config --)

"$binary" run --no-config --trace-startup "$output/trace.json" -- "$@" >/dev/null
"$binary" bench trace "$output/trace.json" "$output/trace.html"
echo "trace: $output/trace.html"

if ! command -v strace >/dev/null; then
  echo "skipped: strace is not here"
elif strace -f -c -o "$output/strace.txt" "${start[@]}" "$@" >/dev/null 2>"$output/error"; then
  echo "calls: $output/strace.txt"
else
  echo "skipped: strace cannot follow a start here: $(tail -n 1 "$output/error")"
fi

if ! command -v perf >/dev/null; then
  echo "skipped: perf is not here"
else
  if perf stat -e context-switches,cpu-migrations,page-faults,task-clock -r "$runs" -o "$output/stat.txt" \
      -- "${start[@]}" "$@" >/dev/null 2>"$output/error"; then
    echo "counters: $output/stat.txt"
  else
    echo "skipped: perf stat counts nothing here: $(tail -n 1 "$output/error")"
  fi
  if perf record -q -F 9973 -g -e cpu-clock -o "$output/perf.data" -- \
      bash -c 'n=$1; shift; for ((i = 0; i < n; i++)); do "$@" >/dev/null; done' bash "$runs" "${start[@]}" "$@" \
      >/dev/null 2>"$output/error"; then
    # One line for each stack, as flame graphs are made of: names from the outermost on, and how often.
    perf script -i "$output/perf.data" -F comm,ip,sym 2>/dev/null | awk '
      function flush() { if (name != "") { count[name stack]++ } name = ""; stack = "" }
      /^[^ \t]/ { flush(); name = $1; next }
      NF == 0 { flush(); next }
      { sym = $2 == "" ? "?" : $2; stack = ";" sym stack }
      END { flush(); for (s in count) print s, count[s] }' | sort >"$output/flame.txt"
    echo "stacks: $output/flame.txt"
  else
    echo "skipped: perf record may not sample here: $(tail -n 1 "$output/error")"
  fi
fi
rm -f "$output/error"
