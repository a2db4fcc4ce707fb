#!/bin/bash
# The file keystore: its values are read by age as well.
. "$(dirname "$0")/../lib/scenario.sh"
packages_install "age age
age-keygen age"

echo 'keystore = "file:secrets"' >"$VMWARD_CONFIG"
store=$WORK/config/secrets key=$WORK/config/keystore.key

uuid=$("$vmward" secret generate --usage-volume /images/web1.qcow2)
promise "age reads what vmward wrote" \
    equal "$(age -d -i "$key" "$store/$uuid.age")" "$("$vmward" secret get-value "$uuid")"
age-keygen -o "$WORK/recovery.key" 2>/dev/null
age-keygen -y "$WORK/recovery.key" >>"$store/recipients.txt"
printf 'a new value' | "$vmward" secret set-value "$uuid"
promise "a recovery key reads what was set after it was added" \
    equal "$(age -d -i "$WORK/recovery.key" "$store/$uuid.age")" "a new value"
printf 'written by age' | age -R "$store/recipients.txt" -o "$store/$uuid.age"
promise "vmward reads what age wrote" equal "$("$vmward" secret get-value "$uuid")" "written by age"
done_well
