#!/usr/bin/env bash
# Benchmark on a GPU machine in half an hour: prepare here, transfer in slices, measure there in few calls.
#
#   gpu_run.sh prepare [PART...]         here: models wheels kit calls (default: all; also: rtx).
#                                        Writes .gpu/CALLS.md: what to transfer and what to run
#   gpu_run.sh receive SLICE...          there, in any order
#   gpu_run.sh measure STAGE [MODELS]    there: torch, trt8, ort or rtx; results go to $OUT
#   gpu_run.sh report FILE.json...       here: merge the results into benchmarks/results
#
# Here: PYTHON is the interpreter (python3), MODELS are the models to prepare (base,demo), GPU_PYTHON is
# the version of Python there (3.12), and TRT_KIT is a folder with pack_trt.sh, which packs TensorRT 8.6
# and a Python for it. There: GPU_HOME is the folder for received files, and no step starts after
# CALL_SECONDS (540).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
home=${GPU_HOME:-${TMPDIR:-/tmp}/mwa-gpu}

pack_models() {  # FOLDER MAJOR PRECISIONS
  $python benchmarks/gpu.py --stages prepare --tensorrt "$2" --precisions "$3" \
    --models "${MODELS:-base,demo}" --work ".gpu/work-$1"
  rm -rf ".gpu/$1"
  $python benchmarks/gpu_pack.py ".gpu/work-$1" ".gpu/$1"
  $python benchmarks/gpu_carry.py slice ".gpu/$1" .gpu/slices
}

pack_wheels() {  # FOLDER REQUIREMENT...
  local folder=.gpu/$1; shift
  rm -rf "$folder"
  $python -m pip install --quiet --no-deps --no-compile --only-binary=:all: --target "$folder" \
    --implementation cp --python-version "${GPU_PYTHON:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "$@"
  $python benchmarks/gpu_carry.py slice "$folder" .gpu/slices
}

prepare() {
  mkdir -p .gpu
  [ $# -gt 0 ] || set -- models wheels kit calls
  for part in "$@"; do
    echo "prepare $part"
    case $part in
      models) pack_models models 8 float16,int8 ;;
      wheels) pack_wheels site torchscale==0.3.0; pack_wheels ort onnxruntime-gpu==1.29.0 ;;
      kit) bash "${TRT_KIT:?set it to the folder that has pack_trt.sh}/pack_trt.sh" .gpu/trt ;;
      rtx) pack_models models-rtx 11 float16,int8,float8
           pack_wheels rtx tensorrt-rtx-cu12-libs==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116 ;;
      calls) $python benchmarks/gpu_calls.py .gpu ;;
      *) usage ;;
    esac
  done
}

receive() {
  for slice in "$@"; do python3 benchmarks/gpu_carry.py receive "$slice" "$home"; done
}

measure() {
  local stage=$1 models=${2:-base,demo} run=python3 path=$PWD work=models options=
  : "${OUT:?set it to the folder that comes back}"
  case $stage in
    torch) path+=:$home/site ;;
    ort) path+=:$home/ort ;;
    trt8)
      stage=trt run=trtpy
      [ -f "$home/trt/READY" ] || die "TensorRT 8.6 is not here yet: receive its slices first"
      . "$home/trt/activate_trt.sh" ;;
    rtx)
      stage=trt work=models-rtx path+=:$home/rtx options=--rtx
      export LD_LIBRARY_PATH=$home/rtx/tensorrt_rtx_libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} ;;
    *) usage ;;
  esac
  for model in ${models//,/ }; do
    [ -d "$home/$work/$model" ] || die "$home/$work/$model: is not here yet: receive its slices first"
  done
  export PYTHONPATH=$path TRT_PYTHONPATH=$path PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
  $run benchmarks/gpu.py --stages "$stage" --models "$models" --work "$home/$work" $options \
    --rounds 5 --builder-level 3 --live --out-folder "$OUT" --seconds "${CALL_SECONDS:-540}" \
    2>&1 | tee "$OUT/$1.log"
}

report() {
  $python benchmarks/gpu.py --stages report --work .gpu/none --merge "$@"
}

die() { echo "$*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

case ${1:-} in
  prepare|receive|measure|report) command=$1; shift; [ $# -gt 0 ] || [ "$command" = prepare ] || usage; "$command" "$@" ;;
  *) usage ;;
esac
