# shellcheck shell=bash
# Sourced: makes and enters a virtual environment that has a requirements file.
#
#   source launch/environment.sh REQUIREMENTS FOLDER
#
# Installs only when the requirements changed since the last time.
requirements=$1 folder=$2
python=${PYTHON:-}
if [[ -z $python ]]; then
  for candidate in python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
if [[ -z $python ]]; then
  echo 'Error: no Python 3.11 or 3.12 found; install one, or name it with PYTHON=...' >&2
  exit 1
fi
[[ -x $folder/bin/python ]] || "$python" -m venv "$folder"
# shellcheck disable=SC1091
source "$folder/bin/activate"
stamp=$folder/$(basename "$requirements").sum
sum=$(cat requirements*.txt | sha256sum)
if [[ ! -f $stamp || $(cat "$stamp") != "$sum" ]]; then
  echo "Installing $requirements into $folder (once) ..." >&2
  python -m pip install --quiet --upgrade pip
  python -m pip install --quiet -r "$requirements"
  echo "$sum" > "$stamp"
fi
