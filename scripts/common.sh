# Sourced by the scripts: where things are, and how this machine gets what is missing.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export QMPSNAP_CACHE=${QMPSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qmpsnap}
mkdir -p "$QMPSNAP_CACHE"
unset PYTHONDONTWRITEBYTECODE           # else every run would compile the package and the tests again

say() { printf '== %s\n' "$*" >&2; }

need() {                                 # need WHAT...: end, for only the user can install it
    printf 'qmpsnap needs here: %s\n' "$*" >&2
    exit 3
}

have() { command -v "$@" > /dev/null && [ "$(command -v "$@" | wc -l)" = $# ]; }

is_debian() { (. /etc/os-release && [ "$ID" = debian ]) 2> /dev/null && have apt-get dpkg-deb; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

can_be_root() { [ "$(id -u)" = 0 ] || have sudo; }

quietly() {                              # what COMMAND... prints is shown only if it fails
    local log=$QMPSNAP_CACHE/log.$BASHPID status=0
    "$@" > "$log" 2>&1 || status=$?
    [ $status = 0 ] || cat "$log" >&2
    rm -f "$log"
    return $status
}

with_lists() {                           # with_lists COMMAND...: again with new package lists if it fails
    ! "$@" > /dev/null 2>&1 || return 0
    can_be_root || need "root, or sudo, to renew apt's package lists"
    quietly as_root apt-get -qq -o DPkg::Lock::Timeout=300 update
    quietly "$@"
}

apt_install() {
    can_be_root || need "root, or sudo, to install the packages $*"
    say "installing $*"
    with_lists as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq --yes --no-install-recommends \
        -o DPkg::Lock::Timeout=300 install "$@"
}

debian_mirror() {                        # the mirror that apt already names for Debian itself
    apt-get indextargets --format '$(ORIGIN)|$(SITE)|$(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian|[^|]*|\(.*\/debian\)\/\{0,1\}$/\1/p' | sort -u | head -n 1
}
