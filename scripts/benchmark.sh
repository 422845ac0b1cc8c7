#!/usr/bin/env bash
# Measures ringfence and every other sandbox that is here, side by side, and draws the report:
#   scripts/benchmark.sh [-b|--binary PATH] [-o|--output DIR] [-n|--runs N] [-q|--quick] [--network]
#                        [--peers NAME,...|none] [--install] [--budget SECONDS] [--allow-debug] [--write]
# Results go to DIR (default ./benchmarks): one JSON document for each part, merged.json with everything,
# hyperfine's own JSON where hyperfine is here, report.html and report.md. Without --binary the release
# build of this tree is made first. A case that takes longer than --budget (20 s) has fewer samples than the
# others. --write puts the headline, the peers and what others publish into docs/benchmarks.md. On a
# terminal it says how far it is. --install (root, Debian or Ubuntu) first installs what is missing of the peers that
# the distribution has, ripgrep and hyperfine; others are installed as bench/peers says. As an ordinary user the peers that need root are listed as absent.
# On a quiet machine, please.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
typed="scripts/benchmark.sh"
binary= output=./benchmarks network= peers= quick= debug= write= install=
more=()
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; }
while [ $# -gt 0 ]; do
  case $1 in
    # What is recorded as typed has no paths in it: they are of this machine alone.
    -b|--binary) binary=${2:?$1 needs a path}; shift 2; continue ;;
    -o|--output) output=${2:?$1 needs a directory}; shift 2; continue ;;
    -n|--runs) more+=(--runs "${2:?$1 needs a number}"); typed+=" $1"; shift ;;
    --budget) more+=(--budget "${2:?$1 needs seconds}"); typed+=" $1"; shift ;;
    --peers) peers=${2:?$1 needs names}; typed+=" $1"; shift ;;
    -q|--quick) quick=1 ;;
    --network) network=1 ;;
    --install) install=1 ;;
    --allow-debug) debug=1 ;;
    --write) write=1 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "benchmark.sh: unknown argument $1 (--help lists them)" >&2; exit 2 ;;
  esac
  typed+=" $1"
  shift
done
docs=$root/docs/benchmarks.md
if [ -n "$write" ] && ! [ -w "$docs" ]; then
  echo "benchmark.sh: --write: $docs cannot be written" >&2
  exit 1
fi
if [ -n "$install" ]; then
  declare -A package=([bwrap]=bubblewrap [firejail]=firejail [runc]=runc [systemd-nspawn]=systemd-container
    [unshare]=util-linux [rg]=ripgrep [hyperfine]=hyperfine)
  missing=()
  for program in "${!package[@]}"; do
    command -v "$program" >/dev/null || missing+=("${package[$program]}")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
      echo "benchmark.sh: --install needs root and apt-get; missing: ${missing[*]}" >&2
      exit 1
    fi
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null
  fi
fi
built() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1; }
if [ -z "$binary" ]; then
  binary=$(cd "$root" && cargo build -q --release -p ringfence-cli --bin ringfence --message-format=json | built)
fi
mkdir -p "$output"
common=(--output "$output" --binary "$binary" --as "$typed" "${more[@]}")
[ -z "$peers" ] || common+=(--peers "$peers")
[ -z "$quick" ] || common+=(--quick)
[ -z "$debug" ] || common+=(--allow-debug)
if commit=$(git -C "$root" rev-parse HEAD 2>/dev/null); then common+=(--commit "$commit"); fi
hyperfine=()
# A second opinion, which little work does not need.
if [ -z "$quick" ] && command -v hyperfine >/dev/null; then hyperfine=(--hyperfine); fi
# Silent where nobody looks on, unless it fails.
measured() {
  if [ -t 2 ]; then "$binary" "$@"; return; fi
  local said
  { said=$("$binary" "$@" 2>&1 >&3 3>&-); } 3>&1 || { printf '%s\n' "$said" >&2; return 1; }
}
# Of another binary they would not go together with these.
for part in cold warm server files density network merged; do rm -f "$output/$part.json"; done
parts=(cold warm server files density)
[ -z "$network" ] || parts+=(network)
number=0 failed=0
for part in "${parts[@]}"; do
  number=$((number + 1))
  [ ! -t 2 ] || echo "$part ($number of ${#parts[@]}), $((SECONDS / 60)) min so far" >&2
  asked=("${common[@]}")
  [ "$part" != cold ] || asked+=("${hyperfine[@]}")
  # What was measured before is kept, and there is a report of the rest.
  if ! measured bench "$part" "${asked[@]}" >"$output/$part.md"; then
    echo "benchmark.sh: $part was not measured" >&2
    rm -f "$output/$part.md"
    failed=1
  fi
done
"$binary" bench merge "$output" >"$output/merged.md"
"$binary" bench report "$output" >/dev/null
if [ -n "$write" ]; then
  "$binary" bench merge --headline "$output" >"$output/headline.md"
  sed -i -e '/<!-- measured -->/,/<!-- end of measured -->/{//!d}' "$docs"
  sed -i -e "/<!-- measured -->/r $output/headline.md" "$docs"
fi
# The headline, part by part.
awk '/^\| Benchmark \| Unsandboxed/ { on = 1 } on && !/^\|/ { on = 0 } on' "$output/merged.md"
echo "results: $output/merged.json, $output/report.html"
exit "$failed"
