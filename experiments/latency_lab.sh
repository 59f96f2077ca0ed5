#!/usr/bin/env bash
# From an empty device to a validated predictor of this machine, by three runtimes. See
# docs/latency-runtimes.md. Killed, the same command goes on.
#
#     experiments/latency_lab.sh FOLDER [CORE]
#
# The environment may say otherwise: NETWORK, RUNTIMES, MINUTES for each, EDITED networks to learn
# from and CHECKED ones to check on, PROFILE for more settings of `nas profile`, NAS for the command.
set -euo pipefail
folder=${1:?usage: experiments/latency_lab.sh FOLDER [CORE]} core=${2:-0}
network=${NETWORK:-experiments/emoji/pipeline}
nas=${NAS:-.venv/bin/nas}

# What could not be measured well enough is named by `nas profile`, which then returns 1; the model
# is fitted to the rest.
profile() { $nas profile "$network" --cores "$core" ${PROFILE:-} "$@" || [ $? = 1 ]; }

for runtime in ${RUNTIMES:-xla onnxruntime litert}; do
    file=$folder/$runtime
    profile --runtime "$runtime" --edited "${EDITED:-16}" --minutes "${MINUTES:-8}" \
        --out "$file.json"
    $nas latency fit "$file.json" --out "$file"
    profile --runtime "$runtime" --edited "${CHECKED:-12}" --seed 1 --blocks 0 \
        --beside "$file.json" --out "$file-held-out.json"
    $nas latency check "$file" "$file-held-out.json" --without "$file.json"
    $nas latency predict "$file" "$network"
done
