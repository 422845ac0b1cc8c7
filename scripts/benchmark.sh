#!/usr/bin/env bash
# Measures ringfence and every other sandbox that is here, side by side, and draws the report:
#   scripts/benchmark.sh [-b|--binary PATH] [-o|--output DIR] [-n|--runs N] [-q|--quick] [--network]
#                        [--peers NAME,...|none] [--allow-debug]
# Results go to DIR (default ./benchmarks): one JSON document for each part, merged.json with everything,
# hyperfine's own JSON where hyperfine is here, report.html and report.md. Without --binary the release
# build of this tree is made first. On a quiet machine, please.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
binary= output=./benchmarks network= peers= quick= debug=
runs=()
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    -b|--binary) binary=${2:?$1 needs a path}; shift ;;
    -o|--output) output=${2:?$1 needs a directory}; shift ;;
    -n|--runs) runs=(--runs "${2:?$1 needs a number}"); shift ;;
    -q|--quick) quick=1 ;;
    --network) network=1 ;;
    --peers) peers=${2:?$1 needs names}; shift ;;
    --allow-debug) debug=1 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "benchmark.sh: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
  esac
  shift
done
built() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1; }
if [ -z "$binary" ]; then
  binary=$(cd "$root" && cargo build -q --release -p ringfence-cli --bin ringfence --message-format=json | built)
fi
mkdir -p "$output"
common=(--output "$output" --binary "$binary" "${runs[@]}")
[ -z "$peers" ] || common+=(--peers "$peers")
[ -z "$quick" ] || common+=(--quick)
[ -z "$debug" ] || common+=(--allow-debug)
if commit=$(git -C "$root" rev-parse HEAD 2>/dev/null); then common+=(--commit "$commit"); fi
hyperfine=()
if command -v hyperfine >/dev/null; then hyperfine=(--hyperfine); fi
parts=(cold warm files density)
[ -z "$network" ] || parts+=(network)
for part in "${parts[@]}"; do
  more=()
  [ "$part" != cold ] || more=("${hyperfine[@]}")
  "$binary" bench "$part" "${common[@]}" "${more[@]}" >"$output/$part.md"
done
"$binary" bench merge "$output" >"$output/merged.md"
"$binary" bench report "$output" >/dev/null
# The headline, part by part.
awk '/^\| Benchmark \| Unsandboxed/ { on = 1 } on && !/^\|/ { on = 0 } on' "$output/merged.md"
echo "results: $output/merged.json, $output/report.html"
