# A guest that stays, for scenarios that look at it while it runs. To be sourced; needs scenario.sh. One per name.

# guest_start NAME XML [PREFIX...]: starts it, through a command that runs commands (setpriv ...), and waits until it
# runs. Its supervisor is $GUEST_PID; what it says is in NAME.log.
guest_start() {
    local name=$1 xml=$2 as_user=()
    shift 2
    [ $# != 0 ] || [ "$(id -u)" != 0 ] || as_user=(--user root)
    "$@" "$vmward" run "${as_user[@]}" "$xml" >"$WORK/$name.log" 2>&1 </dev/null &
    GUEST_PID=$!
    SERVERS+=($GUEST_PID)
    until "$@" "$vmward" list | has -E "$name.*running"; do
        kill -0 $GUEST_PID 2>/dev/null || { cat "$WORK/$name.log"; return 1; }
        sleep 0.1
    done
}

# guest_end NAME [PREFIX...]: ends it at once.
guest_end() {
    local name=$1
    shift
    "$@" "$vmward" destroy "$name" && ends_within 20 "$GUEST_PID"
}

# hex: what comes on stdin, in hexadecimal, as scan.pl and memory.py take it.
hex() { od -An -v -tx1 | tr -d ' \n'; echo; }

# volume_xml PATH SECRET: libvirt's XML of a volume; SECRET is what goes into its <encryption>.
volume_xml() {
    cat <<XML
<volume>
  <name>$(basename "$1")</name>
  <capacity unit='MiB'>8</capacity>
  <target>
    <path>$1</path>
    <format type='raw'/>
    <encryption format='luks'>$2</encryption>
  </target>
</volume>
XML
}
