"""Looks for secrets in the memory of processes: memory.py PID... with the secrets on stdin, one per line, in hexadecimal.

Prints every process that holds one, and how often; exits with 1 if there is any. Only root may look into vmward."""

import sys

secrets = [bytes.fromhex(line.strip()) for line in sys.stdin if line.strip()]
if not secrets or min(map(len, secrets)) < 16:
    sys.exit("no secrets to look for")
found = False
for pid in sys.argv[1:]:
    count = looked = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, access = line.split()[:2]
            if "w" not in access:
                continue
            start, end = (int(n, 16) for n in span.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except OSError:
                continue
            looked += len(content)
            count += sum(content.count(secret) for secret in secrets)
    if not looked:
        sys.exit(f"the memory of process {pid} cannot be read")
    if count:
        print(f"process {pid} has {count}")
        found = True
sys.exit(found)
