#!/usr/bin/env bash
# Time to first token and quality of `--kv-sharing span` beside `prefix`, on workloads w1 (retrieved passages in another order) and
# w2 (one document behind another question). Answers with sharing off are the reference for quality.
#
# usage: run_w1_w2.sh WORKLOADS_PY DATA_DIR OUT_DIR
#   WORKLOADS_PY  generator of the workloads: python3 WORKLOADS_PY DATA_DIR w1 GROUPS prints one request a line
#   OUT_DIR       gets the workloads, one JSON report a run, the servers' logs, and the table w1_w2.md
# environment:
#   KVSHARE (target/release/kvshare), MODEL (the default model), GROUPS_PER_WORKLOAD (10), CONCURRENCY (1), THREADS (2),
#   KV_CACHE_MEMORY (2GiB)
set -euo pipefail

[[ $# -eq 3 ]] || { sed -n '2,10p' "$0" >&2; exit 2; }
generator=$1 data=$2 out=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
kvshare=${KVSHARE:-$root/target/release/kvshare}
model=${MODEL:-} num_groups=${GROUPS_PER_WORKLOAD:-10} concurrency=${CONCURRENCY:-1} threads=${THREADS:-2}
kv_cache_memory=${KV_CACHE_MEMORY:-2GiB}
workloads=(w1 w2)
mkdir -p "$out"
kvshare=$(realpath "$kvshare") out=$(realpath "$out")

server=
stop_server() {
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" || true
        server=
    fi
}
trap stop_server EXIT

# start_server MODE LOG: sets `server` and `url`, returns when it is ready.
start_server() {
    local mode=$1 log=$2 port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    "$kvshare" serve ${model:+--model "$model"} --host 127.0.0.1 --port "$port" --kv-sharing "$mode" --threads "$threads" \
        --kv-cache-memory "$kv_cache_memory" >"$log" 2>&1 &
    server=$!
    until python3 -c "import urllib.request; urllib.request.urlopen('$url/health/ready', timeout=2)" 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || { echo "error: the server has ended:" >&2; tail -n 5 "$log" >&2; exit 1; }
        sleep 0.2
    done
}

for workload in "${workloads[@]}"; do
    python3 "$generator" "$data" "$workload" "$num_groups" >"$out/$workload.jsonl"
    for mode in off prefix span; do
        echo "== $workload, --kv-sharing $mode: $(wc -l <"$out/$workload.jsonl") requests" >&2
        start_server "$mode" "$out/$workload.$mode.log"
        "$kvshare" bench serve --url "$url" --workload "$out/$workload.jsonl" --concurrency "$concurrency" \
            --kv-sharing "$mode" --json "$out/$workload.$mode.json" >"$out/$workload.$mode.txt"
        stop_server
    done
done

# compare TITLE A B: B against A, both named by mode.
compare() {
    echo "### $1"
    for workload in "${workloads[@]}"; do
        printf '\n```text\n'
        # From inside the folder, so that the table names files and not where they lay.
        (cd "$out" && "$kvshare" bench compare "$workload.$2.json" "$workload.$3.json")
        printf '```\n'
    done
    echo
}

{
    echo "# Span reuse on w1 and w2"
    echo
    echo "Made by \`benches/serve/run_w1_w2.sh\`: model ${model:-smollm2-135m-instruct}, $num_groups groups a workload," \
        "concurrency $concurrency, $threads threads, KV pool $kv_cache_memory, greedy," \
        "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)," \
        "commit $(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo none)."
    echo
    compare "Speed: span against prefix" prefix span
    compare "Quality: span against full recomputation" off span
    compare "Control: prefix against full recomputation (exact, so differences are those of rounding)" off prefix
    for workload in "${workloads[@]}"; do
        for mode in prefix span; do
            printf '### %s, %s\n\n```text\n' "$workload" "$mode"
            cat "$out/$workload.$mode.txt"
            printf '```\n\n'
        done
    done
} >"$out/w1_w2.md"
cat "$out/w1_w2.md"
