#!/bin/bash
# Disks on a web server, read-only, LUKS inside: basic authentication and cookies, http and https, nginx.
# QEMU's https believes the authorities of the host: this one gets another of the scenario's own, in a namespace.
if [ "$(id -u)" = 0 ] && [ -z "${VMWARD_NAMESPACE:-}" ]; then
    VMWARD_NAMESPACE=1 exec unshare --mount --propagation private bash "$0"
fi
. "$(dirname "$0")/../lib/storage.sh"
storage_begin "$PACKAGES_HTTP"

secret iscsi http-login "web-$(openssl rand -hex 12)"
secret volume files "$(openssl rand -hex 24)"
cookie=$(openssl rand -hex 12)
certificates "$WORK/pki"
mkdir "$WORK/www" "$WORK/tmp"
luks_image "$WORK/www/disk.luks" files
slow_image "$WORK/www/slow.luks" files
# Nobody writes through http: the pattern is there before.
for disk in disk slow; do
    qemu-io --object "secret,id=k,file=$WORK/right/files" -c "write -P 0x41 0 ${WRITTEN_MIB}M" >/dev/null \
        --image-opts "driver=luks,key-secret=k,file.driver=file,file.filename=$WORK/www/$disk.luks"
done
printf 'vm:%s\n' "$(openssl passwd -apr1 -stdin <"$WORK/right/http-login")" >"$WORK/htpasswd"
http=$(free_port) https=$(free_port)
cat >"$WORK/nginx.conf" <<CONF
pid $WORK/nginx.pid;
error_log $WORK/nginx.log;
daemon off;
worker_processes 1;
$([ "$(id -u)" != 0 ] || echo "user root;")
events { worker_connections 64; }
http {
  access_log $WORK/access.log;
  client_body_temp_path $WORK/tmp/b; proxy_temp_path $WORK/tmp/p; fastcgi_temp_path $WORK/tmp/f;
  uwsgi_temp_path $WORK/tmp/u; scgi_temp_path $WORK/tmp/s;
  server {
    listen 127.0.0.1:$http;
    listen 127.0.0.1:$https ssl;
    ssl_certificate $WORK/pki/server-cert.pem;
    ssl_certificate_key $WORK/pki/server-key.pem;
    root $WORK/www;
    location / { auth_basic vm; auth_basic_user_file $WORK/htpasswd; }
    location /cookie/ { alias $WORK/www/; if (\$cookie_session != $cookie) { return 403; } }
  }
}
CONF
server nginx -e "$WORK/nginx.log" -c "$WORK/nginx.conf"
until_true 20 port_answers "$http"
recorder "$WORK/wire" "$https"

login="<auth username='vm'><secret type='iscsi' usage='http-login'/></auth>"
# web PROTOCOL PATH PORT REST: a <source>.
web() { echo "<source protocol='$1' name='$2'><host name='localhost' port='$3'/>$4$(encrypted files)</source>"; }
cookies() { echo "<cookies><cookie name='session'>$1</cookie></cookies>"; }
guest() { linux_xml web1 "$(disk_xml vda network "$1" '<readonly/>')" >"$WORK/web1.xml"; }

guest "$(web http disk.luks "$http" "")"
refused "a start without a login" 77 'does not accept the user' run_guest "$WORK/web1.xml"
guest "$(web http none.luks "$http" "$login")"
refused "of a file that is not there" 66 'no such file' run_guest "$WORK/web1.xml"
guest "$(web http cookie/disk.luks "$http" "$(cookies wrong)")"
refused "with the wrong cookie" 77 "what the XML has as cookies is not what the server of the disk 'vda' accepts" run_guest "$WORK/web1.xml"
guest "$(web http disk.luks "$http" "$login")"
secret_wrong http-login
refused "with the wrong password" 77 "usage 'http-login' is not what the server of the disk 'vda' accepts" run_guest "$WORK/web1.xml"
secret_right http-login
secret_wrong files
refused "with the wrong passphrase" 77 "usage 'files' is not the passphrase of the disk 'vda'" run_guest "$WORK/web1.xml"
secret_right files
linux_xml web1 "$(disk_xml vda network "$(web http disk.luks "$http" "$login")")" >"$WORK/writable.xml"
refused "writable" 69 'read-only' run_guest "$WORK/writable.xml"

linux_start web1 "$WORK/web1.xml"
promise "a guest starts with a disk on it" guest_sees vda
promise "QEMU keeps no secret" keeps_only web1
promise "the guest reads what is there" guest_reads vda A
refused "and cannot write" 1 'not permitted|Read-only' guest_run 'dd if=/dev/zero of=/dev/vda count=1'

disk_xml vdb network "$(web http cookie/disk.luks "$http" "$(cookies "$cookie")")" '<readonly/>' >"$WORK/vdb.xml"
disk_xml vdc network "$(web https disk.luks "$RECORDED" "$login<ssl verify='no'/>")" '<readonly/>' >"$WORK/vdc.xml"
disk_xml vdd network "$(web https disk.luks "$RECORDED" "$login")" '<readonly/>' >"$WORK/vdd.xml"
disk_xml vde network "$(web http cookie/disk.luks "$http" "$(cookies wrong)")" '<readonly/>' >"$WORK/vde.xml"
secret_wrong http-login
not_attached "a second disk with the wrong password" 77 "usage 'http-login' is not what the server of the disk 'vdc' accepts" web1 "$WORK/vdc.xml"
secret_right http-login
not_attached "with the wrong cookie" 77 "cookies is not what the server of the disk 'vde' accepts" web1 "$WORK/vde.xml"
secret_wrong files
not_attached "with the wrong passphrase" 77 "usage 'files' is not the passphrase of the disk 'vdb'" web1 "$WORK/vdb.xml"
secret_right files
not_attached "from a server whose certificate nobody knows" 69 'certificate|SSL' web1 "$WORK/vdd.xml"
promise "with the right cookie it is plugged in" "$vmward" attach-device web1 "$WORK/vdb.xml"
promise "one is over https, unverified" "$vmward" attach-device web1 "$WORK/vdc.xml"
promise "QEMU keeps no secret of them" keeps_only web1
promise "the guest sees and reads both" eval 'guest_sees vdb && guest_sees vdc && guest_reads vdb A && guest_reads vdc A'
promise "one is taken out" "$vmward" detach-device web1 vdb
disk_xml vdf network "$(web http slow.luks "$http" "$login")" '<readonly/>' >"$WORK/vdf.xml"
promise "one with qemu-img's usual costs is plugged in" "$vmward" attach-device web1 "$WORK/vdf.xml"
unlocked "its key was derived by vmward" web1 vdf
promise "QEMU keeps no secret of it" keeps_only web1
# For the guest it has the name that was free again.
promise "the guest reads what is there" eval 'guest_sees vdb && guest_reads vdb A'
promise "the guest ends" guest_end web1

if [ -n "${VMWARD_NAMESPACE:-}" ]; then
    cat /etc/ssl/certs/ca-certificates.crt "$WORK/pki/ca-cert.pem" >"$WORK/authorities.crt"
    mount --bind "$WORK/authorities.crt" /etc/ssl/certs/ca-certificates.crt
    guest "$(web https disk.luks "$RECORDED" "$login")"
    linux_start web1 "$WORK/web1.xml"
    promise "with its authority known to the host, https is verified" guest_reads vda A
    promise "the guest ends" guest_end web1
else
    echo "skipped: https that is verified: only root can give the scenario authorities of its own"
fi

promise "curl gets the same bytes" eval \
    'curl -sf -u "vm:$(cat "$WORK/right/http-login")" "http://localhost:$http/disk.luks" | cmp - "$WORK/www/disk.luks"'
promise "the server was asked by QEMU with the login" grep -qE ' vm .*GET /disk.luks HTTP/1.1" 206' "$WORK/access.log"
promise "cryptsetup opens the image with the passphrase" cryptsetup open --test-passphrase --type luks1 \
    --key-file "$WORK/right/files" "$WORK/www/disk.luks"
promise "nothing of it is in the clear" unreadable "$WORK/www/disk.luks"
promise "nor, with https, the header and the login" absent -qaE "xts-plain64|$(printf 'vm:%s' "$(cat "$WORK/right/http-login")" | base64 -w0)" "$WORK/wire"
promise "where much went over" test "$(stat -c %s "$WORK/wire")" -gt 2000000
done_well
