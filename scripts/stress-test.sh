#!/usr/bin/env bash
# Many commands at a time, each in a sandbox of its own; every one of them has to succeed:
#   scripts/stress-test.sh COMMANDS CONCURRENT
# Results go to benchmark-results/stress_YYYYMMDD_HHMMSS.json and ..._details.json.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  ''|-h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
esac
number='^[1-9][0-9]*$'
[[ $1 =~ $number && ${2:-50} =~ $number ]] || { echo "stress-test.sh: two numbers" >&2; exit 2; }
STRESS_VM_COUNT=$1 STRESS_MAX_CONCURRENT=${2:-50} \
  cargo test -q -p ringfence-cli --test stress_test -- --nocapture --ignored
